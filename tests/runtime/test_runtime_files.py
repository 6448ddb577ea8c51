"""Files that to_runtime() did not write: each is refused with a sentence, and nothing crashes."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import PLAIN_SERIES, Model, Refused

import seqcls_fast as sf
from seqcls_fast.export import to_runtime

AT = 8 + len('{"__metadata__":{"crc32":"')


def content_of(module: Any, tmp_path: Path, dtype: str = "float32") -> bytes:
    to_runtime(module, tmp_path / "model.sfm", dtype)
    return (tmp_path / "model.sfm").read_bytes()


def sealed(content: bytes) -> bytes:
    """The same with the checksum that belongs to it."""
    blank = content[:AT] + b"0" * 8 + content[AT + 8 :]
    return content[:AT] + b"%08x" % zlib.crc32(blank) + content[AT + 8 :]


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return sealed(len(text).to_bytes(8, "little") + text + data)


def refusal(content: bytes) -> str:
    with pytest.raises(Refused) as error:
        Model(content)
    return str(error.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, words in {tmp_path / "none": "No such file", tmp_path: "it is not a regular file"}.items():
        with pytest.raises(Refused, match=f"no file: path: expected a file that can be read, but '.*{words}"):
            Model(path)
    (tmp_path / "empty").touch()
    with pytest.raises(Refused, match="bad file: file: expected one that"):
        Model(tmp_path / "empty")


def test_an_unknown_instruction_set(tmp_path: Path) -> None:
    content_of(sf.GRU(2, 3), tmp_path)
    with pytest.raises(Refused, match=r"bad argument: isa: expected one of auto, base.* but got 'sse9'"):
        Model(tmp_path / "model.sfm", "sse9")


def test_every_truncation_and_every_changed_byte(tmp_path: Path) -> None:
    content = content_of(sf.GRU(2, 3), tmp_path)
    for length in range(0, len(content), 7):
        assert "bad file: file: expected" in refusal(content[:length])
    rng = random.Random(0)
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= rng.randrange(1, 256)
        assert "bad file: file: expected" in refusal(bytes(changed))
    assert "bad file: file: expected" in refusal(content + b"\0")


def about(header: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    description = json.loads(header["__metadata__"]["model"])
    change(description)
    header["__metadata__"]["model"] = json.dumps(description)


def test_a_later_version(tmp_path: Path) -> None:
    header, data = header_of(content_of(sf.GRU(2, 3), tmp_path))
    header["__metadata__"]["version"] = "2"
    words = "unknown part: file: expected version 1, which this library reads, but got version '2'"
    assert refusal(joined(header, data)) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(wide={}), "unknown part: model: this library does not know the part 'wide'; a later"),
        (lambda d: d["encoder"].update(x=1), "unknown part: model.encoder: this library does not know the part 'x'"),
        (lambda d: d.pop("encoder"), "bad file: model: expected the part 'encoder' but got none"),
        (lambda d: d["encoder"].update(cell="sru"), "unknown part: model.encoder.cell: expected one of .* 'sru'"),
        (lambda d: d["encoder"].update(hidden=4), "bad file: file: tensor 'encoder.weight_ih_l0': expected F32"),
        (lambda d: d["encoder"].update(hidden=2**40), "hidden: expected a whole number from 1 to 65536 but got 1099"),
        (lambda d: d["encoder"].update(hidden=2.5), "hidden: expected a whole number from 1 to 65536 but got 2.5"),
        (lambda d: d["encoder"].update(layers=0), "layers: expected a whole number from 1 to 1024 but got 0"),
        (lambda d: d["encoder"].update(layers=2), "file: expected a tensor 'encoder.weight_ih_l1' but got none"),
        (lambda d: d["encoder"].update(bias=False), "unknown part: file: expected no tensor 'encoder.bias_hh_l0'"),
        (lambda d: d["encoder"].update(bias=1), "bias: expected true or false but got 1"),
        (lambda d: d["encoder"].update(zoneout=[0.1, 0.1]), "zoneout: expected a number from 0 to 0 but got 0.1"),
        (lambda d: d["encoder"].update(projection=1), "projection: expected 0 for the cell gru but got 1"),
        (lambda d: d["encoder"].update(inputs=3), "inputs: expected 2, the features of the input, but got 3"),
        (lambda d: d.update(dtype="float16"), "unknown part: model.dtype: expected one of float32, bfloat16"),
        (lambda d: d["encoder"].update(cell=1), "bad file: model.encoder.cell: expected a string but got 1"),
        (lambda d: d.update(dtype="bfloat16"), "tensor 'encoder.weight_ih_l0': expected BF16"),
        (lambda d: d.update(pooling="last"), "expected both pooling and head, or neither, but got pooling"),
        (lambda d: d.update(labels=[1]), "expected a head with labels and a decision but got none"),
        (lambda d: d.update(input={}), "expected either features or a vocabulary but got none"),
        (lambda d: d.update(input={"features": 2, "vocabulary": 2}), "either features or a vocabulary but got both"),
        (lambda d: d.update(input=[]), "model.input: expected an object"),
    ],
)
def test_descriptions(change: Any, words: str, tmp_path: Path) -> None:
    header, data = header_of(content_of(sf.GRU(2, 3), tmp_path))
    about(header, change)
    assert re.search(words, refusal(joined(header, data)))


def test_tensors(tmp_path: Path) -> None:
    content = content_of(sf.GRU(2, 3), tmp_path)
    name = "encoder.weight_ih_l0"

    def changed(**entry: Any) -> str:
        header, data = header_of(content)
        header[name] = header[name] | entry
        return refusal(joined(header, data))

    end = header_of(content)[0][name]["data_offsets"][1]
    assert "'encoder.weight_ih_l0': expected 72 bytes, as its shape says, but got 71" in changed(
        data_offsets=[0, end - 1]
    )
    assert "data_offsets: expected a whole number from 0 to" in changed(data_offsets=[-4, end])
    assert "truncated or changed" in changed(shape=[2**39, 2**39])
    assert "size: expected a whole number from 0 to 1099511627776 but got -1" in changed(shape=[-1])
    assert "expected two data_offsets but got 3" in changed(data_offsets=[0, 1, 2])
    assert re.search("unknown part: .*dtype: expected one of F32, BF16, U8 but got 'F64'", changed(dtype="F64"))
    assert "expected a tensor of safetensors" in changed(more=1)
    header, data = header_of(content)
    header[name]["data_offsets"], header["encoder.weight_hh_l0"]["data_offsets"] = [0, 72], [0, 108]
    assert "expected tensors one after another but got one at byte 0 instead of" in refusal(joined(header, data))
    header, data = header_of(content)
    header["more"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    assert "unknown part: file: expected no tensor 'more'" in refusal(joined(header, data + b"1234"))
    header, data = header_of(content)
    assert "truncated or changed" in refusal(joined(header, data + b"1234"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite(value: float, dtype: str, tmp_path: Path) -> None:
    module = sf.GRU(2, 3)
    header, data = header_of(content_of(module, tmp_path, dtype))
    kind = getattr(torch, dtype)
    values = torch.frombuffer(bytearray(data), dtype=kind).clone()
    values[-1] = value
    assert "expected finite weights but got one that is not" in refusal(
        joined(header, values.view(torch.uint8).numpy().tobytes())
    )
    with torch.no_grad():
        module.bias_hh_l0[0] = value
    with pytest.raises(ValueError, match=f"bias_hh_l0: expected weights that are finite in {dtype} but got others"):
        to_runtime(module, tmp_path / "other.sfm", dtype)


JSON = [
    b"", b"{", b"[", b'{"a" 1}', b'{"a":1,}', b'{"a":01}', b'{"a":1.}', b'{"a":+1}', b'{"a":1e}', b'{"a":NaN}',
    b'{"a":"\x01"}', b'{"a":"\\x"}', b'{"a":"\\ud800"}', b'{"a":"\\udc00"}', b'{"a":"\xff"}', b'{"a":"\xc0\x80"}',
    b'{"a":"\xed\xa0\x80"}', b'{"a":1e999}', b"[" * 99,
    b'{"a":1}x', b'{"a":tru}', b'{"a":1,"a":2}', b"{'a':1}", b'{"a":"', b'{"a":"\\u12"}',
    b'{"a":"\xf4\x90\x80\x80"}', b'{"a":-}', b"[1 2]",
]  # fmt: skip


@pytest.mark.parametrize("text", JSON)
def test_json_is_read_strictly(text: bytes, tmp_path: Path) -> None:
    """As a value within the header, so that the file begins as it must."""
    header, data = header_of(content_of(sf.GRU(2, 3), tmp_path))
    whole = json.dumps(header, separators=(",", ":")).encode()
    for broken in (whole[:-1] + b',"x":' + text + b"}", whole[:-1] + text):
        content = sealed(len(broken).to_bytes(8, "little") + broken + data)
        assert "bad file: file: expected" in refusal(content)


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    content = content_of(sf.GRU(2, 3), tmp_path)
    long = (1 << 21).to_bytes(8, "little") + content[8:] + b" " * (1 << 22)
    assert "expected a header of at most 1048576 bytes but got 2097152" in refusal(sealed(long))
    assert "truncated or changed" in refusal(sealed((1 << 63).to_bytes(8, "little") + content[8:]))


def test_unknown_names_of_classifiers(tmp_path: Path) -> None:
    header, data = header_of(content_of(sf.SequenceClassifier(2, 3, 2), tmp_path))
    about(header, lambda d: d.update(pooling="sum"))
    assert refusal(joined(header, data)).startswith("unknown part: model.pooling: expected one of last, mean")
    header, data = header_of(content_of(sf.SequenceClassifier(2, 3, 2), tmp_path))
    series = {"standardize": True, "missing": "median", "max_length": None, "mean": [0, 0], "scale": [1, 1]}
    about(header, lambda d: d.update(series=series))
    assert refusal(joined(header, data)).startswith("unknown part: model.series.missing: expected one of error, zero")


def test_weights_are_looked_at_once_no_byte_is_in_two_tensors(tmp_path: Path) -> None:
    """Otherwise many tensors that span all data would have all of them read as many times."""
    header, data = header_of(content_of(sf.GRU(2, 3), tmp_path))
    for k in range(3):
        header[f"more{k}"] = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}
    assert "expected tensors one after another" in refusal(joined(header, b"\xff" * len(data)))


def test_a_header_that_the_runtime_would_not_read_is_not_written(tmp_path: Path) -> None:
    estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, **PLAIN_SERIES)
    estimator.fit(np.random.default_rng(0).normal(size=(8, 3, 1)), [k % 2 for k in range(8)])
    estimator.fitted_.encoder._mean = np.full(60_000, 1 / 3)
    with pytest.raises(ValueError, match=r"model: expected a description of at most 1048576 bytes.* but got 1\d{6}"):
        to_runtime(estimator, tmp_path / "model.sfm")
    assert not (tmp_path / "model.sfm").exists()


def test_every_python_model_is_refused_or_written(tmp_path: Path) -> None:
    for model, words in {
        torch.nn.Linear(
            2, 3
        ): "expected an RNN, GRU or LSTM, a SequenceClassifier or a fitted classifier but got Linear",
        sf.GRUCell(2, 3): "expected a layer, whose steps the runtime can run, but got GRUCell",
    }.items():
        with pytest.raises(TypeError, match=words):
            to_runtime(model, tmp_path / "model.sfm")
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16 but got 'int8'"):
        to_runtime(sf.GRU(2, 3), tmp_path / "model.sfm", "int8")
    with pytest.raises(Exception, match="fit"):
        to_runtime(sf.TextClassifier(), tmp_path / "model.sfm")
    assert not (tmp_path / "model.sfm").exists()


def test_layers_of_torch(tmp_path: Path) -> None:
    module = torch.nn.LSTM(3, 5, batch_first=True)
    to_runtime(module, tmp_path / "model.sfm")
    x = torch.randn(1, 4, 3)
    with torch.no_grad():
        np.testing.assert_allclose(
            Model(tmp_path / "model.sfm").stream().run(x.numpy())["out"], module(x)[0].numpy(), atol=1e-6
        )


def test_the_file_is_one_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = sf.GRU(2, 3)
    found = safetensors.load(content_of(module, tmp_path))
    assert {name.removeprefix("encoder."): tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in module.state_dict().items()
    }
