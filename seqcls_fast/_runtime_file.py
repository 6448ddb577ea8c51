"""``to_runtime``: writes a model as one file for the runtime, which runs it without torch (csrc/runtime).

_runtime_format.py has the layout of the file. Here modules of torch become its tensors and its description.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ._files import replacing
from ._options import Options
from ._recurrent import RecurrentCell
from ._runtime_format import add_classifier, packed_file
from ._shapes import CELLS
from ._wide import WeightedIds
from .classifier import SequenceClassifier
from .convolutions import ConvolutionScores

__all__ = ["to_runtime"]

_DTYPES = ("float32", "bfloat16")
_MODES = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "GRU": "gru", "LSTM": "lstm"}
_FULL = ("convolutions.", "wide.")  # linear models of the whole sequence, which stay in float32


def to_runtime(model: Any, path: str | os.PathLike[str], dtype: str = "float32") -> None:
    """Writes a model for the runtime: ``libseqcls`` in C, :mod:`seqcls_fast.runtime` in Python, both without torch.

    The runtime computes the bits that the module has in evaluation with weights of that dtype, whether it gets a
    sequence as a whole or step by step.

    Args:
        model: an RNN, GRU or LSTM of ours or of ``torch.nn``, with any options; a :class:`SequenceClassifier`; or a
            fitted classifier of texts or series, with its tokenizer and all that belongs to it.
        path: where to write the file. It is replaced once everything is written.
        dtype: of the network's weights and of every layer's output, ``"float32"`` or ``"bfloat16"``. N-grams of texts
            and random convolutions of series stay in float32.

    Example::

        >>> import tempfile, seqcls_fast as sf
        >>> from seqcls_fast.export import to_runtime
        >>> folder = tempfile.TemporaryDirectory()
        >>> to_runtime(sf.GRU(3, 8), folder.name + "/model.sfm")
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)} but got {dtype!r:.80}")
    about, tensors = _described(model)
    arrays = {name: _as_array(name, tensor, dtype) for name, tensor in tensors.items()}
    fitted = getattr(model, "fitted_", None)
    if fitted is not None:
        add_classifier(about, arrays, fitted.config())
    content = packed_file({"dtype": dtype} | about, arrays)
    with replacing(Path(path)) as written:
        written.write_bytes(content)


def _described(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a model, without its dtype, and its tensors."""
    fitted = getattr(model, "fitted_", None)
    if isinstance(model, nn.RNNBase):
        encoder, tensors = _encoder(model)
        return {"input": {"features": encoder["inputs"]}, "encoder": encoder}, tensors
    if isinstance(model, SequenceClassifier):
        if model.wide is not None:
            raise ValueError(
                "wide: expected a module without this part, which the runtime computes for fitted classifiers of texts "
                "alone, but got one with it"
            )
        return _classifier(model)
    network = getattr(fitted, "network", None)
    if isinstance(network, SequenceClassifier):
        return _classifier(network)
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
        "wide": WeightedIds,
        "convolutions": ConvolutionScores,
    }.items():
        part = getattr(model, name)
        if part is not None and not isinstance(part, kind):
            raise TypeError(f"{name}: expected {kind.__name__} but got {type(part).__name__}")
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
    for name in ("wide", "convolutions"):
        part = getattr(model, name)
        if part is not None:
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    if model.convolutions is not None:
        about["convolutions"] = model.convolutions.convolutions.sizes
    return about, tensors


def _as_array(name: str, tensor: Tensor, dtype: str) -> NDArray[Any]:
    """The weights as float32, or the bits of bfloat16."""
    kind = "float32" if name.startswith(_FULL) else dtype
    found = tensor.detach().to(device="cpu", dtype=getattr(torch, kind))
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name}: expected weights that are finite in {kind} but got others")
    array: NDArray[Any] = found.numpy() if kind == "float32" else found.view(torch.int16).numpy().view(np.uint16)
    return array
