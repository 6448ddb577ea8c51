"""A limit to the memory of this process, for inputs that ask for much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

ROOM = 256 << 20  # bytes; hostile files ask for many times as much


@contextmanager
def little_memory(room: int = ROOM) -> Iterator[None]:
    """Limits memory to ``room`` more bytes, on Linux; no limit on other systems."""
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def most_memory() -> int:
    """The most bytes that this process has had in memory so far; 0 where the system does not say."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if resource else 0
