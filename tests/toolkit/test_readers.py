"""Files of labelled sequences: every format, the error messages, and bounded memory."""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqcls_fast.toolkit.data.errors import DataError
from seqcls_fast.toolkit.data.formats import FORMATS, LineReader, Lines
from seqcls_fast.toolkit.data.readers import Files, read, stream
from seqcls_fast.toolkit.data.records import Layout, Table
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.stream import Stream
from support.memory import little_memory

SETTINGS = settings(
    max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
csv_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(source: Any, sentence: str, **arguments: Any) -> None:
    """Reading raises a DataError with this message, after the name of the file."""
    with pytest.raises(DataError) as caught:
        read(source, **arguments)
    name = str(source) if isinstance(source, Path) else "<data>"
    assert str(caught.value).startswith(name)
    assert str(caught.value).removeprefix(name) == sentence


def as_lists(table: Table) -> list[list[list[float]]]:
    return [series.tolist() for series in table.texts_or_series]


# -- CSV and TSV ------------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label,w\n"good, ""very""\ngood",b,1\r\n\r\n,a,0.5\nbad,b,2e0\n')
    assert read(path) == Table(['good, "very"\ngood', "", "bad"], ["b", "a", "b"], None)
    assert read(str(path), label=None).labels is None
    assert read(path, weight="w").weights == [1.0, 0.5, 2.0]
    assert read(path, text="label", label=None).texts_or_series == ["b", "a", "b"]
    assert list(stream(path))[1] == {"text": "", "label": "a", "w": "0.5"}


def test_delimiters(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\t1\n')) == Table(["a\tb"], ["1"], None)
    assert read(write(tmp_path, "a.csv", "text;label\na,b;1\n"), delimiter=";") == Table(["a,b"], ["1"], None)


@SETTINGS
@given(
    rows=st.lists(st.tuples(csv_texts, csv_texts.filter(str.strip)), min_size=1, max_size=5),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_csv_round_trip(rows: list[tuple[str, str]], delimiter: str, end: str, bom: bool) -> None:
    file = io.StringIO(newline="")
    returns = any("\r" in field for row in rows for field in row)  # csv.writer does not quote "\r"
    writer = csv.writer(
        file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    writer.writerows([("text", "label"), *rows])
    content = file.getvalue().encode("utf-8-sig" if bom else "utf-8")
    table = read(io.BytesIO(content), format="csv", delimiter=delimiter)
    assert list(zip(table.texts_or_series, table.labels or [], strict=True)) == rows
    assert read(io.StringIO(content.decode(), newline=""), format="csv", delimiter=delimiter) == table


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", ": expected at least one example but got none"),
        ("text,label\n", ": expected at least one example but got none"),
        ("\n\ntext,tag\na,b\n", ", line 3: expected a column 'label' but got 'text', 'tag'"),
        ("text;note\na;b\n", ", line 1: expected a column 'text' but got 'text;note'"),
        ("text,label,text\na,b,c\n", ", line 1: expected columns of different names but got 'text' twice"),
        ('text,label\n"a\nb",1\nc\n', ", line 4: expected 2 fields but got 1"),
        ("text,label\na,b,c\n", ", line 2: expected 2 fields but got 3"),
        ('text,label\na,1\n\n"a\n\n,1\n', ", line 4: expected CSV but got a quote that is opened and never closed"),
        ('text,label\n"a"b,1\n', ", line 2: expected CSV but got ',' expected after '\"'"),
        ("text,label\na,1\nb,\n", ", line 3: expected a label in 'label' but got nothing"),
        ("text,label\na,1\nb, \n", ", line 3: expected a label in 'label' but got nothing"),
        (
            b"text,label\r\na,1\r\n\xc3\xa9\xff,2\r\n",
            ", line 3: expected UTF-8 but got byte 0xFF at byte 19 of the file",
        ),
        ("text,label\nä,1\n".encode("latin-1"), ", line 2: expected UTF-8 but got byte 0xE4 at byte 11 of the file"),
        (
            "text,label\n".encode("utf-16"),
            ", line 1: expected UTF-8 but got byte 0xFF at byte 0 of the file (it looks like UTF-16)",
        ),
        (
            "text,label\ra,1\r",
            ", line 1: expected CSV but got a carriage return that neither ends the line nor stands in quotes",
        ),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    refused(write(tmp_path, "a.csv", content), sentence)


def test_a_message_about_tabs_is_one_line_without_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"a"b\t1\n')
    refused(path, ", line 2: expected CSV but got '\\t' expected after '\"'")


@pytest.mark.parametrize("value", ["", "x", "-1", "nan", "inf", "1e999", "1_000", "\uff11", "٣", "0x1"])
def test_bad_weights(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "a.csv", f"text,label,w\na,1,1\nb,1,{value}\n")
    refused(path, f", line 3: expected a weight in 'w', finite and at least 0, but got {value!r}", weight="w")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_ten_megabytes_in_one_line(tmp_path: Path, name: str) -> None:
    text = "wörd, " * 1_500_000
    line = f'text,label\n"{text}",1\n' if name == "a.csv" else json.dumps({"text": text, "label": "1"}) + "\n"
    assert read(write(tmp_path, name, line)) == Table([text], ["1"], None)


# -- JSONL ------------------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    content = (
        '\ufeff{"text": "a\\nb", "label": 1}\n\n{"label": true, "text": "\u2028", "w": 3}\r\n{"text": "", "label": "x"}'
    )
    path = write(tmp_path, "a.ndjson", content)
    assert read(path) == Table(["a\nb", "\u2028", ""], [1, True, "x"], None)
    assert list(stream(path))[1] == {"label": True, "text": "\u2028", "w": 3}


@SETTINGS
@given(
    rows=st.lists(st.tuples(texts, st.one_of(texts.filter(str.strip), st.integers(), st.booleans())), min_size=1),
    ascii_only=st.booleans(),
)
def test_jsonl_round_trip(rows: list[tuple[str, Any]], ascii_only: bool) -> None:
    lines = [json.dumps({"t": text, "l": label}, ensure_ascii=ascii_only) + "\n" for text, label in rows]
    table = read(io.BytesIO("".join(lines).encode()), format="jsonl", text="t", label="l")
    assert list(zip(table.texts_or_series, table.labels or [], strict=True)) == rows


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": 1,, "label": 1}', "expected JSON but got Expecting property name enclosed in double quotes at 12"),
        ('{"text": "a", "label": 1} x', "expected JSON but got Extra data at 27"),
        ('  {"text": "a", "label": 1}}', "expected JSON but got Extra data at 28"),
        ("[1]", "expected a JSON object but got a list"),
        ("null", "expected a JSON object but got null"),
        ('{"text": "a"}', "expected a column 'label' but got 'text'"),
        ("{}", "expected a column 'text' but got none"),
        ('{"text": 3, "label": 1}', "expected text in 'text' but got 3"),
        ('{"text": null, "label": 1}', "expected text in 'text' but got null"),
        ('{"text": true, "label": 1}', "expected text in 'text' but got true"),
        ('{"text": ["a"], "label": 1}', "expected text in 'text' but got a list"),
        ('{"text": "a", "label": null}', "expected a label in 'label' but got nothing"),
        ('{"text": "a", "label": ""}', "expected a label in 'label' but got nothing"),
        ('{"text": "a", "label": {}}', "expected a label in 'label', text or a number, but got an object"),
        ('{"text": "a", "label": NaN}', "expected a label in 'label', text or a number, but got nan"),
        ('{"text": "\\ud83d", "label": 1}', "expected Unicode text in 'text' but got a lone surrogate, U+D83D"),
        ('{"text": "a", "label": "\\ud83d"}', "expected Unicode text in 'label' but got a lone surrogate, U+D83D"),
    ],
)
def test_bad_jsonl(tmp_path: Path, line: str, sentence: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"text": "a", "label": 1}}\n\n{line}\n')
    refused(path, f", line 3: {sentence}")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "a", "label": ' + "1" * 5000 + "}", "\0"])
def test_odd_json_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="line 1: expected"):
        read(write(tmp_path, "a.jsonl", line))


# -- Parquet ----------------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(
        arrow.table({"text": ["a", "", "\u00e9"] * 900, "label": [1, 2, 1] * 900, "w": [1.0, 0.0, 2.0] * 900}), path
    )
    assert read(path, weight="w") == Table(["a", "", "\u00e9"] * 900, [1, 2, 1] * 900, [1.0, 0.0, 2.0] * 900)
    with path.open("rb") as file:
        assert next(stream(file)) == {"text": "a", "label": 1, "w": 1.0}
    refused(path, ": expected a column 'tag' but got 'text', 'label', 'w'", label="tag")
    refused(path, ", row 1: expected text in 'w' but got 1.0", text="w")
    parquet.write_table(arrow.table({"series": [[1.0, None], [3.0]], "label": ["a", "b"]}), path)
    assert np.array_equal(read(path, kind="series").texts_or_series[0], [[1], [math.nan]], equal_nan=True)
    for content in (b"", b"text,label", path.read_bytes()[:-20]):
        with pytest.raises(DataError, match=r"b\.parquet: expected Parquet but got"):
            read(write(tmp_path, "b.parquet", content))


def test_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for label in (arrow.array([5], arrow.time64("ns")), arrow.array([2**31 - 1], arrow.date32())):
        parquet.write_table(arrow.table({"text": ["a"], "label": label}), path)
        for reading in (read, blocks_of):
            with pytest.raises(DataError, match=r"a\.parquet: expected Parquet but got"):
                reading(path)
    parquet.write_table(arrow.Table.from_arrays([arrow.array(["a"])] * 2, ["text", "text"]), path)
    for reading in (read, blocks_of):
        with pytest.raises(DataError, match=r"a\.parquet: expected columns of different names but got 'text' twice"):
            reading(path, label=None)


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool) -> None:
    """A file of a few kilobytes with a gigabyte of text in one row group."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    schema = arrow.schema([("text", arrow.string()), ("label", arrow.string())])
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary) as writer:
        writer.write_table(arrow.table({"text": ["x" * 10_000] * 100_000, "label": ["a"] * 100_000}), 100_000)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr("seqcls_fast.toolkit.data.parquet._MOST_UNPACKED", 1 << 26)
    monkeypatch.setattr("seqcls_fast.toolkit.data.parquet._MOST_TIMES", 100)
    for reading in (read, blocks_of):
        with (
            little_memory(1 << 29),
            pytest.raises(DataError, match=r"expected at most 67108864 bytes of values in a file of \d+ bytes"),
        ):
            reading(path)


def blocks_of(path: Path, **more: Any) -> list[Table]:
    return [content.take(range(len(content))) for _, content in Files(path, Layout(**more)).blocks()]


# -- series -----------------------------------------------------------------------------------------------------------


def test_series_jsonl(tmp_path: Path) -> None:
    content = '{"series": [[1, 2], [3, null]], "label": "x"}\n{"series": [], "label": "y"}\n'
    table = read(write(tmp_path, "a.jsonl", content), kind="series")
    assert np.array_equal(table.texts_or_series[0], [[1, 2], [3, math.nan]], equal_nan=True)
    assert table.texts_or_series[1].shape == (0, 1)
    assert table.labels == ["x", "y"]
    one = '{"series": [1, NaN, 2.5], "label": 0}'
    assert np.array_equal(
        read(write(tmp_path, "b.jsonl", one), kind="series").texts_or_series[0],
        [[1], [math.nan], [2.5]],
        equal_nan=True,
    )


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        ("[[1, 2], [3]]", "series: expected 2 features as at step 0 but got 1 feature at step 1"),
        ("[1, [2]]", "series: expected a single number as at step 0 but got 1 feature at step 1"),
        ('["1"]', "series: expected numbers but got text"),
        ('[1, null, "2"]', "series: expected numbers but got '2' at step 2, feature 0"),
        ("[[1, 1e999]]", "series: expected finite values but got inf at step 0, feature 1"),
        ("[[[1]]]", "series: expected an array (steps, features) but got 3 dimensions"),
        ('"1,2"', "series: expected a list of steps but got '1,2'"),
        ("3", "series: expected a list of steps but got 3"),
        ("null", "series: expected a list of steps but got null"),
    ],
)
def test_bad_series_jsonl(tmp_path: Path, series: str, sentence: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"series": [1], "label": 1}}\n{{"series": {series}, "label": 1}}\n')
    refused(path, f", line 2: {sentence}", kind="series")


TS = """\
# a comment
@problemName Walk or run
@timeStamps false
@univariate false
@dimensions 2
@classLabel true walk run
@data
1,2,3:4, 5 ,6:walk

7,?:NaN,8.5:run
"""


def test_ts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ts", TS)
    table = read(path, kind="series")
    assert as_lists(table)[0] == [[1, 4], [2, 5], [3, 6]]
    assert np.array_equal(table.texts_or_series[1], [[7, math.nan], [math.nan, 8.5]], equal_nan=True)
    assert table.labels == ["walk", "run"]
    assert [record["label"] for record in stream(path, kind="series")] == ["walk", "run"]
    assert read(path, kind="series", label="gait").labels == ["walk", "run"]
    assert next(stream(path, kind="series", label="gait"))["gait"] == "walk"
    unlabelled = write(tmp_path, "b.ts", "@classLabel false\n@data\n1,2\n3\n")
    assert as_lists(read(unlabelled, kind="series", label=None)) == [[[1], [2]], [[3]]]
    capital = write(tmp_path, "c.ts", "@CLASSLABEL TRUE\n@DATA\n1,2:z\n")
    assert read(capital, kind="series").labels == ["z"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("@data\n", "", ", line 7: expected a line that begins with @ before @data but got '1,2,3:4, 5 ,6:walk'"),
        (TS[TS.index("@data") :], "", ": expected @data before the end of the file but got none"),
        (TS[TS.index("1,2,3") :], "", ": expected at least one example but got none"),
        (TS, "", ": expected at least one example but got none"),
        ("Stamps false", "Stamps true", ", line 7: expected values without time stamps but got @timeStamps true"),
        ("Label true", "Label false", ", line 7: expected @classLabel true before it but got no labels"),
        (
            "@classLabel true walk run",
            "@targetLabel true",
            ", line 7: expected class labels but got @targetLabel true, which is for regression",
        ),
        ("@dimensions 2", "@dimensions two", ", line 7: expected a number in @dimensions but got two"),
        ("@dimensions 2", "@dimensions ٢", ", line 7: expected a number in @dimensions but got ٢"),
        ("@dimensions 2", "@dimensions 1_0", ", line 7: expected a number in @dimensions but got 1_0"),
        ("@dimensions 2", "@dimensions -2", ", line 7: expected a number in @dimensions but got -2"),
        ("@dimensions 2", "@dimensions 2 2", ", line 7: expected a number in @dimensions but got 2 2"),
        ("@dimensions 2", "@dimensions", ", line 7: expected a number in @dimensions but got none"),
        ("@dimensions 2", "@dimensions 999999999", ", line 8: expected 999999999 dimensions but got 2"),
        ("@dimensions 2", "@dimensions 3", ", line 8: expected 3 dimensions but got 2"),
        ("7,?:", "", ", line 10: expected 2 dimensions but got 1"),
        ("7,?", "7", ", line 10: expected 1 steps in dimension 1, as in the first, but got 2"),
        ("8.5", "x", ", line 10: expected a number or ? but got 'x'"),
        ("8.5", "1_000", ", line 10: expected a number or ? but got '1_000'"),
        ("8.5", "\uff18", ", line 10: expected a number or ? but got '\uff18'"),
        ("8.5", "1e999", ", line 10: series: expected finite values but got inf at step 1, feature 1"),
        ("8.5", "inf", ", line 10: series: expected finite values but got inf at step 1, feature 1"),
        (":run", ":fly", ", line 10: expected one of the class labels walk, run but got 'fly'"),
        (":run", ":", ", line 10: expected a label in 'label' but got nothing"),
    ],
)  # fmt: skip
def test_bad_ts(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert TS.count(old) == 1
    refused(write(tmp_path, "a.ts", TS.replace(old, new)), sentence, kind="series")


LONG = {
    "@dimensions of 5,000 digits": ("a.ts", TS.replace("@dimensions 2", "@dimensions " + "2" * 5000)),
    "@dimensions of many numbers": ("a.ts", TS.replace("@dimensions 2", "@dimensions" + " 2" * 5000)),
    "@dimensions that moves the cursor": ("a.ts", TS.replace("@dimensions 2", "@dimensions \x1b[2J")),
    "a value of 5,000 digits": ("a.ts", TS.replace("8.5", "8" * 5000)),
    "a long value": ("a.ts", TS.replace("8.5", "x" * 5000)),
    "many class labels": ("a.ts", TS.replace("walk run", " ".join(f"label{i}" for i in range(5000)))),
    "a label of 5,000 digits": ("a.jsonl", '{"series": [1], "label": ' + "7" * 5000 + "}"),
    "a step of 5,000 digits": ("a.jsonl", '{"series": [' + "7" * 5000 + '], "label": 1}'),
    "a step of 4,000 digits": ("a.jsonl", '{"series": [' + "7" * 4000 + '], "label": 1}'),
    "a step that no float holds": ("a.jsonl", '{"series": [1e999], "label": 1}'),
    "a step as text": ("a.jsonl", '{"series": ["1_000"], "label": 1}'),
    "a step as long text": ("a.jsonl", '{"series": [1, null, "' + "7" * 5000 + '"], "label": 1}'),
    "an infinite label": ("a.jsonl", '{"series": [1], "label": 1e999}'),
    "lists in lists": ("a.jsonl", '{"series": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "lists in some lists": ("a.jsonl", '{"series": ' + "[" * 500 + "]" * 500 + ', "label": 1}'),
    "other columns": ("a.jsonl", json.dumps({f"column\x1b[2J{i}": i for i in range(5000)})),
    "a long column": ("a.jsonl", json.dumps({"c" * 5000: 1})),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_a_short_sentence_about_what_is_long(tmp_path: Path, name: str) -> None:
    file, content = LONG[name]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, file, content), kind="series")
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [",".join(f"c{i}" for i in range(5000)), "c" * 5000, "\x1b[2J", ",".join("aa" * 9)])
def test_a_short_sentence_about_columns(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, "a\x1b[2J.csv", content + "\n1\n"))
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_texts_and_labels_are_no_numbers(tmp_path: Path) -> None:
    """Names may have underscores and digits of other scripts, though numbers may not."""
    path = write(tmp_path, "a.jsonl", '{"text": "1_000 ٣", "label": "1_000", "w": "2.5e0"}\n')
    assert read(path, weight="w") == Table(["1_000 ٣"], ["1_000"], [2.5])


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_new_format_is_one_class_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Colons(LineReader):
        endings = (".colons",)

        def rows(self, lines: Lines) -> Iterator[tuple[int, Any]]:
            for line in lines:
                label, _, text = line.rstrip("\n").partition(": ")
                yield lines.number, {"text": text, "label": label}

    monkeypatch.setitem(FORMATS, "colons", Colons)
    path = write(tmp_path, "a.colons", "1: good film\n0: bad\n1: \n")
    table = Table(["good film", "bad", ""], ["1", "0", "1"], None)
    assert read(path) == read(tmp_path) == read(io.BytesIO(path.read_bytes()), format="colons") == table
    data, encoder = Stream(tmp_path), TextEncoder()
    assert data.survey(encoder).labels == {"1": 2, "0": 1}
    (batch,) = data.epoch(encoder, 3, seed=0, epoch=0, workers=0)
    assert sorted(zip(batch.sequences.lengths.tolist(), batch.targets.tolist(), strict=True)) == [
        (0, 1),
        (1, 0),
        (2, 1),
    ]
    refused(write(tmp_path, "b.colons", ": good\n"), ", line 1: expected a label in 'label' but got nothing")
    with pytest.raises(ValueError, match="delimiter: expected None for colons but got ';'"):
        read(path, delimiter=";")


def test_lines_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\ufeffone\r\n\n two \nthree")
    assert read(path, label=None).texts_or_series == ["one", "", " two ", "three"]
    with pytest.raises(ValueError, match=r"^label and weight: expected None for txt"):
        read(path)


@pytest.mark.parametrize("content", ["", "\n", "text,label\n"])
def test_streams_may_be_empty(content: str) -> None:
    assert list(stream(io.StringIO(content), format="csv")) == []
    assert list(stream(io.BytesIO(b""), format="jsonl")) == []


def test_streams_read_no_further_than_asked() -> None:
    def lines() -> Iterator[bytes]:
        yield b'{"text": "a"}\n'
        raise AssertionError("read too far")

    assert next(stream(lines(), format="jsonl")) == {"text": "a"}  # type: ignore[arg-type]


def test_files_of_the_caller_stay_open() -> None:
    file = io.BytesIO(b"text\na\n")
    assert list(stream(file, format="csv")) == [{"text": "a"}]
    assert not file.closed
    wrapped = io.TextIOWrapper(io.BytesIO(b"text\n\xff\n"), "latin-1")
    with pytest.raises(DataError, match="line 2: expected UTF-8"):
        list(stream(wrapped, format="csv"))


def test_memory_stays_constant(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        file.writelines(f"{'word ' * 20},{i}\n" for i in range(50_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream(path, label="label")) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes; the file has 5 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path_or_file": "a.dat"}, "path: expected a name that ends in one of .csv, .* but got 'a.dat'"),
        ({"path_or_file": io.BytesIO()}, "path: expected a name that ends in one of .* but got '<data>'"),
        ({"path_or_file": "a", "format": "xml"}, "format: expected one of csv, tsv, .* but got 'xml'"),
        (
            {"path_or_file": "a.csv", "kind": "series"},
            "format: expected one of jsonl, parquet, ts for kind='series' .*",
        ),
        ({"path_or_file": "a.ts"}, "format: expected one of csv, .* for kind='text' but got ts"),
        ({"path_or_file": "a.csv", "kind": "audio"}, "kind: expected text or series but got 'audio'"),
        ({"path_or_file": "a.csv", "delimiter": "||"}, "delimiter: expected one character but got .*"),
        ({"path_or_file": "a.csv", "delimiter": '"'}, "delimiter: expected one character but got .*"),
        ({"path_or_file": "a.tsv", "delimiter": ","}, "delimiter: expected None for tsv but got ','"),
        ({"path_or_file": "a.ts", "kind": "series", "weight": "w"}, "weight: expected None for ts, .* but got 'w'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    """Errors are raised before the first record is asked for."""
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        stream(**arguments)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.ts"):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name, kind="series" if name.endswith("ts") else "text")


def test_folders(tmp_path: Path) -> None:
    """A folder means all files of known formats below it, in the order of their paths, without hidden ones."""
    (tmp_path / "folder.csv" / "b").mkdir(parents=True)
    (tmp_path / "folder.csv" / "_old").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: expected a folder with files that end in one of \.csv, .* none"):
        read(tmp_path / "folder.csv")
    write(tmp_path / "folder.csv", "z.csv", "text,label\nlast,1\n")
    write(tmp_path / "folder.csv" / "b", "a.jsonl", '{"text": "first", "label": "2", "other": 3}\n')
    write(tmp_path / "folder.csv" / "b", "empty.csv", "")
    for ignored in (".a.csv", "_a.csv", "a.dat", "_old/a.csv"):
        write(tmp_path / "folder.csv", ignored, "not read")
    notes = write(tmp_path / "folder.csv", "notes.txt", "a text\n")
    assert read(tmp_path / "folder.csv") == Table(["first", "last"], ["2", "1"], None)
    assert next(stream(str(tmp_path / "folder.csv"), label="label"))["other"] == 3
    assert read(tmp_path / "folder.csv", label=None).texts_or_series == ["first", "a text", "last"]
    assert read(notes, label=None).texts_or_series == ["a text"]
    with pytest.raises(DataError, match=r"a\.dat, line 1: expected JSON"):
        read(tmp_path / "folder.csv", format="jsonl")


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    assert read(write(tmp_path, "A.CSV", "text,label\na,1\n")).labels == ["1"]
