"""Seeds and changes for `make fuzz-files`: valid files of each kind, and changes that know the kind's structure.

atheris changes bytes by itself, guided by coverage. That seldom leads through JSON, a header with lengths or Parquet:
half of the changes are made here, where a value of a JSON text is replaced, a line moved, a table made of other types.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from file_targets import DATA, FILE, joined

import seqcls_fast as sf
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.evaluation.decision import DecisionThreshold
from support.corpora import waves
from support.interruptions import small
from support.nonsense import GONE, NONSENSE, places, put

Change = Callable[[bytes, random.Random], bytes]

# ---- Valid files


def _series_ts(dimensions: int) -> bytes:
    head = f"# words\n@problemName x\n@dimensions {dimensions}\n@classLabel true a b\n@data\n"
    row = ":".join(["1.5,?,-2e3"] * dimensions)
    return f"{head}{row}:a\n{row}:b\n".encode()


def _model(kind: str, **more: Any) -> bytes:
    """A small saved model as one input, with checksums for the target to put in."""
    data = (DATA[0][:20], DATA[1][:20]) if kind == "text" else waves(count=20)
    parameters = {"hidden_size": 2, "epochs": 1} | ({"embedding_dim": 2, "max_vocab": 12} if kind == "text" else {})
    estimator: Any = {"text": sf.TextClassifier, "series": sf.SeriesClassifier}[kind](**parameters, **more)
    estimator.fit(*data, validation=0.3)
    if kind == "text":
        estimator.temperature_, estimator.threshold_ = 1.5, DecisionThreshold("pos", 0.5, "recall", 0.9, 0.5, 1.0, 40)
    command = {
        "command": "seqcls-fast train x.csv", "settings": {"data": "x.csv"}, "sha256": {"x.csv": "0"}, "rows": 20,
        "split": {"share": 0.3, "seed": 0, "rows": 6}, "ranks": 1, "threads": 1, "resumed": False, "device": "cpu",
        "versions": {"seqcls_fast": "0.1.0"},
    }  # fmt: skip
    table = {"metric": "val_loss", "seed": 0, "saved": 1, "trials": [{"trial": 1, "settings": {"dropout": 0.1}}]}
    estimator.extra_ = {store.COMMAND: command, store.SEARCH: table}
    with tempfile.TemporaryDirectory() as folder:
        estimator.save(Path(folder, "model"))
        parts = {path.name: path.read_bytes() for path in Path(folder, "model").iterdir()}
    config = json.loads(parts[store.CONFIG]) | {"sha256": "?"}
    config["encoder"] = _unsealed(config["encoder"])
    parts[store.CONFIG] = json.dumps(config).encode()
    parts[store.WEIGHTS] = _lined(parts[store.WEIGHTS])
    return joined({name: parts[name] for name in (store.CONFIG, store.WEIGHTS, *store.EXTRA)})


def _unsealed(text: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(text).items() if name != "sha256"}


def _lined(weights: bytes) -> bytes:
    """Weights with their header as a line of JSON, without its length."""
    length = struct.unpack("<Q", weights[:8])[0]
    return weights[8 : 8 + length].rstrip() + b"\n" + weights[8 + length :]


def _checkpoints(epochs: int) -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small(folder, on_nan="restore", epochs=2).fit(
            *DATA, validation=0.3, stop=lambda history: len(history) == epochs
        )
        found = []
        for path in sorted(folder.glob("*.safetensors")):
            header, values = _lined(path.read_bytes()).split(b"\n", 1)
            content = json.loads(header)
            content["__metadata__"]["checkpoint"] = json.loads(content["__metadata__"]["checkpoint"])
            found.append(json.dumps(content).encode() + b"\n" + values)
        return found


def _encoders() -> list[bytes]:
    texts = [sf.TextClassifier._inputs.encoder_type(kind, max_vocab=270) for kind in ("word", "char", "bpe")]
    fitted = [encoder.fit(DATA[0]) for encoder in texts]
    fitted += [sf.SeriesClassifier._inputs.encoder_type(missing=m).fit([[[1.0, 2.0]]]) for m in ("mask", "forward")]
    return [json.dumps(_unsealed(encoder.to_json())).encode() for encoder in fitted] + [fitted[0].to_json().encode()]


def seeds_of(target: str) -> list[bytes]:
    if target == "csv":
        return [
            b'text,label,weight\n"good, ""very""\ngood",1,0.5\r\nbad,0,2\n\n', b"text;x\na;b\n",
            "text\tlabel\tweight\nol\u00e9\t1\t1e-3\n\u4e2d\t0\t0\n".encode(), b"\xef\xbb\xbftext,label\na,b\n",
            b"text,label\n" + b"a,b\n" * 300,
        ]  # fmt: skip
    if target == "jsonl":
        return [
            b'{"text": "good", "label": 1, "weight": 0.5}\n\n {"text": "\\ud83d\\ude00", "label": "x", "weight": 1} \n',
            b'{"series": [[1, 2.5], [NaN, -Infinity]], "label": true}\n{"series": [1, null, 3], "label": 0}\n',
            b'{"series": [1, null, 1e400], "label": "a"}\n', b'{"text": "a", "label": 0.5, "weight": "2"}\n' * 260,
        ]  # fmt: skip
    if target == "ts":
        return [
            _series_ts(1),
            _series_ts(2),
            b"@classLabel false\n@data\n1,2\n3\n",
            b"@timeStamps true\n@data\n(1,2)\n",
        ]
    if target == "parquet":
        return [new_table(b"", random.Random(number)) for number in range(20)]
    if target == "encoder":
        return _encoders()
    if target == "store":
        weighted = _model("text", tokenizer="char", class_weight={"neg": 1.0, "pos": 2.0})
        return [_model("text"), _model("series", pooling="attention", cell="lstm"), weighted]
    if target == "checkpoint":
        return [*_checkpoints(1), _checkpoints(2)[-1]]
    assert target == "options"
    first = _model("text").split(FILE + store.WEIGHTS.encode())[0].partition(b"\n")[2]
    settings = {"data": "x.csv", "kind": "text", "text": "a", "label": "b", "weight": None, "input_format": "csv"}
    settings |= {"epochs": 3, "class_weight": {"a": 1.5}, "validation_share": 0.2, "stream": False, "delimiter": ";"}
    return [first, json.dumps(settings).encode(), json.dumps({"settings": settings, "command": "x"}).encode()]


# ---- Changes


def changed_json(text: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, copies or renames values of a JSON text; other text stays as it is."""
    try:
        whole = [json.loads(text)]
    except (ValueError, RecursionError):
        return text
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        every = list(places(whole[0], 0)) or [(0,)]
        place, value = rng.choice(every), rng.choice(NONSENSE)
        how = rng.random()
        if how < 0.35:  # a value from elsewhere in the same text
            value = _at(whole, rng.choice(every))
        elif how < 0.6:
            value = _near(_at(whole, place), rng)
        if value is GONE and place == (0,):
            continue
        if how > 0.9 and isinstance(_at(whole, place), dict):
            value = _at(whole, place) | {rng.choice(("x", "", "format", "label", "\x00")): rng.choice(NONSENSE[:-1])}
        put(*place, to=value if value is GONE else copy.deepcopy(value))(whole)
    return json.dumps(whole[0], ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        content = content[name]
    return content


def _near(value: Any, rng: random.Random) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, 2**31, 2**62, 2**63, 2**64))
    if isinstance(value, float):
        return rng.choice((value * 2, -value, 0.0, 1e-320, 1e300, -1e300, 3.5e38, 1.0))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return rng.choice((value[:cut], value + value, value[:cut] + "\u202e" + value[cut:], value.upper()))
    if isinstance(value, list):
        return rng.choice((value + value, value[: len(value) // 2], value[::-1], [value], [*value, 0]))
    return {"inner": value}


def changed_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(7)
    if how == 0:
        lines.insert(at, lines[other])
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 3:
        lines[at] += b"\r"
    else:
        words = re.split(rb"([,;\t: ])", lines[at])
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        lines[at] = b"".join(words)
    return b"\n".join(lines)


WORDS = (
    b"", b'"', b'""', b'"a', b'a"b', b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"1e400",
    b"nan", b"inf", b"1_0", b"\xd9\xa1", b"9" * 500, b"text", b"label", b"weight", b"series", b"@data",
    b"@dimensions 2", b"?", b"true", b"false", b"#", b"@classLabel true", b"@timeStamps true",
    b"@dimensions 999999999", b" ", b"-1", b"x" * 2000,
)  # fmt: skip


def json_spans(target: str, data: bytes) -> list[tuple[int, int]]:
    """Where the JSON texts of an input are."""
    if target in ("encoder", "options"):
        return [(0, len(data))]
    if target == "checkpoint":
        return [(0, data.find(b"\n"))] if b"\n" in data else []
    found, start = [], 0
    for line in data.split(b"\n")[: 40 if target == "store" else None]:
        if line[:1] == b"{" or target == "jsonl":
            found.append((start, start + len(line)))
        start += len(line) + 1
    return found


def changed(target: str, data: bytes, rng: random.Random) -> bytes | None:
    """A change that knows the target's structure; None where only a change of bytes makes sense."""
    if target == "parquet":
        return new_table(data, rng) if rng.random() < 0.3 else None
    if target in ("csv", "ts") or (target == "jsonl" and rng.random() < 0.3):
        return changed_line(data, rng)
    spans = json_spans(target, data)
    if not spans:
        return None
    start, end = rng.choice(spans)
    return data[:start] + changed_json(data[start:end], rng) + data[end:]


# ---- Parquet

TYPES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (pa.string(), ("a", "", None, "\u4e2d", "x" * 500)), (pa.large_string(), ("b", "\0")),
    (pa.string_view(), ("c", "d" * 30)), (pa.binary(), (b"\xff", b"a")),
    (pa.int64(), (1, -(2**63), None)), (pa.uint64(), (2**64 - 1, 0)), (pa.int8(), (1, 2)),
    (pa.float64(), (0.5, float("nan"), float("inf"), None)), (pa.float16(), (0.5, 1.0)), (pa.float32(), (0.5, 1e-30)),
    (pa.bool_(), (True, None)), (pa.null(), (None,)), (pa.list_(pa.float64()), ([1.0, None], [], None, [float("inf")])),
    (pa.list_(pa.list_(pa.float32())), ([[1.0, 2.0], [3.0, 4.0]], [[]], [], None, [[1.0], [2.0, 3.0]], [None])),
    (pa.list_(pa.list_(pa.list_(pa.int8()))), ([[[1]]],)), (pa.large_list(pa.int32()), ([1, 2], [3])),
    (pa.list_(pa.float64(), 2), ([1.0, 2.0], None)), (pa.list_(pa.list_(pa.float64(), 2)), ([[1.0, 2.0]], [])),
    (pa.list_(pa.string()), (["a"], [])), (pa.list_(pa.bool_()), ([True, False],)), (pa.decimal128(30, 5), (None,)),
    (pa.list_(pa.decimal128(9, 2)), ([], None)), (pa.timestamp("ns"), (2**62, 0)), (pa.date32(), (1, -(2**31))),
    (pa.list_(pa.timestamp("us")), ([0, 2**62],)), (pa.duration("s"), (5,)), (pa.time64("ns"), (5, 10**13)),
    (pa.struct([("a", pa.int8())]), ({"a": 1}, None)), (pa.map_(pa.string(), pa.int8()), ([("a", 1)],)),
    (pa.dictionary(pa.int8(), pa.string()), ("a", None)), (pa.list_(pa.dictionary(pa.int8(), pa.string())), (["a"],)),
)  # fmt: skip


def new_table(data: bytes, rng: random.Random) -> bytes:
    """A table with the columns that are read, of random types, written with random options."""
    rows = rng.choice((0, 1, 3, 40, 300))
    names = [name for name in ("text", "series", "label", "weight") if rng.random() < 0.85]
    names += rng.choice(([], [], ["text"], [""]))
    fields, columns = [], []
    for name in names:
        slices = {"text": (0, 3), "label": (0, 9), "weight": (4, 10), "series": (12, 18)}
        fitting = TYPES[slice(*slices[name])] if name in slices else TYPES
        type, values = rng.choice(fitting if rng.random() < 0.6 else TYPES)
        plain = values if rng.random() < 0.5 else values[:1]
        fields.append(pa.field(name, type))
        columns.append(pa.array([rng.choice(plain) for _ in range(rows)], type))
    file = io.BytesIO()
    try:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=pa.schema(fields)), file, row_group_size=rng.choice((1, 7, 1000)),
            compression=rng.choice(("none", "snappy", "gzip", "zstd", "lz4")), use_dictionary=rng.random() < 0.5,
            data_page_version=rng.choice(("1.0", "2.0")), write_statistics=rng.random() < 0.5,
            store_schema=rng.random() < 0.7,
        )  # fmt: skip
    except (pa.ArrowException, NotImplementedError):
        return data
    return file.getvalue()
