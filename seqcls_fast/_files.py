"""Writes files and folders that are there whole or not at all, even if the process is killed.

New content is written beside its target under a name that begins with a dot, flushed to the disk, and then put in the
target's place in one step. The writer holds a lock (flock) on another file beside it, which the system releases when
the process dies. So any unfinished content that the holder of the lock finds was left by a killed process.

The runtime reads files with it, so that modules that writers alone need are imported where they are used.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl

    _HAS_LOCKS: bool = True
except ImportError:  # Windows
    _HAS_LOCKS = False

__all__ = [
    "digest", "found", "locked", "make_folder", "open_regular", "put_in_place", "replacing", "restore", "sync_folder",
    "unfinished", "write_through",
]  # fmt: skip

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}  # fsync() on a folder
_UNTIL_REPLACED, _REPLACED = "partial", "replaced"
_held: set[int] = set()  # file descriptors of the locks that this process holds


def digest(content: dict[str, Any]) -> str:
    """The checksum of an object of JSON."""
    import hashlib

    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- to the disk ------------------------------------------------------------------------------------------------------


def write_through(path: Path, data: bytes) -> None:
    """Writes a new file and returns when it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flag("O_CLOEXEC") | _flag("O_BINARY"), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a loss of power, on systems where folders can be synchronised."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes the folder and those above it, and flushes each to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading; a ValueError for a folder, a pipe or a device, without waiting for any of them."""
    try:
        handle = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_CLOEXEC") | _flag("O_BINARY"))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):
            raise ValueError(f"expected a file but got {error.strerror}") from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError(f"expected a file but got {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}")
    return open(handle, "rb")


def _flag(name: str) -> int:
    return getattr(os, name, 0)


# -- one writer at a time ---------------------------------------------------------------------------------------------


@contextmanager
def locked(lock: Path, target: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock file within this context, then removes it. Yields False if the system has no locks.

    Without ``wait``, a BlockingIOError says which process is writing to ``target``.
    """
    handle = _acquired(lock, target, wait)
    try:
        yield handle is not None
    finally:
        if handle in _held:  # false in a process that was forked meanwhile
            with suppress(OSError):
                if _is_at(handle, lock):
                    os.unlink(lock)  # while it is held, so that who waits for it sees that the file is gone
            _release(handle)


def _acquired(lock: Path, target: Path, wait: bool) -> int | None:
    if not _HAS_LOCKS:
        return None
    import platform

    while True:
        handle = _opened_lock(lock)
        _held.add(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, lock):  # or another holder has removed the file since it was opened
                with suppress(OSError):  # the name is only for messages
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()} {platform.node()}\n".encode())
                return handle
            _release(handle)
        except BlockingIOError:
            holder = _holder(handle)
            _release(handle)
            raise BlockingIOError(f"{target}: expected no other process to write to it but got {holder}") from None
        except BaseException as error:
            _release(handle)
            if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                raise
            with suppress(OSError):
                os.unlink(lock)
            return None


def _opened_lock(lock: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(lock, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # the file of another user, whose process was killed; it can be locked all the same
        return os.open(lock, flags | os.O_RDONLY)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    said = re.fullmatch(rb"([0-9]{1,10}) ([\w.-]{1,64})\n", os.pread(handle, 80, 0))
    return f"process {said[1].decode()} on {said[2].decode()}" if said else "one"


def _release(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _release_all() -> None:
    for handle in list(_held):
        _release(handle)


if hasattr(os, "register_at_fork"):  # or a worker that outlives its parent would keep the parent's locks
    os.register_at_fork(after_in_child=_release_all)


# -- unfinished folders -----------------------------------------------------------------------------------------------


@contextmanager
def unfinished(target: Path, wait: bool = True) -> Iterator[Path]:
    """A new folder beside ``target``, for the content that will replace it; removed at the end. The lock is held.

    First removes what killed processes have left, and moves back what they had moved away.
    """
    with locked(_beside(target, "lock"), target, wait) as alone:
        if alone:
            _move_back(target)
            for kind in (_UNTIL_REPLACED, _REPLACED):
                for left in _left(target, kind):
                    _remove(left)
        fresh = _beside(target, f"{os.urandom(4).hex()}.{_UNTIL_REPLACED}")
        fresh.mkdir()
        try:
            yield fresh
        finally:
            _remove(fresh)


def put_in_place(fresh: Path, target: Path) -> None:
    """Replaces ``target`` by ``fresh``, a folder from :func:`unfinished` whose files are on the disk.

    If the process is killed, the old folder or the new one has that name. On systems that cannot exchange two names it
    may also be that none has it, and :func:`found` finds the old one.
    """
    sync_folder(fresh)
    old = None
    if not target.exists():
        os.rename(fresh, target)
    elif not _exchanged(fresh, target):
        old = _beside(target, f"{os.urandom(4).hex()}.{_REPLACED}")
        os.rename(target, old)
        try:
            os.rename(fresh, target)
        except BaseException:
            os.rename(old, target)
            raise
    sync_folder(target.parent)
    if old is not None:
        _remove(old)


@contextmanager
def replacing(path: Path, wait: bool = True) -> Iterator[Path]:
    """A temporary path to write a file to, which replaces ``path`` at the end, when it is on the disk.

    Other files written to the same folder are put beside ``path``, before it. Locks are as in :func:`unfinished`.
    """
    with unfinished(path, wait) as folder:
        yield folder / path.name
        files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for file in files:
            handle = os.open(file, os.O_RDWR | _flag("O_CLOEXEC"))
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        for file in files:
            os.replace(file, path.parent / file.name)
        sync_folder(path.parent)


def found(target: Path) -> Path:
    """Where the folder ``target`` is now: elsewhere while it is being replaced, or if that process was killed."""
    if not target.exists() and (left := _left(target, _REPLACED)):
        return left[-1]
    return target


def restore(target: Path) -> None:
    """Moves back the folder that a killed process had moved away."""
    if _left(target, _REPLACED):
        with locked(_beside(target, "lock"), target) as alone:
            if alone:
                _move_back(target)


def _move_back(target: Path) -> None:
    if (there := found(target)) != target:
        os.rename(there, target)
        sync_folder(target.parent)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _left(target: Path, kind: str) -> list[Path]:
    """The unfinished folders of a kind beside ``target``, the newest last."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.{kind}")
    try:
        names = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    ages = {}
    for path in names:
        with suppress(FileNotFoundError):  # removed meanwhile by a living process
            ages[path] = path.lstat().st_mtime_ns
    return sorted(ages, key=ages.__getitem__)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# -- exchanging two names ---------------------------------------------------------------------------------------------


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False if the system or the file system cannot."""
    exchange = _renameat2()
    return exchange is not None and exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@lru_cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    """Linux's renameat2(), if the C library has it."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        function = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    found: Callable[[int, bytes, int, bytes, int], int] = function
    return found
