"""``to_runtime``: writes a model as one file for the runtime, which runs it without torch (csrc/runtime).

The file is in the layout of safetensors, with a description of the model as JSON beside the tensors, which have the
names of the module's ``state_dict()``. Its checksum has a fixed place in the header, so that it can cover all of the
file. What a file may hold, and what is refused, is decided in csrc/runtime/description.cpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._files import replacing
from ._options import Options
from ._recurrent import RecurrentCell
from ._shapes import CELLS
from .classifier import SequenceClassifier

__all__ = ["to_runtime"]

VERSION = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "GRU": "gru", "LSTM": "lstm"}
_START = b'{"__metadata__":{"crc32":"'  # the eight digits of the checksum follow
_ALIGN = 64  # bytes; where the tensors begin
_MOST_HEADER = 1 << 20  # bytes, which csrc/runtime/tensor_file.cpp reads
_SERIES = {"normalize": "data", "differences": False, "time": False}  # all that the runtime computes of these


def to_runtime(model: Any, path: str | os.PathLike[str], dtype: str = "float32") -> None:
    """Writes a model for the runtime: ``libseqcls`` in C, :mod:`seqcls_fast.runtime` in Python, both without torch.

    The runtime computes the bits that the module has in evaluation with weights of that dtype, whether it gets a
    sequence as a whole or step by step.

    Args:
        model: an RNN, GRU or LSTM of ours or of ``torch.nn``, with any options; a :class:`SequenceClassifier`; or a
            fitted classifier of texts or series. Those of texts need ``wide=False``, those of series
            ``convolutions=0, normalize="data", differences=False, time=False``, as the runtime has neither wide parts
            nor these features.
        path: where to write the file. It is replaced once everything is written.
        dtype: of the weights and of every layer's output, ``"float32"`` or ``"bfloat16"``.

    Example::

        >>> import tempfile, seqcls_fast as sf
        >>> from seqcls_fast.export import to_runtime
        >>> folder = tempfile.TemporaryDirectory()
        >>> to_runtime(sf.GRU(3, 8), folder.name + "/model.sfm")
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)} but got {dtype!r:.80}")
    about, tensors = _described(model)
    narrow = {name: _as_dtype(name, tensor, _DTYPES[dtype]) for name, tensor in tensors.items()}
    content = packed_file({"dtype": dtype} | about, narrow)
    with replacing(Path(path)) as written:
        written.write_bytes(content)


def packed_file(about: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a file."""
    metadata = {"crc32": "0" * 8, "format": "seqcls-fast", "version": str(VERSION), "model": json.dumps(about)}
    header: dict[str, Any] = {"__metadata__": metadata}
    data, end = [], 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):  # so that each is aligned to its size
        tensor = tensors[name].contiguous()
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        data.append(ctypes.string_at(tensor.data_ptr(), tensor.nbytes))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"model: expected a description of at most {_MOST_HEADER} bytes, with the labels of all classes and what "
            f"scales each feature, but got {len(text)}"
        )
    content = len(text).to_bytes(8, "little") + text + b"".join(data)
    at = 8 + len(_START)
    assert content[8:at] == _START
    return content[:at] + b"%08x" % zlib.crc32(content) + content[at + 8 :]


def _described(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a model, without its dtype, and its tensors."""
    fitted = getattr(model, "fitted_", None)
    if isinstance(model, nn.RNNBase):
        encoder, tensors = _encoder(model)
        return {"input": {"features": encoder["inputs"]}, "encoder": encoder}, tensors
    if isinstance(model, SequenceClassifier):
        return _classifier(model)
    if fitted is not None and isinstance(getattr(fitted.model, "_orig_mod", fitted.model), SequenceClassifier):
        return _estimator(fitted)
    if isinstance(model, RecurrentCell | nn.RNNCellBase):
        raise TypeError(f"model: expected a layer, whose steps the runtime can run, but got {type(model).__name__}")
    raise TypeError(
        f"model: expected an RNN, GRU or LSTM, a SequenceClassifier or a fitted classifier but got "
        f"{type(model).__name__}"
    )


def _encoder(layers: nn.RNNBase) -> tuple[dict[str, Any], dict[str, Tensor]]:
    options: Options | None = getattr(layers, "_layer_options", None)
    cell: str = getattr(layers, "_cell_name", None) or _MODES[layers.mode]
    about: dict[str, Any] = {
        "cell": cell, "inputs": layers.input_size, "hidden": layers.hidden_size, "layers": layers.num_layers,
        "directions": 2 if layers.bidirectional else 1, "projection": layers.proj_size, "bias": bool(layers.bias),
    }  # fmt: skip
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layers.bias else [])]
    kinds += ["weight_hr"] if layers.proj_size else []
    kinds += [weight.name for weight in CELLS[cell].further]
    suffixes = ["", "_reverse"][: about["directions"]]
    names = [f"{kind}_l{k}{suffix}" for k in range(layers.num_layers) for kind in kinds for suffix in suffixes]
    if options is not None:
        about |= {"zoneout": list(options.zoneout), "learnt_states": options.learn_initial_state}
        if options.learn_initial_state:
            states = ("h_reset", "c_reset")[: 1 + CELLS[cell].has_c]
            names += [f"{state}_l{k}" for k in range(layers.num_layers) for state in states]
    return about, {f"encoder.{name}": getattr(layers, name) for name in names}


def _classifier(model: SequenceClassifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name, kind in {
        "encoder": nn.RNNBase,
        "head": nn.Linear,
        "embedding": nn.Embedding,
        "attention": nn.Linear,
    }.items():
        part = getattr(model, name)
        if part is not None and not isinstance(part, kind):
            raise TypeError(f"{name}: expected {kind.__name__} but got {type(part).__name__}")
    for name, without in {"wide": "wide=False", "convolutions": "convolutions=0"}.items():
        if getattr(model, name) is not None:
            raise ValueError(
                f"{name}: expected a model without this part, which the runtime does not compute, but got one with it; "
                f"fit a classifier with {without}"
            )
    encoder, tensors = _encoder(model.encoder)
    about: dict[str, Any] = {"input": {"features": model.input_size}}
    if model.embedding is not None:
        about["input"] = {"vocabulary": model.embedding.num_embeddings, "padding": model.padding_idx}
        tensors["embedding.weight"] = model.embedding.weight
    if model.attention is not None:
        tensors |= {"attention.weight": model.attention.weight, "attention.bias": model.attention.bias}
    bias = model.head.bias
    tensors["head.weight"] = model.head.weight
    tensors["head.bias"] = model.head.weight.new_zeros(model.num_classes) if bias is None else bias
    about |= {"encoder": encoder, "pooling": model.pooling, "head": {"classes": model.num_classes}}
    return about, tensors


def _estimator(fitted: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    about, tensors = _classifier(getattr(fitted.model, "_orig_mod", fitted.model))
    labels = fitted.classes.tolist()
    threshold = fitted.threshold
    found = None if threshold is None else {"class": labels.index(threshold.label), "value": threshold.value}
    about |= {"labels": labels, "decision": {"temperature": fitted.temperature, "threshold": found}}
    encoder = fitted.encoder
    if fitted.inputs.kind == "text":
        about["text"] = {"encoder": "text.encoder"}
        content = bytearray(encoder.to_json().encode())
        tensors["text.encoder"] = torch.frombuffer(content, dtype=torch.uint8)
    else:
        saved = json.loads(encoder.to_json())
        about["input"] = {"features": encoder.features_in}
        about["series"] = saved["parameters"] | {"mean": saved["mean"], "scale": saved["scale"]}
        for name, value in _SERIES.items():
            got = about["series"].pop(name)
            if got != value:
                raise ValueError(
                    f"{name}: expected {value!r}, which is all that the runtime computes, but got {got!r}; fit the "
                    f"classifier with {name}={value!r}"
                )
    return about, tensors


def _as_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    found = tensor.detach().to(device="cpu", dtype=dtype)
    if not bool(found.isfinite().all()):
        raise ValueError(
            f"{name}: expected weights that are finite in {str(dtype).removeprefix('torch.')} but got others"
        )
    return found
