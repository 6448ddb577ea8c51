"""The file of the runtime: its layout, and how a fitted classifier is described in it. It needs numpy alone.

The file is in the layout of safetensors, with a description of the model as JSON beside the tensors, which have the
names of the module's ``state_dict()``. Its checksum has a fixed place in the header, so that it can cover all of the
file. What a file may hold, and what is refused, is decided in csrc/runtime/description.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os

__all__ = ["Tensors", "add_classifier", "packed_file", "tensor_of"]

Tensors = dict[str, np.ndarray]  # float32, bfloat16 as its bits in uint16, or bytes

VERSION = 1
_NAMES = {"f4": "F32", "u2": "BF16", "u1": "U8"}
_START = b'{"__metadata__":{"crc32":"'  # the eight digits of the checksum follow
_ALIGN = 64  # bytes; where the tensors begin
_MOST_HEADER = 1 << 20  # bytes, which csrc/runtime/tensor_file.cpp reads
_END = b"\xff"  # behind each token
_SERIES = ("standardize", "missing", "max_length")
_LATER = {"normalize": "data", "differences": False, "time": False}  # which models that were saved before do not have


def packed_file(about: Mapping[str, Any], tensors: Tensors) -> bytes:
    """The bytes of a file."""
    import zlib

    metadata = {"crc32": "0" * 8, "format": "seqcls-fast", "version": str(VERSION), "model": json.dumps(about)}
    header: dict[str, Any] = {"__metadata__": metadata}
    data, end = [], 0
    for name in sorted(tensors, key=lambda name: -tensors[name].itemsize):  # so that each is aligned to its size
        tensor = np.asarray(tensors[name], order="C")
        begin, end = end, end + tensor.nbytes
        kind = _NAMES[tensor.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        data.append(tensor.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"model: expected a description of at most {_MOST_HEADER} bytes, with the labels of all classes and what "
            f"scales each feature, but got {len(text)}"
        )
    assert text.startswith(_START)
    start = len(text).to_bytes(8, "little") + text
    checksum = zlib.crc32(start)
    for piece in data:
        checksum = zlib.crc32(piece, checksum)
    at = 8 + len(_START)
    return b"".join([start[:at], b"%08x" % checksum, start[at + 8 :], *data])


def tensor_of(path: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a tensor of a file that the library has opened, and so has checked."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + begin)
        return file.read(end - begin)


def add_classifier(about: dict[str, Any], tensors: Tensors, saved: Mapping[str, Any]) -> None:
    """Adds to a network's description and tensors what a fitted classifier has besides.

    ``saved`` is the content of config.json, which save() writes, or has the same values under these names.
    """
    labels, threshold = saved["classes"], saved.get("threshold")
    found = None if threshold is None else {"class": labels.index(threshold["label"]), "value": threshold["value"]}
    about |= {"labels": labels, "decision": {"temperature": saved.get("temperature", 1.0), "threshold": found}}
    encoder = json.loads(saved["encoder"])
    if encoder["kind"] == "TokenizerFile":
        raise ValueError(
            "tokenizer: expected word, char or bpe but got a file of Hugging Face's tokenizers, which only the "
            "estimator reads"
        )
    parameters = encoder["parameters"]
    if saved["kind"] == "text":
        about["text"] = {name: parameters[name] for name in ("tokenizer", "lowercase", "normalization", "max_length")}
        if encoder.get("bits"):
            about["text"]["ngrams"] = {"bits": encoder["bits"], "factor": 1.0}
        if parameters["tokenizer"] == "bpe":
            tensors["text.encoder"] = np.frombuffer(saved["encoder"].encode(), np.uint8)
        else:
            tokens = [token.encode() + _END for token in encoder["tokens"]]
            tensors["text.tokens"] = np.frombuffer(b"".join(tokens), np.uint8)
        return
    about["input"] = {"features": len(encoder["mean"])}
    about["series"] = {name: parameters[name] for name in _SERIES}
    about["series"] |= {name: parameters.get(name, value) for name, value in _LATER.items()}
    about["series"] |= {"layout": saved["parameters"].get("layout", "time_channels")}
    about["series"] |= {"mean": encoder["mean"], "scale": encoder["scale"]}
    if saved.get("convolutions") is not None:
        about["convolutions"] = saved["convolutions"]
