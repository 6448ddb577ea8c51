"""``to_onnx``: writes a model that holds our layers as a file of standard ONNX operators.

``to_runtime``, which writes a file for the runtime, is in ``_runtime_file.py``.

torch's exporter turns every layer into one ``seqcls_fast::rnn_layer``, which becomes one ONNX RNN, GRU or LSTM. The
file holds the weights in ONNX's order, so that nothing is rearranged when it is loaded.
"""

from __future__ import annotations

from . import _with_torch  # noqa: F401

# isort: split
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._cells import Rates
from ._ext import C, why_missing
from ._files import replacing
from ._recurrent import RecurrentCell, RecurrentLayers
from ._runtime_file import to_runtime
from ._shapes import by_kind
from .ops import use_impl

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

__all__ = ["to_onnx", "to_runtime"]

# Our index of each gate, in ONNX's order. The cells that are missing here have no operator in ONNX.
_GATES = {
    "rnn_tanh": [0],
    "rnn_relu": [0],
    "gru": [1, 0, 2],
    "gru_reset_before": [1, 0, 2],
    "lstm": [0, 3, 1, 2],
    "lstm_peephole": [0, 3, 1, 2],
}
_PEEPHOLES = [0, 2, 1]  # ours are of i, f and o; ONNX's of i, o and f
_NO_BFLOAT16 = "onnxruntime has no bfloat16 RNN, GRU or LSTM; expected float32 or float16 but got bfloat16"


def to_onnx(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    f: str | os.PathLike[str] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | list[Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
) -> ONNXProgram:
    """:func:`torch.onnx.export` for models that hold layers or cells of ours, which become ONNX's RNN, GRU and LSTM.

    The model is exported in eval mode; its own mode is restored afterwards. Rows of different lengths go through
    ``lengths=``, which becomes ONNX's ``sequence_lens``. float64 is exported, but onnxruntime has no kernels for it.

    Peepholes, ``reset_after=False`` and learnt initial states become what ONNX has for them. Recurrent dropout and
    ``weight_drop`` do nothing in evaluation, so such a layer is exported as the plain one. Refused, because ONNX's
    layers lack them: ``layer_norm``, ``zoneout``, resets, a projected LSTM, ids, bfloat16, and rows without padding (a
    PackedSequence, a nested tensor, values with ``cu_seqlens``).

    Args:
        model: what to export.
        args, kwargs: example inputs; tensors among them become inputs of the file.
        f: where to write the file. It is replaced once everything is written, so that a failure leaves it as it was.
            Weights of more than 1.5 GB go to a second file beside it, named ``f`` with ``.data`` added, which is
            replaced just before.
        dynamic_shapes, input_names, output_names, opset_version: as in :func:`torch.onnx.export`.

    Returns:
        the :class:`torch.onnx.ONNXProgram`.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> from seqcls_fast.export import to_onnx
        >>> model, x, lengths = sf.GRU(3, 4), torch.randn(5, 2, 3), torch.tensor([5, 2])
        >>> shapes = {"input": {0: "T", 1: "B"}, "lengths": {0: "B"}}
        >>> program = to_onnx(model, (x,), kwargs={"lengths": lengths}, dynamic_shapes=shapes)
        >>> [node.op_type for node in program.model.graph if node.op_type == "GRU"]
        ['GRU']
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        sentence = f'to_onnx needs onnx and onnxscript ({error}): pip install "seqcls-fast[export]"'
        raise ImportError(sentence, name=error.name) from error
    if C is None:
        raise RuntimeError(f"to_onnx needs the compiled extension of seqcls_fast, which is missing ({why_missing})")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module but got {type(model).__name__}")
    with _prepared(model), use_impl("auto"):
        try:
            program = torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
                custom_translation_table={torch.ops.seqcls_fast.rnn_layer.default: _translate},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, _Refusal):
                raise NotImplementedError(*cause.args) from None
            raise
    assert program is not None
    _fold_weights(program)
    if f is not None:
        _save(program, Path(f))
    return program


class _Refusal(Exception):
    """ONNX cannot express a layer. ``to_onnx`` raises this again without what torch's exporter wraps around it."""


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode and a check before each of our modules, and undoes both at the end.

    The flags are set one by one, because a model's own ``train`` may keep parts of it frozen.
    """
    before, handles = [(module, module.training) for module in model.modules()], []
    try:
        for path, module in model.named_modules():
            module.training = False
            if isinstance(module, RecurrentLayers | RecurrentCell):
                _refuse(path or "model", module)
                check = partial(_refuse_call, path or "model")
                handles.append(module.register_forward_pre_hook(check, with_kwargs=True))
        yield
    finally:
        for module, training in before:
            module.training = training
        for handle in handles:
            handle.remove()


def _refuse(path: str, module: nn.Module) -> None:
    proj_size = getattr(module, "proj_size", 0)
    if proj_size:
        raise NotImplementedError(f"{path}: ONNX's LSTM has no projection; expected proj_size=0 but got {proj_size}")
    options = getattr(module, "_layer_options", None)
    if options is not None and options.layer_norm:
        raise NotImplementedError(f"{path}: ONNX's layers normalise nothing; expected layer_norm=False but got True")
    if options is not None and any(options.zoneout):
        raise NotImplementedError(f"{path}: ONNX's layers have no zoneout; expected 0 but got {options.zoneout}")
    if any(p.dtype == torch.bfloat16 for p in module.parameters()):
        raise NotImplementedError(f"{path}: {_NO_BFLOAT16}")


def _refuse_call(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses the arguments of a call that ONNX cannot express."""
    if kwargs.get("resets") is not None:
        raise _Refusal(f"{path}: ONNX's layers have no resets; expected resets=None but got a tensor")
    x = kwargs["input"] if "input" in kwargs else args[0] if args else None
    if isinstance(x, tuple) or (isinstance(x, Tensor) and x.is_nested):
        kind = type(x).__name__ if isinstance(x, PackedSequence) else "batch without padding"
        raise _Refusal(f"{path}: expected a padded input with lengths= but got a {kind}, which ONNX cannot hold")


def _translate(
    x: Any, weights: Any, h0: Any, c0: Any, lengths: Any, batch_sizes: Any, cell: str, directions: int,
    batch_first: bool, want_output: bool, impl: str, allow_tf32: bool = False, resets: Any = None, h_reset: Any = None,
    c_reset: Any = None, seed: Any = None, *rates: float,
) -> list[Any]:  # fmt: skip
    """One layer as ONNX nodes. The arguments are those of ``seqcls_fast::rnn_layer``, with graph values for tensors."""
    from onnxscript import ir, opset18

    op: Any = opset18
    if cell not in _GATES:
        raise _Refusal(f"cell: expected one that ONNX has, {', '.join(_GATES)}, but got {cell}")
    if resets is not None:
        raise _Refusal("resets: ONNX's layers have none; expected None but got a tensor")
    if seed is not None or any(rates):
        raise _Refusal(f"rates: ONNX's layers have no zoneout and no dropout; expected zeros but got {Rates(*rates)}")
    w_ih, w_hh, b_ih, b_hh, w_hr, further = by_kind(weights, directions, cell)
    if batch_sizes is not None:
        raise _Refusal("batch_sizes: expected None and padded rows with lengths= but got packed rows")
    if w_hr:
        raise _Refusal("w_hr: ONNX's LSTM has no projection; expected no w_hr but got one per direction")
    if x.dtype == ir.DataType.INT64:
        raise _Refusal("x: ONNX's layers take no ids; expected features, as an embedding gives, but got int64")
    if x.dtype == ir.DataType.BFLOAT16:
        raise _Refusal(f"x: {_NO_BFLOAT16}")
    gates, hidden = len(_GATES[cell]), w_hh[0].shape[1]

    def stacked(kind: Any) -> Any:
        """(D, G * H, columns) out of D matrices (G * H, columns); a bias has one column."""
        blocks = op.Reshape(op.Concat(*kind, axis=0), [directions, gates, hidden, -1])
        return op.Reshape(op.Gather(blocks, _GATES[cell], axis=1), [directions, gates * hidden, -1])

    bias = None
    if b_ih:
        bias = op.Concat(stacked(b_ih), stacked(b_hh), axis=1)
        bias = op.Reshape(bias, [directions, 2 * gates * hidden])
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    steps = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    inputs = [x, stacked(w_ih), stacked(w_hh), bias, steps, h0]
    settings = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if cell.startswith("lstm"):
        peepholes = None
        if further:
            peepholes = op.Gather(
                op.Reshape(op.Concat(*further[0], axis=0), [directions, 3, hidden]), _PEEPHOLES, axis=1
            )
            peepholes = op.Reshape(peepholes, [directions, 3 * hidden])
        output, *finals = op.LSTM(*inputs, c0, peepholes, **settings)
    elif cell.startswith("gru"):
        output, *finals = op.GRU(*inputs, linear_before_reset=int(cell == "gru"), **settings)
    else:
        activation = "Tanh" if cell == "rnn_tanh" else "Relu"
        output, *finals = op.RNN(*inputs, activations=[activation] * directions, **settings)
    if lengths is not None:  # ONNX does not define the final state of a row of length 0, and onnxruntime returns 0
        empty = op.Unsqueeze(op.Equal(lengths, 0), [1])  # (B, 1)
        pairs = zip((h0, c0), finals, strict=False)
        finals = [end if start is None else op.Where(empty, start, end) for start, end in pairs]
    if want_output:  # from (T, D, B, H)
        output = op.Transpose(output, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
        finals.append(op.Reshape(output, [0, 0, directions * hidden]))  # 0 keeps a size
    return finals


def _fold_weights(program: ONNXProgram) -> None:
    """Applies ``stacked`` to constant weights now; torch's own folding skips large tensors."""
    from onnxscript import optimizer

    layers = [node for node in program.model.graph if node.op_type in ("RNN", "GRU", "LSTM")]
    pending, rearranging = [value for layer in layers for value in (*layer.inputs[1:4], *layer.inputs[7:])], set()
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in rearranging:
            rearranging.add(node)
            pending += node.inputs
    optimizer.fold_constants(program.model, should_fold=rearranging.__contains__)
    optimizer.remove_unused_nodes(program.model)


def _save(program: ONNXProgram, path: Path) -> None:
    """Writes everything before it replaces anything. The model file names the data file, so it is replaced last."""
    with replacing(path) as written:
        program.save(written)
