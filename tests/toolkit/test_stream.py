"""Streams: every row once, the same order for every process and start, bounded memory, and workers that end."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqcls_fast.toolkit.data.formats as formats_module
import seqcls_fast.toolkit.data.leakage as leakage_module
import seqcls_fast.toolkit.data.pools as pools_module
import seqcls_fast.toolkit.data.readers as readers_module
import seqcls_fast.toolkit.data.series as series_module
import seqcls_fast.toolkit.data.survey as survey_module
import seqcls_fast.toolkit.data.text as text_module
import seqcls_fast.toolkit.data.workers as workers_module
from seqcls_fast.toolkit.data.batches import bucketed, generator_of
from seqcls_fast.toolkit.data.errors import DataError
from seqcls_fast.toolkit.data.leakage import Sketch, fingerprints, leaks
from seqcls_fast.toolkit.data.pools import PoolBatch
from seqcls_fast.toolkit.data.ragged import Ragged
from seqcls_fast.toolkit.data.readers import read
from seqcls_fast.toolkit.data.records import Block, Layout
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import TextEncoder
from support.corpora import waste


class Numbers:
    """An encoder that repeats the number at the start of a text, once for each word of the text."""

    def fit(self, texts: Iterable[str]) -> Numbers:
        self.fitted_to = list(texts)
        return self

    def encode(self, texts: Sequence[str]) -> Ragged:
        return Ragged.of([[int(text.split()[0])] * len(text.split()) for text in texts])


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(count)
    return [
        {"text": f"{i} " + "ab " * rng.randint(0, 30), "label": "xyz"[i % 3], "w": i % 5 + 0.5}
        for i in range(first, first + count)
    ]


def write(path: Path, rows: list[dict[str, Any]], group: int = 100) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label", "w"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """1,500 rows in files of all formats and sizes, in the order of their paths."""
    folder = tmp_path / "mixed"
    (folder / "b").mkdir(parents=True)
    write(folder / "a.csv", rows_of(600))
    write(folder / "b" / "c.parquet", rows_of(350, 600))
    write(folder / "b" / "d.jsonl", rows_of(549, 950))
    (folder / "b" / "e.csv").write_text("")
    write(folder / "z.csv", rows_of(1, 1499))
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.csv").write_text("no columns\n1\n")
    (folder / "about.txt").write_text("no labels here")
    return folder


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of 3 batches, or some 120 rows."""
    monkeypatch.setattr(pools_module, "POOL_BATCHES", 3)
    monkeypatch.setattr(pools_module, "POOL_ROWS", 120)


def numbers(batch: PoolBatch) -> list[int]:
    starts = batch.sequences.lengths.cumsum(0) - batch.sequences.lengths
    return batch.sequences.values[starts[batch.rows]].tolist()


def epoch(stream: Stream, size: int, seed: int = 0, number: int = 0, **more: Any) -> list[list[int]]:
    """The numbers in each batch."""
    return [numbers(part) for part in stream.epoch(Numbers(), size, seed, number, **{"workers": 0, **more})]


def all_of(batches: list[list[int]]) -> list[int]:
    return sorted(number for batch in batches for number in batch)


# -- the survey -------------------------------------------------------------------------------------------------------


def test_survey(mixed: Path, tmp_path: Path) -> None:
    stream, encoder = Stream(mixed, weight=None), TextEncoder()
    survey, plain = stream.survey(encoder), read(mixed)
    assert plain.labels is not None
    assert plain.texts_or_series == [row["text"] for row in rows_of(600) + rows_of(350, 600) + rows_of(549, 950)] + [
        rows_of(1, 1499)[0]["text"]
    ]
    assert survey.rows == 1500
    assert survey.labels == Counter(plain.labels)
    assert survey.weights == survey.labels
    assert survey.values == sum(map(len, plain.texts_or_series))
    assert survey.seen == fingerprints(plain.texts_or_series)
    assert [file[0] for file in survey.files] == [
        "a.csv", os.path.join("b", "c.parquet"), os.path.join("b", "d.jsonl"), os.path.join("b", "e.csv"), "z.csv",
    ]  # fmt: skip
    assert survey.files[0][1] == (mixed / "a.csv").stat().st_size
    assert encoder.to_json() == TextEncoder().fit(plain.texts_or_series).to_json()
    weighed = Stream(mixed, weight="w").survey()
    assert weighed.weights["x"] == sum(i % 5 + 0.5 for i in range(0, 1500, 3))
    rows = [{"text": t, "label": y, "w": 1.0} for t, y in zip(plain.texts_or_series, plain.labels, strict=True)]
    assert Stream(write(tmp_path / "one.jsonl", rows)).survey().digest == survey.digest
    for name, value in (("label", "y"), ("text", "other")):
        changed = [{**rows[0], name: value}, *rows[1:]]
        assert Stream(write(tmp_path / "two.jsonl", changed)).survey().digest != survey.digest
    assert weighed.digest != survey.digest


def test_survey_is_remembered(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    blocks = readers_module.Files.blocks
    monkeypatch.setattr(readers_module.Files, "blocks", lambda self: passes.append(1) or blocks(self))
    stream = Stream(mixed)
    first, second, other = TextEncoder(), TextEncoder(), TextEncoder("char")
    survey = stream.survey(first)
    assert stream.survey(second) is survey
    assert stream.survey() is survey
    assert len(passes) == 1
    assert second.to_json() == first.to_json()
    stream.survey(other)
    assert len(passes) == 2
    assert other.vocab_size != first.vocab_size
    kept, held = stream.split(0.2, seed=1)
    kept.survey(TextEncoder())
    held.survey()
    assert len(passes) == 3


def test_unlabelled(mixed: Path) -> None:
    (mixed / "about.txt").unlink()  # it would be read as data without labels
    found = Stream(mixed, label=None).survey()
    assert (found.rows, found.labels, found.weights) == (1500, {}, {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('text,label\n"3\n",a\n4,\n', "a.csv, line 4: expected a label in 'label' but got nothing"),
        ("text,label\n3\n", "a.csv, line 2: expected 2 fields but got 1"),
        ("text,label\n", "expected at least one example but got none"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    stream = Stream(tmp_path)
    with pytest.raises(DataError, match=f"{sentence}$"):
        stream.survey()
    (tmp_path / "a.csv").write_text("text,label\n3,a\n")  # the file is correct now
    assert Stream(tmp_path).survey().rows == 1
    if "line" in sentence:
        assert stream.survey().rows == 1


def test_what_teaches_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"text": "", "label": "a", "w": 1}] * 3)
    stream = Stream(path)
    with pytest.raises(ValueError, match="expected a token to learn but got none in 3 texts"):
        stream.survey(TextEncoder())
    pieces = list(stream.pieces(TextEncoder().fit(["a"]), workers=0))  # empty texts are data, too
    assert pieces[0].sequences.lengths.tolist() == [0, 0, 0]


def test_labels_of_two_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n3,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "3", "label": 1}\n')
    with pytest.raises(DataError, match="expected labels of one kind but got both 1 and '1'"):
        Stream(tmp_path).survey()


def test_ts_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("@classLabel true\n@data\n1,2:a\n")
    with pytest.raises(ValueError, match=r"a\.ts: expected a format that is read by blocks but got ts"):
        Stream(tmp_path / "a.ts", kind="series").survey()


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with files that end in one of \.csv, .* but found none"):
        Stream(tmp_path)


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_blocks_are_read_by_themselves(tmp_path: Path, end: str, bom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_module, "BLOCK", 4)
    texts = [f'{i} a,"b"{end}{end}c ä' if i % 4 in (0, 3) else f"{i}" for i in range(50)]  # ends of blocks
    quoted = [text.replace('"', '""') for text in texts]
    lines = [f'"{text}",y{end}' + (end if i % 8 == 3 else "") for i, text in enumerate(quoted)]
    path = tmp_path / "a.csv"
    path.write_bytes(f"{bom}text,label{end}{''.join(lines)}".encode())
    stream = Stream(path)
    assert len(stream.survey().blocks) == 13
    blocks = [Block(*block) for block in stream.survey().blocks.tolist()]
    fresh = pickle.loads(pickle.dumps(stream))._source.files  # a copy, as a worker gets it
    found = {block: fresh.content(block).take(range(block.rows)).texts_or_series for block in reversed(blocks)}
    assert [text for block in blocks for text in found[block]] == texts == read(path).texts_or_series
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"25",y', b'"25",,'))  # same size and time: only the line shows the change
    os.utime(path, ns=(0, stream.survey().files[0][2]))
    line = content[: content.index(b'"25"')].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"a\.csv, line {line}: expected 2 fields but got 3$"):
        stream._source.files.content(blocks[25 // 4])


def test_long_rows_make_small_blocks(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "word " * 60_000, "label": "a", "w": 1} for i in range(12)]
    for name in ("a.csv", "a.jsonl"):
        assert Stream(write(tmp_path / name, rows)).survey().blocks[:, 3].tolist() == [4, 4, 4]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_changed_files(tmp_path: Path, name: str, workers: int) -> None:
    path = write(tmp_path / name, rows_of(30))
    stream = Stream(path)
    stream.survey()
    write(path, rows_of(31))
    with pytest.raises(DataError) as caught:
        epoch(stream, 8, workers=workers)
    assert str(caught.value) == f"{path}: expected the file as it was surveyed but it has changed"


# -- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_every_row_once_for_any_world(mixed: Path, size: int) -> None:
    stream = Stream(mixed)
    whole = epoch(stream, size)
    assert all_of(whole) == list(range(1500))
    assert len(whole) == stream.steps(size) == -(-1500 // size)
    assert sorted(map(len, whole))[1:] == [size] * (len(whole) - 1)
    for world in (2, 3):
        ranks = [list(stream.epoch(Numbers(), size, 0, 0, workers=0, rank=r, world=world)) for r in range(world)]
        for parts, batch in zip(zip(*ranks, strict=True), whole, strict=True):
            assert sorted(number for part in parts for number in numbers(part)) == sorted(batch)
            assert {part.count for part in parts} == {len(batch)}
            assert max(len(part.rows) for part in parts) - min(len(part.rows) for part in parts) <= 1
            assert all(part.targets[part.rows].tolist() == [i % 3 for i in numbers(part)] for part in parts)
        assert all(int(parts[0].sequences.lengths.sum()) < 3000 for parts in ranks if size < 100)  # only its own rows


@pytest.mark.usefixtures("small_pools")
def test_order(mixed: Path) -> None:
    stream = Stream(mixed)
    first = epoch(stream, 16)
    assert epoch(Stream(mixed), 16) == first
    assert epoch(stream, 16, number=1) != first != epoch(stream, 16, seed=1)
    for other in (epoch(stream, 16, number=1), epoch(stream, 16, seed=1)):
        assert all_of(other) == list(range(1500))
        assert len(set(all_of(first[:6])) & set(all_of(other[:6]))) < 50  # of 96: the pools differ, too
    shuffled = sum(abs(a - b) for a, b in zip(all_of(first), [i for batch in first for i in batch], strict=True)) / 1500
    assert shuffled > 300  # 500 for a perfect shuffle


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_can_be_gone_to(mixed: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(mixed)
    whole = epoch(stream, 16)
    read_blocks: list[Any] = []
    content = readers_module.Files.content
    monkeypatch.setattr(readers_module.Files, "content", lambda self, b: read_blocks.append(b) or content(self, b))
    for step in (0, 1, 5, 6, 7, 50, len(whole) - 1, len(whole)):
        read_blocks.clear()
        tail = epoch(stream, 16, start_step=step, workers=workers)
        assert tail == whole[step:]
        pools = -(-len(whole) // 6) - step // 6
        assert len(read_blocks) <= 6 * pools  # blocks of 100 rows or more, for pools of 96


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.usefixtures("small_pools")
def test_workers_change_nothing(mixed: Path) -> None:
    stream = Stream(mixed, weight="w")
    encoder = TextEncoder()
    stream.survey(encoder)
    state = torch.random.get_rng_state()
    expected = [list(stream.epoch(encoder, 16, 3, number, workers=0)) for number in range(3)]
    for workers in (1, 2, 3):
        for epochs in (None, 3):
            for number in range(3):
                found = list(stream.epoch(encoder, 16, 3, number, workers=workers, epochs=epochs))
                for part, other in zip(found, expected[number], strict=True):
                    assert torch.equal(part.sequences.values, other.sequences.values)
                    assert torch.equal(part.sequences.lengths, other.sequences.lengths)
                    assert torch.equal(part.targets, other.targets)
                    assert part.weights is not None
                    assert other.weights is not None
                    assert torch.equal(part.weights, other.weights)
                    assert torch.equal(part.rows, other.rows)
                    assert part.count == other.count
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.usefixtures("small_pools")
def test_workers_go_on_with_the_next_epoch(mixed: Path) -> None:
    stream = Stream(mixed)
    expected = [epoch(stream, 16, number=number) for number in range(3)]
    encoder = Numbers()

    def one(number: int, start: int = 0) -> list[list[int]]:
        return [numbers(p) for p in stream.epoch(encoder, 16, 0, number, start_step=start, epochs=3)]

    assert one(0) == expected[0]
    waiting = stream._prefetch
    assert waiting is not None
    assert one(1) == expected[1]
    assert stream._prefetch is waiting
    assert one(1, 20) == expected[1][20:]  # not the epoch that the workers have begun: new workers start
    assert stream._prefetch is not waiting
    both = zip(stream.epoch(encoder, 16, 0, 2), stream.epoch(encoder, 16, 0, 2, workers=0), strict=True)
    assert all(numbers(a) == numbers(b) for a, b in both)
    assert one(2) == expected[2]
    assert stream._prefetch is None
    assert one(0, stream.steps(16)) == []
    assert one(1) == expected[1]
    stream.close()
    assert stream._prefetch is None
    turns = [list(islice(waiting.pools.items((0, 0), worker, 2), 4)) for worker in (0, 1)]
    assert [np.array_equal(a.sequences.values, b.sequences.values) for a, b in zip(*turns, strict=True)] == [False] * 4


def test_pickled_for_another_start_method(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(mixed)
    encoder = TextEncoder()
    stream.survey(encoder)
    monkeypatch.setattr(workers_module, "_START", "forkserver")
    here, there = (list(stream.epoch(encoder, 500, 0, 0, workers=workers)) for workers in (0, 1))
    assert [part.rows.tolist() for part in here] == [part.rows.tolist() for part in there]
    assert torch.equal(here[0].sequences.values, there[0].sequences.values)


def test_padding(tmp_path: Path) -> None:
    """Batches have as little padding as those of data in memory, which are sorted in pools of 50 batches as well."""
    rng = np.random.default_rng(0)
    counts = np.exp(rng.normal(3.4, 0.6, 20_000)).clip(1, 200).astype(int)
    words = ["word", "a", "longest,", "of"]
    texts = [" ".join(words[k] for k in rng.integers(0, 4, count)) for count in counts[::2]]
    texts += ["这个电影很好"[:3] * int(count) for count in counts[1::2]]
    stream = Stream(write(tmp_path / "a.csv", [{"text": text, "label": "a", "w": 1} for text in texts]))
    encoder = TextEncoder()
    stream.survey(encoder)
    parts = list(stream.epoch(encoder, 64, 0, 0, workers=0))
    lengths = [part.sequences.lengths[part.rows] for part in parts]
    padded = sum(len(part) * int(part.max()) for part in lengths)
    found = 1 - sum(int(part.sum()) for part in lengths) / padded
    in_memory = encoder.encode(texts).lengths
    assert found < 1.1 * waste(in_memory, bucketed(in_memory, 64, generator_of(0)))


def test_pools_of_long_sequences_are_small(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(mixed)
    whole = epoch(stream, 16)
    monkeypatch.setattr(pools_module, "_POOL_VALUES", stream.survey().values // 10)
    pools = {id(part.sequences) for part in list(stream.epoch(Numbers(), 16, 0, 0, workers=0))}
    assert len(pools) == 11
    assert all_of(epoch(stream, 16)) == all_of(whole)


@pytest.mark.usefixtures("small_pools")
def test_row_groups_larger_than_a_pool(tmp_path: Path) -> None:
    """Row groups are shuffled before they are cut into pools. Else rows sorted by label would come in that order."""
    rows = sorted(rows_of(1500), key=lambda row: row["label"])
    stream = Stream(write(tmp_path / "a.parquet", rows, group=2000))
    parts = list(stream.epoch(Numbers(), 16, 0, 0, workers=0))
    assert all_of([numbers(part) for part in parts]) == list(range(1500))
    assert all(part.targets[part.rows].unique().numel() > 1 for part in parts if len(part.rows) == 16)


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pools")
def test_split(mixed: Path) -> None:
    stream = Stream(mixed)
    kept, held = stream.split(0.2, seed=5)
    encoder = Numbers()
    encoder.to_json = lambda: ""  # type: ignore[attr-defined]
    survey = kept.survey(encoder)
    inside, outside = all_of(epoch(kept, 16)), all_of(epoch(held, 16))
    assert sorted(inside + outside) == list(range(1500))
    assert 240 < len(outside) < 360
    assert sorted(int(text.split()[0]) for text in encoder.fitted_to) == inside
    assert survey.rows == len(inside) == sum(survey.labels.values()) == int(survey.kept.sum())
    assert held.survey().labels == Counter("xyz"[i % 3] for i in outside)
    assert all_of(epoch(Stream(mixed).split(0.2, seed=5)[1], 16)) == outside
    assert all_of(epoch(stream.split(0.2, seed=6)[1], 16)) != outside
    again, within = kept.split(0.2, seed=5)  # other rows than the first split drew
    assert len(all_of(epoch(within, 16))) == pytest.approx(240, abs=50)
    assert sorted(all_of(epoch(again, 16)) + all_of(epoch(within, 16))) == inside
    assert epoch(kept, 16, start_step=30) == epoch(kept, 16)[30:]
    assert [numbers_of(piece) for piece in held.pieces(Numbers(), workers=0)] == [outside]


def test_split_knows_all_labels(tmp_path: Path) -> None:
    rows = rows_of(40)
    rows[7]["label"] = "rare"
    for seed in range(8):
        parts = Stream(write(tmp_path / "a.csv", rows)).split(0.5, seed)
        counts = [part.survey().labels for part in parts]
        assert set(counts[0]) == set(counts[1]) == {"x", "y", "z", "rare"}
        assert counts[0]["rare"] + counts[1]["rare"] == 1


def test_split_of_too_little(tmp_path: Path) -> None:
    kept, held = Stream(write(tmp_path / "a.csv", rows_of(1))).split(0.001, 0)
    assert kept.survey().rows == 1
    with pytest.raises(DataError, match="expected at least one example on each side of the split but got none"):
        held.survey()
    with pytest.raises(ValueError, match="share: expected a number between 0 and 1 but got 1"):
        kept.split(1.0, 0)


# -- pieces -----------------------------------------------------------------------------------------------------------


def numbers_of(piece: Any) -> list[int]:
    starts = piece.sequences.lengths.cumsum(0) - piece.sequences.lengths
    return piece.sequences.values[starts].tolist()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("surveyed", [False, True])
def test_pieces(mixed: Path, surveyed: bool, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(survey_module.PIECE_ROWS, "text", 140)
    classes = np.array(["z", "x", "y"])
    for world in (1, 2, 3):
        found: dict[int, list[int]] = {}
        for rank in range(world):
            stream = Stream(mixed, weight="w")
            if surveyed:
                stream.survey()
            for piece in stream.pieces(Numbers(), rank, world, workers, classes):
                assert piece.first // 140 % world == rank
                found[piece.first] = numbers_of(piece)
                assert piece.targets is not None
                assert piece.targets.tolist() == [(i + 1) % 3 for i in found[piece.first]]
                assert piece.weights is not None
                assert piece.weights.tolist() == [i % 5 + 0.5 for i in found[piece.first]]
        assert sorted(found) == list(range(0, 1500, 140))
        assert [number for first in sorted(found) for number in found[first]] == list(range(1500))


def test_pieces_without_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i}\n" for i in range(5000)))
    pieces = list(Stream(tmp_path / "a.txt", label=None).pieces(Numbers()))
    assert [(piece.first, len(piece.sequences)) for piece in pieces] == [(0, 4096), (4096, 904)]
    assert pieces[0].targets is None
    assert [number for piece in pieces for number in numbers_of(piece)] == list(range(5000))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_are_the_same_in_workers(tmp_path: Path, workers: int) -> None:
    path = write(tmp_path / "a.csv", rows_of(300))
    with path.open("a") as file:
        file.write("3\n")
    line = path.read_text().count("\n")
    with pytest.raises(DataError) as caught:
        list(Stream(path).pieces(Numbers(), workers=workers))
    assert str(caught.value) == f"{path}, line {line}: expected 3 fields but got 1"
    rows = [{"series": [1.0]}] * 1100 + [{"series": [1.0, None]}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    series = Stream(tmp_path / "b.jsonl", label=None, kind="series").pieces(SeriesEncoder().fit([[1.0]]), 0, 1, workers)
    assert len(next(series).sequences) == 1024
    with pytest.raises(DataError, match=r"b\.jsonl: series\[1100\]: expected no missing value but got nan at step 1"):
        next(series)
    with pytest.raises(ValueError, match="expected labels seen in training but got 'y'"):
        list(Stream(write(path, rows_of(3))).pieces(Numbers(), 0, 1, workers, np.array(["x", "z"])))


# -- series -----------------------------------------------------------------------------------------------------------


def test_series(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    rows = [{"series": (5 + rng.normal(size=(n % 7, 2))).tolist(), "label": n % 2} for n in range(1, 1500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1000]))
    parquet.write_table(arrow.Table.from_pylist(rows[1000:]), tmp_path / "b.parquet")
    stream, encoder = Stream(tmp_path, kind="series"), SeriesEncoder()
    survey = stream.survey(encoder)
    assert survey.labels == {1: 750, 0: 749}
    whole = SeriesEncoder().fit([row["series"] for row in rows])
    assert encoder.features_in == 2
    assert np.allclose(json.loads(encoder.to_json())["mean"], json.loads(whole.to_json())["mean"], rtol=1e-14)
    parts = list(stream.epoch(encoder, 32, 0, 0))
    assert sum(len(part.rows) for part in parts) == 1499
    values = torch.cat([piece.sequences.values for piece in stream.pieces(encoder, workers=0)])
    assert torch.allclose(values, whole.encode([row["series"] for row in rows]).values, atol=1e-5)
    (tmp_path / "c.jsonl").write_text('{"series": [[1, 2, 3]], "label": 0}\n')
    with pytest.raises(DataError, match=r"c\.jsonl: expected series of 2 features, as the first .* but got one of 3"):
        Stream(tmp_path, kind="series").survey()


@pytest.mark.parametrize(
    "series",
    [
        [[1.0, None], [], [2.5]],
        [[1, 2], [3]],
        [[[1.0, 2.0], [3.0, None]], [], [[5.0, 6.0]]],
        [[], []],
        [[[1.0], [2.0]], [[3.0]], [None]],
    ],
)
def test_series_of_row_groups(tmp_path: Path, series: list[Any]) -> None:
    """Series read from a row group as arrays equal those read record by record as lists."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"series": series * 3, "label": ["a"] * 3 * len(series)}), tmp_path / "a.parquet")
    expected = read(tmp_path / "a.parquet", kind="series").texts_or_series
    (block, content), *_ = readers_module.Files(tmp_path, Layout(kind="series")).blocks()
    for rows in (range(block.rows), range(2, block.rows), [block.rows - 1, 0, 1]):
        for found, row in zip(content.take(rows).texts_or_series, rows, strict=True):
            assert found.dtype == np.float64
            assert np.array_equal(found.ravel(), expected[row].ravel(), equal_nan=True)
            assert found.shape == expected[row].shape or not found.size


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        ([[1.0], None], "row 2: series: expected a list of steps but got null"),
        ([[[1.0, 2.0]], [[3.0]], [[1.0], [1.0, 2.0]]], "row 3: series: expected 1 feature as at step 0 but got 2 feat"),
        ([["a"]], "row 1: series: expected numbers but got text"),
        ([[[]]], "row 1: series: expected at least one feature but got none"),
        ([[1.0], [float("inf")]], "row 2: series: expected finite values but got inf at step 0, feature 0"),
    ],
)
def test_bad_series_of_row_groups(tmp_path: Path, series: list[Any], sentence: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"series": series}), tmp_path / "a.parquet")
    (block, content), *_ = readers_module.Files(tmp_path, Layout(kind="series", label=None)).blocks()
    with pytest.raises(DataError) as caught:
        content.take(range(block.rows))
    with pytest.raises(DataError) as plain:
        read(tmp_path / "a.parquet", kind="series", label=None)
    assert sentence in str(caught.value)
    assert str(caught.value) == str(plain.value)


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_series_in_pieces(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means and deviations equal those of one pass, even if some pieces are constant, missing, huge or tiny."""
    rng = np.random.default_rng(1)
    series = [rng.normal(size=(rng.integers(0, 5), 6)) * 10.0 ** rng.integers(-3, 4) for _ in range(40)]
    for index, one in enumerate(series):
        one[:, 1] = 0.1  # constant, though its computed mean may differ in the last bit
        one[:, 2] = index // 10  # constant in most pieces
        one[:, 3] *= 1e300
        one[:, 4] *= 1e-310
        one[(index // 3 % 2) * len(one) :, 5] = np.nan  # all missing in many pieces
    whole = SeriesEncoder(missing="mean").fit(series)
    monkeypatch.setattr(series_module, "_AT_ONCE", 10_000)
    assert SeriesEncoder(missing="mean").fit(iter(series)).to_json() == whole.to_json()
    monkeypatch.setattr(series_module, "_AT_ONCE", at_once)
    pieces = SeriesEncoder(missing="mean").fit(iter(series))
    assert pieces._mean is not None
    assert whole._scale is not None
    assert np.allclose(pieces._mean, whole._mean, rtol=1e-12, atol=1e-13 * whole._scale)
    assert np.allclose(pieces._scale, whole._scale, rtol=1e-12)
    assert pieces._mean[1] == 0.1
    assert pieces._scale[1] == 1.0
    with pytest.raises(ValueError, match=r"series\[40\]: expected 6 features but got 2"):
        SeriesEncoder().fit(iter([*map(np.nan_to_num, series), [[1, 2]]]))


def test_extremes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "_AT_ONCE", 1)
    encoder = SeriesEncoder().fit(iter([[1.5e308], [-1.5e308]]))
    assert encoder._mean == 0
    assert encoder._scale == pytest.approx(1.5e308)


# -- bounded memory ---------------------------------------------------------------------------------------------------


def test_rare_words_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"often w{i} w{i // 3}" for i in range(200)]
    exact = TextEncoder().fit(iter(texts))
    assert exact.to_json() == TextEncoder().fit(texts[::-1]).to_json()
    monkeypatch.setattr(text_module, "_DISTINCT", 50)
    bounded = TextEncoder().fit(iter(texts))
    assert bounded.vocab_size < 60
    assert bounded.id_to_token(2) == "often"
    assert exact.vocab_size > 200


def test_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}" for i in range(1000)]
    for pending in (1, 64, 1 << 16):
        monkeypatch.setattr(leakage_module, "_PENDING", pending)
        sketch = Sketch()
        sketch.add(texts * 2)
        assert sketch.fingerprints() == fingerprints(texts)
        assert not sketch.fingerprints().sampled
    monkeypatch.setattr(leakage_module, "_KEPT", 100)
    monkeypatch.setattr(leakage_module, "_PENDING", 64)
    few, reverse = Sketch(), Sketch()
    few.add(texts)
    reverse.add(texts[::-1])
    assert sorted(few.fingerprints().exact) == sorted(fingerprints(texts).exact)[:100]
    assert reverse.fingerprints() == few.fingerprints()
    assert leaks(few.fingerprints(), texts)[0].startswith("at least 100 of 1000 test examples")
    assert leaks(fingerprints(texts[:50]), texts)[0].startswith("50 of 1000")


MEMORY = """
import sys
import torch
from seqcls_fast.toolkit.data import pools, stream
from seqcls_fast.toolkit.data.text import TextEncoder
torch.set_num_threads(1)
pools.POOL_ROWS = 3200
for path in sys.argv[1:]:
    encoder = TextEncoder()
    kept, held = stream.Stream(path).split(0.5, 0)
    kept.survey(encoder)
    rows = sum(len(part.rows) for part in kept.epoch(encoder, 64, 0, 0, workers=0))
    rows += sum(len(piece.sequences) for piece in held.pieces(encoder, workers=0))
    print(rows, *(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # peak, KiB
"""


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_stays_flat(tmp_path: Path, suffix: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc on this machine")
    words = [f"w{i}" for i in range(1000)]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=90)) for _ in range(1000)]
    paths = []
    for count in (8_000, 80_000):
        rows = [{"text": f"{texts[i % 1000]} {i % 997}", "label": "ab"[i % 2], "w": 1} for i in range(count)]
        paths.append(str(write(tmp_path / f"{count}{suffix}", rows, group=2048)))
    done = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=True)
    (few, small), (many, large) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (8_000, 80_000)
    assert large - small < 24 * 1024  # KiB; all texts would take 36,000 and all ids 52,000


# -- workers that end -------------------------------------------------------------------------------------------------

WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to be ignored
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import TextEncoder
encoder = TextEncoder()
stream = Stream(sys.argv[1])
stream.survey(encoder)
parts = stream.epoch(encoder, 4, 0, 0, workers=2, epochs=9)
next(parts)
import multiprocessing
try:
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    rows = [{**row, "text": row["text"] * 40} for row in rows_of(6000)]  # a pool is larger than the buffer of a pipe
    path = write(tmp_path / "a.jsonl", rows)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.communicate()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # zombie
    except FileNotFoundError:
        return True


def test_a_killed_process_leaves_no_workers(waiting: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = waiting
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 15
    while not all(map(gone, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert all(map(gone, workers))


def test_an_interrupt_shows_no_worker(waiting: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = waiting
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("interrupted\n", "", 0)
    assert all(map(gone, workers))
