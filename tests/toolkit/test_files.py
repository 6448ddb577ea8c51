"""Files that are there whole or not at all: kills at every step, two writers at once, the order of flushes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import seqcls_fast as sf
from seqcls_fast import __main__, _files
from seqcls_fast.cli import shared
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.evaluation import plots
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support.corpora import sentences
from support.interruptions import small
from support.processes import ROOT, SUPPORT, TESTS

X, Y = sentences(0, 20)
REFUSED = "expected no other process to write to it but got"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="locks and signals of POSIX")


@pytest.fixture(scope="module")
def models() -> list[sf.TextClassifier]:
    return [sf.TextClassifier(hidden_size=4, embedding_dim=4, epochs=n).fit(X, Y) for n in (1, 2)]


@pytest.fixture(params=["exchanged", "renamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which a folder replaces another: in one step if the system can, or by two renames."""
    if request.param == "renamed":
        monkeypatch.setattr(_files, "_renameat2", lambda: None)
    return request.param


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, str(SUPPORT / "killed.py"), "writers", str(tmp_path_factory.mktemp("writers") / "in")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("what", "steps"), [("exchanged", 25), ("renamed", 25), ("report", 12), ("checkpoint", 7)])
def test_killed_at_each_step(killed: dict[str, Any], what: str, steps: int) -> None:
    """After each kill a whole model, report or checkpoint is there, and the next writer removes the rest."""
    found = killed[what]
    assert (found["status"], found["end"]) == (0, "new")
    assert len(found["after"]) >= steps
    assert found["after"] == sorted(found["after"], reverse=True)  # the old one until some step, then the new one
    assert set(found["after"]) == {"old", "new"}
    assert found["left"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_names_are_exchanged_where_the_system_can(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from-{name}").touch()
    told, done = _files._exchanged(tmp_path / "a", tmp_path / "b"), names(tmp_path / "a") == ["from-b"]
    assert told == done
    if not done:
        pytest.skip("a file system without RENAME_EXCHANGE")
    assert not _files._exchanged(tmp_path / "a", tmp_path / "c")


def test_what_a_kill_moved_away_is_found_and_moved_back(models: list[sf.TextClassifier], tmp_path: Path) -> None:
    models[0].save(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.0123abcd.replaced")
    (tmp_path / ".model.0123abce.partial").mkdir()
    (tmp_path / ".model.notes").mkdir()  # not one of our names
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for name in ("model", "link"):
        assert sf.TextClassifier.load(tmp_path / name).epochs == 1
    with (
        pytest.raises(FileExistsError, match="expected a new or empty directory"),
        shared.claimed(tmp_path / "model", False),
    ):
        pass
    assert names(tmp_path) == [".model.0123abce.partial", ".model.notes", "link", "model"]
    models[1].save(tmp_path / "model")
    assert names(tmp_path) == [".model.notes", "link", "model"]
    assert sf.TextClassifier.load(tmp_path / "model").epochs == 2


def test_a_failed_rename_puts_the_old_one_back(
    models: list[sf.TextClassifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models[0].save(tmp_path / "model")
    rename, calls = os.rename, []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(*arguments)

    monkeypatch.setattr(_files, "_renameat2", lambda: None)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        models[1].save(tmp_path / "model")
    assert names(tmp_path) == ["model"]
    assert sf.TextClassifier.load(tmp_path / "model").epochs == 1


# -- the disk ---------------------------------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that flush or name a file, in order, with the names of the files."""
    calls: list[tuple[str, str]] = []
    fsync = os.fsync

    def name_of(path: Any) -> str:
        return "fresh" if str(path).endswith(".partial") else Path(path).name

    def syncing(handle: int) -> None:
        calls.append(("fsync", name_of(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def naming(call: Callable[..., Any], one: Any, other: Any) -> Any:
        calls.append(("name", name_of(other)))
        return call(one, other)

    monkeypatch.setattr(os, "fsync", syncing)
    for module, name in ((os, "rename"), (os, "replace"), (_files, "_exchanged")):
        monkeypatch.setattr(module, name, partial(naming, getattr(module, name)))
    return calls


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")
def test_all_is_on_the_disk_before_it_gets_its_name(
    models: list[sf.TextClassifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    calls = recorded(monkeypatch)
    models[0].save(tmp_path / "in" / "new" / "model")
    assert calls[0] == ("fsync", "in")  # the folder that "new" was made in
    written = [("fsync", name) for name in (store.CONFIG, store.WEIGHTS, store.CARD)]
    assert calls[1:] == [*written, ("fsync", "fresh"), ("name", "model"), ("fsync", "new")]
    del calls[:]
    models[1].save(tmp_path / "in" / "new" / "model")
    assert calls == [*written, ("fsync", "fresh"), ("name", "model"), ("fsync", "new")]
    del calls[:]
    with _files.replacing(tmp_path / "in" / "a.txt") as path:
        path.write_text("a")
        path.with_name("a.txt.data").write_text("beside it")
    assert calls[:2] == [("fsync", "a.txt.data"), ("fsync", "a.txt")]
    assert calls[2:] == [("name", "a.txt.data"), ("name", "a.txt"), ("fsync", "in")]
    del calls[:]
    Checkpoints(tmp_path / "in" / "c", 0).write({})
    file = calls[2][1]
    assert calls == [("fsync", "in"), ("fsync", f".{file}"), ("name", file), ("fsync", "c")]


# -- two at once ------------------------------------------------------------------------------------------------------


def test_a_lock_is_had_by_one(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("of a process that was killed")
    with _files.locked(lock, tmp_path, wait=False) as held:
        assert held
        with (
            pytest.raises(BlockingIOError, match=f"{REFUSED} process {os.getpid()} on"),
            _files.locked(lock, tmp_path, wait=False),
        ):
            pass
        assert lock.exists()
    assert names(tmp_path) == []
    with _files.locked(lock, tmp_path, wait=False):
        lock.write_text("\x1b[2J" * 1000)
        with pytest.raises(BlockingIOError, match=f"{REFUSED} one$"), _files.locked(lock, tmp_path, wait=False):
            pass


def test_who_waits_for_a_lock_gets_it(tmp_path: Path) -> None:
    lock, order = tmp_path / ".lock", []

    def work(name: str) -> None:
        for _ in range(20):
            with _files.locked(lock, tmp_path):
                order.append(f"{name} begins")
                time.sleep(0)
                order.append(f"{name} ends")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 120
    assert all(first[0] == second[0] for first, second in zip(order[::2], order[1::2], strict=True))
    assert names(tmp_path) == []


def test_a_forked_worker_keeps_no_lock(tmp_path: Path) -> None:
    """A worker whose parent was killed notices that only a second later."""
    handle = _files._acquired(tmp_path / ".lock", tmp_path, False)
    assert handle is not None
    (reader, writer), (told, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(tell, b"!")
        os.read(reader, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        _files._release(handle)  # as the system does for a killed process: the file stays
        with _files.locked(tmp_path / ".lock", tmp_path, wait=False):
            pass
    finally:
        for end in (reader, writer, told, tell):
            os.close(end)
        os.waitpid(child, 0)


@pytest.mark.parametrize("why", ["no fcntl", errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_nothing_of_others_is_removed(
    why: Any, models: list[sf.TextClassifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(why, os.strerror(why))

    if why == "no fcntl":
        monkeypatch.setattr(_files, "_HAS_LOCKS", False)
    else:
        monkeypatch.setattr(_files.fcntl, "flock", refuse)
    (tmp_path / ".model.0123abcd.partial").mkdir()  # perhaps of a living process
    models[0].save(tmp_path / "model")
    models[1].save(tmp_path / "model")
    assert names(tmp_path) == [".model.0123abcd.partial", "model"]
    assert sf.TextClassifier.load(tmp_path / "model").epochs == 2


def test_what_a_living_process_writes_is_let_be(models: list[sf.TextClassifier], tmp_path: Path) -> None:
    with _files.unfinished(tmp_path / "model") as fresh:
        saving = threading.Thread(target=models[0].save, args=(tmp_path / "model",))
        saving.start()
        (fresh / "file").write_text("being written")
        saving.join(0.2)
        assert saving.is_alive()  # it waits for the lock
        assert (fresh / "file").exists()
    saving.join()
    assert names(tmp_path) == ["model"]


def test_many_save_while_others_load(way: str, models: list[sf.TextClassifier], tmp_path: Path) -> None:
    folder, failures, over = tmp_path / "model", [], threading.Event()
    models[0].save(folder)

    def work(step: Callable[[], Any]) -> None:
        try:
            while not over.is_set():
                step()
        except BaseException as error:
            failures.append(error)

    steps = [lambda: models[0].save(folder), lambda: models[1].save(folder)]
    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    try:
        assert {sf.TextClassifier.load(folder).epochs for _ in range(60)} <= {1, 2}
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert names(tmp_path) == ["model"]


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, as the current directory."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(X, Y, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    return tmp_path


TRAIN = ["train", "data.jsonl", "--hidden-size", "4", "--embedding-dim", "4", "--epochs", "1", "--no-verbose"]


@pytest.mark.parametrize(
    ("command", "lock"),
    [
        ([*TRAIN, "--out", "new"], ".new.run"),
        ([*TRAIN, "--out", "./new/../model", "--overwrite"], ".model.run"),
        ([*TRAIN, "--out", "new", "--resume"], ".new.run"),
        ([*TRAIN, "--out", "new", "--checkpoint-dir", "kept"], "kept/.lock"),
        (["calibrate", "model", "data.jsonl"], ".model.run"),
        (["calibrate", "model", "data.jsonl", "--out", "new"], ".new.run"),
        (["reproduce", "model", "--keep", "new"], ".new.run"),
        (["predict", "model", "data.jsonl", "--out", "new.csv"], ".new.csv.lock"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_the_second_of_two_commands_is_refused(
    command: list[str], lock: str, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([*TRAIN, "--out", "model"]) == 0
    before = (shop / "model" / store.WEIGHTS).read_bytes()
    (shop / "kept").mkdir()
    capsys.readouterr()
    with _files.locked(shop / lock, shop):
        assert __main__.main(command) == 1
    assert f"{REFUSED} process {os.getpid()} on" in capsys.readouterr().err
    assert (shop / "model" / store.WEIGHTS).read_bytes() == before
    assert names(shop) == ["data.jsonl", "kept", "model"]
    assert __main__.main(command) == 0
    assert not [name for name in names(shop) if name.startswith(".")]


def test_what_was_saved_meanwhile_is_not_replaced(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: list[sf.TextClassifier]
) -> None:
    """Without locks, the writer that ends later gets an error, and can save again."""
    learn = sf.TextClassifier._fit

    def meanwhile(self: Any, *arguments: Any, **options: Any) -> None:
        learn(self, *arguments, **options)
        models[1].save("model")

    monkeypatch.setattr(sf.TextClassifier, "_fit", meanwhile)
    assert __main__.main([*TRAIN, "--out", "model"]) == 1
    assert "model: expected a new or empty directory (--overwrite replaces a saved model)" in capsys.readouterr().err
    assert sf.TextClassifier.load("model").epochs == 2
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    assert __main__.main([*TRAIN, "--out", "model", "--resume", "--overwrite"]) == 0
    assert sf.TextClassifier.load("model").epochs == 1
    assert names(shop) == ["data.jsonl", "model"]


def test_a_training_that_never_began_leaves_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([*TRAIN, "--out", "model", "--metric", "f0"]) == 1
    assert __main__.main([*TRAIN, "--out", "model", "--label", "lable"]) == 1
    (shop / "one.jsonl").write_text('{"text": "a", "label": 1}\n' * 9)
    assert __main__.main(["train", "one.jsonl", *TRAIN[2:], "--out", "model"]) == 1
    assert "expected at least two classes" in capsys.readouterr().err
    assert names(shop) == ["data.jsonl", "one.jsonl"]


def test_two_trainings_with_one_checkpoint_dir(tmp_path: Path) -> None:
    def second(history: Any) -> bool:
        with pytest.raises(BlockingIOError, match=REFUSED):
            small(tmp_path / "kept").fit(X, Y, resume=True)
        return False

    small(tmp_path / "kept", epochs=1).fit(X, Y, stop=second)
    small(tmp_path / "kept", epochs=1).fit(X, Y, resume=True)


def test_no_file_takes_a_folder_s_place(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([*TRAIN, "--out", "model"]) == 0
    assert __main__.main(["predict", "model", "data.jsonl", "--out", "."]) == 1
    assert "expected a file but got a folder" in capsys.readouterr().err


def test_pictures_leave_nothing_of_killed_ones(tmp_path: Path) -> None:
    (tmp_path / ".a.png.0123abcd.partial").mkdir()
    (tmp_path / ".a.png.0123abcd.partial" / "a.png").write_bytes(b"half a picture")
    plots.save(plots.length_histogram([1, 2, 3]), tmp_path / "a.png")
    assert names(tmp_path) == ["a.png"]
