"""Equality with torch.nn for all combinations of constructor arguments.

For every dtype, results are compared with torch.nn in float64 with exactly the same weights. torch's own tests, run on
our classes, are in test_torch_modules.py, test_torch_nn.py and test_torch_tools.py.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import B, H, I, T, Tensors, gradients, hx_of, named, x_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = {  # name -> ours, torch's, options, proj_sizes
    "rnn_tanh": (sf.RNN, nn.RNN, {}, (0,)),
    "rnn_relu": (sf.RNN, nn.RNN, {"nonlinearity": "relu"}, (0,)),
    "gru": (sf.GRU, nn.GRU, {}, (0,)),
    "lstm": (sf.LSTM, nn.LSTM, {}, (0, 2)),
}


def constructors() -> Iterator[Any]:
    for kind, (sf_class, nn_class, fixed, proj_sizes) in KINDS.items():
        for bias, batch_first, bidirectional, num_layers, proj_size in product(
            (True, False), (False, True), (False, True), (1, 2, 3), proj_sizes
        ):
            options = fixed | {
                "num_layers": num_layers,
                "bias": bias,
                "batch_first": batch_first,
                "bidirectional": bidirectional,
                "dropout": 0.0,
            }
            if proj_size:
                options["proj_size"] = proj_size
            flags = "".join(
                letter for letter, on in zip("bfdp", (bias, batch_first, bidirectional, proj_size), strict=True) if on
            )
            yield pytest.param(sf_class, nn_class, options, id=f"{kind}-{num_layers}{flags}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sf_class", "nn_class", "options"), list(constructors()))
def test_results_and_gradients_are_torchs(
    sf_class: type, nn_class: type, options: dict[str, Any], dtype: torch.dtype
) -> None:
    ours, theirs = sf_class(I, H, **options, dtype=dtype), nn_class(I, H, **options, dtype=torch.float64)
    x, hx = x_of(*((B, T, I) if options["batch_first"] else (T, B, I))).to(dtype), hx_of(ours)
    states = [state.to(dtype) for state in (hx if isinstance(hx, tuple) else (hx,))]
    half = dtype.itemsize == 2
    if half and options.get("nonlinearity") == "relu":
        # rounding h may turn a unit on or off, and so its gradient: positive numbers keep all of them on
        x, states = x.abs(), [state.abs() for state in states]
        for p in ours.parameters():
            p.data.abs_()
    theirs.load_state_dict(ours.state_dict())
    layers, terms = options["num_layers"], 2 * T * (3 * H + 10) + T * B
    for given in (True, False):
        found: list[Tensors] = []
        for module, wide in ((ours, dtype), (theirs, torch.float64)):
            inputs = {"x": x.to(wide).requires_grad_()}
            inputs |= {f"hx[{k}]": state.to(wide).requires_grad_() for k, state in enumerate(states) if given}
            mine = tuple(t for name, t in inputs.items() if name != "x")
            results = named(*module(inputs["x"], None if not given else mine if len(mine) == 2 else mine[0]))
            found.append(results | gradients(results, module, **inputs))
        assert all(t is None or t.dtype == dtype for t in found[0].values())
        # in 16 bits h is rounded once per step and layer, and its gradient once per use: output, next step, their sum
        assert_close_by_name(*found, layers * (4 * T if half else terms))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_errors_are_at_most_torchs(kind: str, dtype: torch.dtype) -> None:
    sf_class, nn_class, options, _ = KINDS[kind]
    ours, theirs = (library(32, 32, 2, **options, dtype=dtype) for library in (sf_class, nn_class))
    truth = nn_class(32, 32, 2, **options, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    truth.load_state_dict(ours.state_dict())
    x = x_of(20, 8, 32).to(dtype)
    exact = named(*truth(x.double()))
    for name in exact:
        if exact[name] is not None:
            error, theirs_error = (
                (named(*module(x))[name].double() - exact[name]).square().mean().sqrt() for module in (ours, theirs)
            )
            assert error <= theirs_error, name
