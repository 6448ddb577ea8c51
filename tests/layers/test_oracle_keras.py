"""Layers that from_keras makes against Keras's own: outputs, last states and gradients, with masks and in both
directions. `make test-peers` installs Keras, which runs on torch here and rounds every product to float32."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import seqcls_fast as sf
from support.tolerances import assert_close_by_name, tolerance

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="the layers of Keras, which `make test-peers` installs")
if keras.backend.backend() != "torch":
    pytest.skip(f"Keras runs on {keras.backend.backend()} here, not on torch", allow_module_level=True)

B, T, I, H = 5, 7, 3, 6
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "SimpleRNN": ("SimpleRNN", {}),
    "SimpleRNN-relu": ("SimpleRNN", {"activation": "relu"}),
    "GRU": ("GRU", {}),
    "GRU-reset_before": ("GRU", {"reset_after": False}),
    "LSTM": ("LSTM", {}),
}


def keras_layer(kind: str, both: bool, **settings: Any) -> Any:
    name, options = KINDS[kind]
    layer = getattr(keras.layers, name)(H, return_sequences=True, return_state=True, **options | settings)
    layer = keras.layers.Bidirectional(layer) if both else layer
    layer.build((None, T, I))
    g = torch.Generator().manual_seed(1)
    layer.set_weights([(torch.randn(w.shape, generator=g) / 2).numpy() for w in layer.get_weights()])
    return layer


def results_of_keras(layer: Any, x: torch.Tensor, lengths: torch.Tensor | None) -> dict[str, torch.Tensor]:
    mask = None if lengths is None else torch.arange(T) < lengths[:, None]
    output, *states = layer(x, mask=mask, training=False)
    if mask is not None:  # beyond a row's length Keras repeats the last output, and ours is zero
        output = torch.where(mask[:, :, None], output, 0)
    each = 2 if len(states) in (2, 4) and layer_kind(layer) == "LSTM" else 1
    return {"output": output, "h_n": torch.stack(states[::each])} | (
        {"c_n": torch.stack(states[1::2])} if each == 2 else {}
    )


def layer_kind(layer: Any) -> str:
    return type(getattr(layer, "forward_layer", layer)).__name__


def results_of_ours(layer: Any, x: torch.Tensor, lengths: torch.Tensor | None) -> dict[str, torch.Tensor]:
    output, states = layer(x, lengths=lengths)
    return {"output": output} | dict(zip(("h_n", "c_n"), states if isinstance(states, tuple) else (states,)))  # noqa: B905


def with_gradient(results: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    total = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in results.values())
    (d_x,) = torch.autograd.grad(total, x)
    return {name: t.detach() for name, t in results.items()} | {"d x": d_x}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("bias", [False, True], ids=["nobias", "bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_results(kind: str, bias: bool, both: bool, masked: bool, impl: str) -> None:
    settings = {} if bias else {"use_bias": False}
    theirs = keras_layer(kind, both, recurrent_dropout=0.25, **settings)
    ours = sf.from_keras(theirs)
    assert ours.bias is bias
    lengths = torch.tensor([7, 1, 4, 0, 3]) if masked else None
    x = torch.randn(B, T, I, requires_grad=True)
    wanted = with_gradient(results_of_keras(theirs, x, lengths), x)
    with sf.use_impl(impl):
        found = with_gradient(results_of_ours(ours.eval(), x, lengths), x)
    assert_close_by_name(found, wanted, terms=64)


def test_recurrent_dropout_is_taken_over() -> None:
    layer = sf.from_keras(keras_layer("LSTM", False, recurrent_dropout=0.25))
    assert "recurrent_dropout=0.25" in repr(layer)
    x = torch.randn(B, T, I)
    assert not torch.equal(layer(x)[0], layer(x)[0])


def test_backwards_is_forwards_over_the_reversed_input() -> None:
    theirs = keras_layer("GRU", False, go_backwards=True)
    with pytest.raises(ValueError, match="go_backwards"):
        sf.from_keras(theirs)
    ours = sf.from_keras(theirs.get_weights())
    x = torch.randn(B, T, I)
    torch.testing.assert_close(ours(x.flip(1))[0], theirs(x)[0], rtol=0, atol=tolerance(torch.float32, 64))


@pytest.mark.parametrize("settings", [{"activation": "elu"}, {"stateful": True}])
def test_refused(settings: dict[str, Any]) -> None:
    layer = keras.layers.LSTM(H, **settings)
    layer.build((B, T, I))
    with pytest.raises(ValueError, match=next(iter(settings))):
        sf.from_keras(layer)


def test_other_layers_are_refused() -> None:
    for layer in (keras.layers.Dense(3), keras.layers.RNN(keras.layers.LSTMCell(3))):
        with pytest.raises(TypeError, match="source: expected a list of weights or a layer of Keras"):
            sf.from_keras(layer)
    with pytest.raises(ValueError, match="source: expected a LSTM with weights"):
        sf.from_keras(keras.layers.LSTM(3))
