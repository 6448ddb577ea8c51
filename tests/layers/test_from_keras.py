"""from_keras and from_haste against these libraries' equations in plain numpy, and what they refuse. That Keras's own
layers give the same is tested in test_oracle_keras.py, where Keras is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import seqcls_fast as sf

I, H, T = 3, 4, 5
X = np.random.default_rng(0).standard_normal((2, T, I))
Array = Any


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def weights_of(gates: int, bias: tuple[int, ...] | None, seed: int = 0) -> list[Array]:
    g = np.random.default_rng(seed)
    shapes = [(I, gates * H), (H, gates * H), *([] if bias is None else [bias])]
    return [g.standard_normal(shape) / 2 for shape in shapes]


def keras_layer(weights: list[Array], relu: bool = False) -> Array:
    """Keras's equations: the states h of every step. A GRU has the gates z r h, an LSTM i f c o."""
    kernel, recurrent, *biases = weights
    gates = kernel.shape[1] // H
    bias = biases[0] if biases else np.zeros(gates * H)
    h, c, states = np.zeros((len(X), H)), np.zeros((len(X), H)), []
    for x in X.transpose(1, 0, 2):
        if gates == 1:
            h = x @ kernel + h @ recurrent + bias
            h = np.maximum(h, 0) if relu else np.tanh(h)
        elif gates == 4:
            i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            after = bias.ndim == 2
            x_z, x_r, x_h = np.split(x @ kernel + (bias[0] if after else bias), 3, 1)
            u_z, u_r, u_h = np.split(recurrent, 3, 1)
            b_z, b_r, b_h = np.split(bias[1], 3) if after else (0, 0, 0)
            z, r = sigmoid(x_z + h @ u_z + b_z), sigmoid(x_r + h @ u_r + b_r)
            inner = r * (h @ u_h + b_h) if after else (r * h) @ u_h
            h = z * h + (1 - z) * np.tanh(x_h + inner)
        states.append(h)
    return np.stack(states, 1)


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_keras(gates: int, bias: bool) -> None:
    weights = weights_of(gates, (gates * H,) if bias else None)
    layer = sf.from_keras(weights, {"reset_after": False})
    output, _ = layer(torch.from_numpy(X))
    assert isinstance(layer, {1: sf.RNN, 3: sf.GRU, 4: sf.LSTM}[gates])
    assert layer.bias is bias
    np.testing.assert_allclose(output.detach().numpy(), keras_layer(weights), atol=1e-14)


def test_a_gru_with_two_biases_resets_after_the_product() -> None:
    weights = weights_of(3, (2, 3 * H))
    output, _ = sf.from_keras(weights)(torch.from_numpy(X))
    np.testing.assert_allclose(output.detach().numpy(), keras_layer(weights), atol=1e-14)


def test_both_directions_and_settings() -> None:
    forward, backward = weights_of(1, (H,)), weights_of(1, (H,), seed=1)
    inner = {"class_name": "SimpleRNN", "config": {"activation": "relu", "recurrent_dropout": 0.25}}
    config = {"merge_mode": "concat", "layer": inner}
    config["backward_layer"] = {"class_name": "SimpleRNN", "config": inner["config"] | {"go_backwards": True}}
    layer = sf.from_keras([torch.from_numpy(w) for w in forward + backward], config)
    assert repr(layer) == "RNN(3, 4, batch_first=True, bidirectional=True, recurrent_dropout=0.25)"
    output, _ = layer.eval()(torch.from_numpy(X))
    np.testing.assert_allclose(output[..., :H].detach().numpy(), keras_layer(forward, relu=True), atol=1e-14)
    alone, _ = sf.from_keras(backward, inner["config"]).eval()(torch.from_numpy(X).flip(1))
    torch.testing.assert_close(output[..., H:], alone.flip(1), rtol=0, atol=1e-14)
    assert sf.from_keras(forward + backward).bidirectional


class SimpleRNN:
    """Looks like a layer of Keras that was never called."""

    def get_weights(self) -> list[Array]:
        return []

    def get_config(self) -> dict[str, Any]:
        return {}


def bidirectional(config: dict[str, Any], backward: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    found = settings | {"layer": {"class_name": "LSTM", "config": config}}
    return found if backward is None else found | {"backward_layer": {"class_name": "LSTM", "config": backward}}


LSTM, GRU, RNN = weights_of(4, (4 * H,)), weights_of(3, (3 * H,)), weights_of(1, (H,))
REFUSED = [
    (LSTM, {"activation": "relu"}, "activation: expected 'tanh' but got 'relu'"),
    (RNN, {"activation": "elu"}, "activation: expected 'tanh' or 'relu' but got 'elu'"),
    (GRU, {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation: expected 'sigmoid' but got 'hard_sigmoid'"),
    (LSTM, {"go_backwards": True}, r"go_backwards: expected False, with x.flip\(1\) .* but got True"),
    (LSTM, {"stateful": True}, "stateful: expected False, .* but got True"),
    (LSTM * 2, bidirectional({}, merge_mode="sum"), "merge_mode: expected 'concat' but got 'sum'"),
    (LSTM * 2, bidirectional({}, {"go_backwards": False}), "backward_layer: expected go_backwards=True"),
    (LSTM * 2, bidirectional({}, {"recurrent_dropout": 0.5}), "backward_layer: expected {.* but got {.*0.5}"),
    (LSTM, bidirectional({}), "source: expected kernel, recurrent_kernel and bias of 2 directions"),
    (LSTM[:1], None, "source: expected kernel, recurrent_kernel and bias of 1 directions"),
    (weights_of(2, None), None, r"source: expected shapes \(I, G \* H\).* but got \[\(3, 8\), \(4, 8\)\]"),
    ([*GRU[:2], GRU[2][:-1]], None, "source: expected shapes"),
    (RNN + LSTM, None, "source: expected shapes"),
]


@pytest.mark.parametrize(("weights", "config", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_refused(weights: list[Array], config: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.from_keras(weights, config)


def test_refused_kinds() -> None:
    with pytest.raises(
        TypeError, match=r"source: expected a list of weights or a layer of Keras, .* but got ConvLSTM1D"
    ):
        sf.from_keras(type("ConvLSTM1D", (), {})())
    with pytest.raises(TypeError, match="source: expected a Bidirectional of SimpleRNN, GRU, LSTM but got one of RNN"):
        sf.from_keras(LSTM * 2, {"layer": {"class_name": "RNN", "config": {}}})
    with pytest.raises(TypeError, match=r"source: expected floating-point numbers but got torch\.int64"):
        sf.from_keras([weight.astype(np.int64) for weight in LSTM])
    with pytest.raises(TypeError, match="source: expected an array of numbers but got 'kernel'"):
        sf.from_keras(["kernel", *LSTM[1:]])
    with pytest.raises(ValueError, match="source: expected a SimpleRNN with weights, which its first call makes"):
        sf.from_keras(SimpleRNN())
    with pytest.raises(TypeError, match="config: expected None with a layer"):
        sf.from_keras(SimpleRNN(), {})


def test_dropout_of_the_input_is_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="dropout=0.2, .* is left out; put a torch.nn.Dropout before the layer"):
        sf.from_keras(LSTM, {"dropout": 0.2})


# -- haste ------------------------------------------------------------------------------------------------------------


def haste_weights(*names: str, gates: int = 4) -> dict[str, torch.Tensor]:
    g = np.random.default_rng(3)
    shapes = {"kernel": (I, gates * H), "recurrent_kernel": (H, gates * H), "gamma": (2, gates * H)}
    shapes |= {"gamma_h": (H,), "beta_h": (H,)}
    names = ("kernel", "recurrent_kernel", "bias", *names)
    return {name: torch.from_numpy(g.standard_normal(shapes.get(name, (gates * H,))) / 2) for name in names}


def haste_layer(weights: dict[str, torch.Tensor], zoneout: float) -> Array:
    """haste's equations in evaluation: the states h of every step. A GRU has the gates z r h, an LSTM i g f o."""
    w = {name: t.numpy() for name, t in weights.items()}

    def norm(v: Array, gain: Array, bias: Array | float = 0) -> Array:
        v = v - v.mean(1, keepdims=True)
        return gain * v / np.sqrt((v * v).mean(1, keepdims=True) + 1e-5) + bias

    h, c, states = np.zeros((len(X), H)), np.zeros((len(X), H)), []
    for x in X.transpose(1, 0, 2):
        before, from_x, from_h = h, x @ w["kernel"], h @ w["recurrent_kernel"]
        if "recurrent_bias" in w:
            (x_z, x_r, x_n), (h_z, h_r, h_n) = (
                np.split(from_x + w["bias"], 3, 1), np.split(from_h + w["recurrent_bias"], 3, 1)
            )  # fmt: skip
            z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
            h = z * h + (1 - z) * np.tanh(x_n + r * h_n)
        else:
            if "gamma" in w:
                from_x, from_h = norm(from_x, w["gamma"][0]), norm(from_h, w["gamma"][1])
            i, g, f, o = np.split(from_x + from_h + w["bias"], 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(norm(c, w["gamma_h"], w["beta_h"]) if "gamma" in w else c)
        h = zoneout * before + (1 - zoneout) * h
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize("zoneout", [0.0, 0.25])
@pytest.mark.parametrize(
    ("gates", "names"), [(4, ()), (3, ("recurrent_bias",)), (4, ("gamma", "gamma_h", "beta_h"))],
    ids=["LSTM", "GRU", "LayerNormLSTM"],
)  # fmt: skip
def test_weights_of_haste(gates: int, names: tuple[str, ...], zoneout: float) -> None:
    weights = haste_weights(*names, gates=gates)
    layer = sf.from_haste(weights, zoneout=zoneout, dropout=0.5).eval()  # the dropout acts in training alone
    output, _ = layer(torch.from_numpy(X.transpose(1, 0, 2)))
    np.testing.assert_allclose(output.detach().numpy(), haste_layer(weights, zoneout), atol=1e-14)


def test_refused_weights_of_haste() -> None:
    with pytest.raises(ValueError, match=r"state_dict: .* but got that of a LayerNormGRU, which normalises its three"):
        sf.from_haste(haste_weights("recurrent_bias", "gamma", gates=3))
    with pytest.raises(ValueError, match="with bias, kernel, recurrent_kernel, but got kernel, recurrent_scale"):
        sf.from_haste({"kernel": torch.ones(3, 4), "recurrent_scale": torch.ones(4)})
    with pytest.raises(ValueError, match=r"bias: expected shape \(16,\) but got \(15,\)"):
        sf.from_haste(haste_weights() | {"bias": torch.ones(15)})
