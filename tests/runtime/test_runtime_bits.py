"""The runtime computes the bits of the module, of every cell and option, however a sequence is cut."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import FASTEST, Model

import seqcls_fast as sf
from seqcls_fast import _cells
from seqcls_fast._options import class_of_cell
from seqcls_fast.export import to_runtime

DTYPES = ("float32", "bfloat16")
B, T, I, H = 5, 21, 7, 19
LENGTHS = [21, 0, 13, 21, 1]


def written(module: Any, tmp_path: Path, dtype: str) -> Path:
    """The file of a module, whose weights are rounded as those of the file are."""
    to_runtime(module, tmp_path / "model.sfm", dtype)
    module.to(getattr(torch, dtype)).eval()
    return tmp_path / "model.sfm"


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def equal(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found, expected)
    assert found.tobytes() == expected.tobytes()  # the signs of zeros too


def bits_of_layers(module: Any, path: Path, impl: str, dtype: str, resets: np.ndarray | None = None) -> None:
    """Compares the outputs of whole rows, of chunks, of steps and of some rows alone."""
    x = torch.randn(B, T, module.input_size)
    taken = None if resets is None else torch.from_numpy(resets)
    with sf.use_impl(impl), torch.no_grad():
        expected = numbers(module(x.to(getattr(torch, dtype)), lengths=LENGTHS, resets=taken)[0])
        full = numbers(module(x.to(getattr(torch, dtype)), resets=taken)[0])
    model = Model(path, impl)
    stream = model.stream(B, T)
    equal(stream.run(x.numpy(), LENGTHS, resets)["out"], expected)
    stream.reset()
    equal(stream.run(x.numpy(), None, resets)["out"], full)
    if not model.info.is_streamable:
        return
    stream = model.stream(B, 4)  # works in pieces of four steps
    equal(stream.run(x.numpy(), LENGTHS, resets)["out"], expected)
    stream.reset()
    cut = [0, 1, 6, 7, T]
    parts = [
        stream.run(x.numpy()[:, a:b], None, None if resets is None else resets[:, a:b])["out"]
        for a, b in itertools.pairwise(cut)
    ]
    equal(np.concatenate(parts, 1), full)
    bits_of_one_row(model, x.numpy(), full, resets)
    stream.reset()
    if resets is None:
        equal(np.stack([stream.step(x.numpy()[:, t]) for t in range(T)], 1), full)
        stream.reset()
    for t in range(T):  # the rows move one at a time, in another order
        for rows in ([3], [0, 4], [2, 1]):
            given = x.numpy()[rows, t : t + 1]
            found = stream.run(given, None, None if resets is None else resets[rows, t : t + 1], rows)["out"]
            equal(found, full[rows, t : t + 1])


def bits_of_one_row(model: Model, x: np.ndarray, full: np.ndarray, resets: np.ndarray | None) -> None:
    """A stream of one row has a way of its own for single steps, which here come between chunks."""
    stream = model.stream(1, 4)
    for b in range(B):
        stream.reset()
        for begin, end in itertools.pairwise([0, 1, 2, 3, 7, 8, 9, 10, T - 1, T]):
            given = x[b : b + 1, begin:end]
            flags = None if resets is None or not resets[b, begin:end].any() else resets[b : b + 1, begin:end]
            if end - begin == 1 and flags is None and begin % 2:
                equal(stream.step(given[:, 0]), full[b : b + 1, begin])
            else:
                equal(stream.run(given, None, flags)["out"], full[b : b + 1, begin:end])
        assert np.isnan(stream.step(np.full_like(x[:1, 0], np.nan))).any()  # the next row knows nothing of it


def make_layer(cell: str, **more: Any) -> Any:
    name, arguments = class_of_cell(cell)
    module = getattr(sf, name)(I, H, batch_first=True, **arguments, **more)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", list(_cells.BUILT_IN))
def test_every_cell(cell: str, dtype: str, compiled: str, tmp_path: Path) -> None:
    module = make_layer(cell, num_layers=2)
    bits_of_layers(module, written(module, tmp_path, dtype), compiled, dtype)


MORE: dict[str, dict[str, Any]] = {
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "three layers": {"num_layers": 3},
    "no bias": {"bias": False},
    "zoneout": {"zoneout": 0.2},
    "learnt states": {"learn_initial_state": True, "num_layers": 2},
    "learnt states of two directions": {"learn_initial_state": True, "bidirectional": True},
    "dropouts": {"recurrent_dropout": 0.3, "weight_drop": 0.2, "dropout": 0.5, "num_layers": 2},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*MORE])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_options(cell: str, name: str, dtype: str, tmp_path: Path) -> None:
    module = make_layer(cell, **MORE[name])
    bits_of_layers(module, written(module, tmp_path, dtype), FASTEST, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "more", [{}, {"bidirectional": True, "num_layers": 2}, {"zoneout": (0.1, 0.3)}, {"layer_norm": True}]
)
def test_projected_layers(more: Any, dtype: str, compiled: str, tmp_path: Path) -> None:
    module = make_layer("lstm", proj_size=5, **more)
    bits_of_layers(module, written(module, tmp_path, dtype), compiled, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "more", [{}, {"learn_initial_state": True}, {"bidirectional": True, "learn_initial_state": True}]
)
@pytest.mark.parametrize("cell", ["lstm", "gru_layer_norm", "rnn_tanh"])
def test_resets(cell: str, more: Any, dtype: str, compiled: str, tmp_path: Path) -> None:
    module = make_layer(cell, num_layers=2, **more)
    path = written(module, tmp_path, dtype)
    resets = np.random.default_rng(0).random((B, T)) < 0.2
    bits_of_layers(module, path, compiled, dtype, resets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_layers(dtype: str, compiled: str, tmp_path: Path) -> None:
    """More than 256 products in a sum, which are then added in several chains."""
    module = sf.LSTM(300, 280, batch_first=True)
    bits_of_layers(module, written(module, tmp_path, dtype), compiled, dtype)


def make_classifier(**more: Any) -> sf.SequenceClassifier:
    model = sf.SequenceClassifier(I, H, 4, **more)
    for name, parameter in model.named_parameters():
        if "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("ids", [False, True])
def test_classifiers(ids: bool, pooling: str, bidirectional: bool, dtype: str, compiled: str, tmp_path: Path) -> None:
    model = make_classifier(vocab_size=11 if ids else None, pooling=pooling, bidirectional=bidirectional, num_layers=2)
    path = written(model, tmp_path, dtype)
    x = torch.randint(1, 11, (B, T)) if ids else torch.randn(B, T, I)
    given = x if ids else x.to(getattr(torch, dtype))

    def logits(rows: Any, lengths: Any) -> np.ndarray:
        with sf.use_impl(compiled), torch.no_grad():
            return numbers(model(given[rows], lengths))

    runtime = Model(path, compiled)
    stream = runtime.stream(B, T)
    found = stream.run(x.numpy(), LENGTHS)
    equal(found["logits"], logits(slice(None), LENGTHS))
    with sf.use_impl(compiled), torch.inference_mode():
        probabilities = sf._head.softmax(torch.from_numpy(found["logits"]).double(), 1.0).numpy()
    equal(found["probabilities"], probabilities)
    equal(found["out"], probabilities.astype(np.float32))
    equal(found["classes"], probabilities.argmax(1))
    stream.reset()
    equal(stream.run(x.numpy())["logits"], logits(slice(None), [T] * B))
    if not runtime.info.is_streamable:  # a row alone, of one step and after a call with lengths
        for single in (runtime.stream(1, 1), runtime.stream(1, T)):
            single.run(x.numpy()[:1, :1], [0])
            equal(single.run(x.numpy()[:1, :1])["logits"], logits(slice(1), [1]))
        equal(runtime.stream(1, 1).run(x.numpy()[:1, :1])["logits"], logits(slice(1), [1]))
        return
    stream, single = runtime.stream(B, 3), runtime.stream(1, 1)
    for end in range(T):
        equal(single.run(x.numpy()[:1, end : end + 1])["logits"], logits(slice(1), [end + 1]))
        if not ids and end % 3 == 0:
            out = stream.step(x.numpy()[:, end])
            assert out.shape == (B, 4)
            continue
        equal(stream.run(x.numpy()[:, end : end + 1])["logits"], logits(slice(None), [end + 1] * B))


def test_mean_of_many_steps(tmp_path: Path) -> None:
    """More steps than the 256 that are added one after another."""
    model = make_classifier(pooling="mean")
    runtime = Model(written(model, tmp_path, "float32"), FASTEST)
    x = torch.randn(2, 700, I)
    stream = runtime.stream(2, 100)
    for lengths in ([700, 512], [256, 511]):
        with sf.use_impl(FASTEST), torch.no_grad():
            expected = numbers(model(x, lengths))
        stream.reset()
        equal(stream.run(x.numpy(), lengths)["logits"], expected)
