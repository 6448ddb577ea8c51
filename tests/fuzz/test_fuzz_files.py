"""Replays what `make fuzz-files` found worth keeping, without atheris, and checks that the fuzzer notices faults."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import file_corpus
import file_targets
import pytest
from file_targets import Fault, bounded, refusal, run

from seqcls_fast.toolkit.data import formats
from seqcls_fast.toolkit.data.errors import DataError

CORPUS = file_corpus.load()
pytest.importorskip("pyarrow")

import file_changes  # noqa: E402


@pytest.mark.parametrize("target", file_targets.TARGETS)
def test_the_corpus(target: str) -> None:
    assert len(CORPUS[target]) >= 10
    for data in CORPUS[target]:
        try:
            run(target, data)
        except Exception as error:
            raise AssertionError(f"{target}, input {file_corpus.name_of(data)}: {data[:300]!r}") from error


@pytest.mark.parametrize("target", ["csv", "jsonl", "ts", "parquet", "encoder"])
def test_changed_inputs(target: str) -> None:
    """A change depends on its seed alone. Some of the changed inputs are run, too."""
    inputs, changed = CORPUS[target][:30], 0
    for number, data in enumerate(inputs):
        one, other = (file_changes.changed(target, data, random.Random(number)) for _ in range(2))
        assert one == other
        if one not in (None, data):
            changed += 1
            run(target, one)
    assert changed > (3 if target == "parquet" else 10)


def test_what_a_refusal_must_say() -> None:
    for words in ("", "no\nline", "'int' object is not iterable, expected one", "x" * 2000, "it is wrong"):
        with pytest.raises(Fault, match="no sentence"), refusal(DataError):
            raise DataError(words)
    with refusal(DataError):
        raise DataError("a.csv: expected one thing but got another")
    with pytest.raises(KeyError), refusal(DataError):
        raise KeyError("text")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_targets, "SECONDS", -1)
    with pytest.raises(Fault, match="it took"), bounded():
        pass
    monkeypatch.undo()
    sizes = iter((1 << 30, 3 << 30))
    monkeypatch.setattr(file_targets, "most_memory", lambda: next(sizes))
    with pytest.raises(Fault, match="it took 2048 MB"), bounded():
        pass


def test_a_difference_between_blocks_and_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data, whole = b"text,label\na,b\nc,d\n", formats.LineReader._table

    def one_less(self: Any, rows: list[Any], name: str) -> Any:
        return whole(self, rows[:-1], name)

    run("csv", data)
    monkeypatch.setattr(formats.LineReader, "_table", one_less)
    with pytest.raises(Fault, match=r"as a whole but .* in blocks"):
        run("csv", data)


def test_steps() -> None:
    """The steps of a run name lines that its file has, and an input that adds none is left out of the corpus."""
    kept, steps = file_corpus.minimised("ts", [b"@data\n1\n", b"@data\n1,2\n", b"", b"@dat\n"], run)
    assert 1 < len(kept) <= 4
    for file in file_corpus.FILES["ts"]:
        reached = {line for name, line, _ in steps if name == file}
        assert reached & file_corpus.lines_in_functions(file)
    assert file_corpus.minimised("ts", [*kept, kept[-1]], run) == (kept, steps)
    assert Path(file_corpus.PACKAGE, file_corpus.FILES["ts"][0]).exists()
