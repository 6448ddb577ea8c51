"""What the C functions refuse, each with a status and a sentence; streams of many threads; memory."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import FASTEST, Call, Info, Model, Refused, done, library

import seqcls_fast as sf
from seqcls_fast.export import to_runtime

NAN = float("nan")


@pytest.fixture
def layer(tmp_path: Path) -> Model:
    to_runtime(sf.GRU(3, 8), tmp_path / "model.sfm")
    return Model(tmp_path / "model.sfm")


@pytest.fixture
def classifier(tmp_path: Path) -> Model:
    to_runtime(sf.SequenceClassifier(4, 8, 3, vocab_size=10), tmp_path / "model.sfm")
    return Model(tmp_path / "model.sfm")


def refused(status: str, sentence: str, function: Any, *arguments: Any) -> None:
    with pytest.raises(Refused) as error:
        function(*arguments)
    assert (error.value.status, error.value.sentence) == (status, sentence)


def test_description(layer: Model, classifier: Model) -> None:
    info = layer.info
    assert (info.cell, info.dtype, info.features, info.vocabulary, info.outputs) == (b"gru", b"float32", 3, 0, 8)
    assert (info.is_classifier, info.is_streamable, info.layers, info.directions, info.hidden) == (0, 1, 1, 1, 8)
    info = classifier.info
    assert (info.features, info.vocabulary, info.outputs, info.is_classifier) == (0, 10, 3, 1)


def call(stream: Any, **fields: Any) -> None:
    kept = {name: np.ascontiguousarray(value) for name, value in fields.items() if not isinstance(value, int)}
    given = {name: kept[name].ctypes.data if name in kept else value for name, value in fields.items()}
    done(library().seqcls_run(stream.handle, ctypes.byref(Call(**given))))


def test_calls_of_layers(layer: Model) -> None:
    stream, x = layer.stream(2, 4), np.zeros((2, 3, 3), np.float32)
    refused("bad argument", "steps: expected 0 to 2147483648 but got -1", lambda: call(stream, steps=-1))
    refused("bad argument", "x: expected a pointer to the input but got NULL", lambda: call(stream, steps=1))
    ids = np.zeros(6, np.int64)
    refused(
        "bad argument", "ids: expected NULL, as this model takes x, but got a pointer",
        lambda: call(stream, steps=3, x=x, ids=ids),
    )  # fmt: skip
    refused("bad argument", "lengths: expected 0 to 3 but got 4 at 1", stream.run, x, [3, 4])
    refused("bad argument", "lengths: expected 0 to 3 but got -1 at 0", stream.run, x, [-1, 3])
    rows = "rows: expected rows of the stream, 0 to 1, each once, but got "
    refused("bad argument", f"{rows}2", stream.run, x, None, None, [0, 2])
    refused("bad argument", f"{rows}-1", stream.run, x, None, None, [-1, 0])
    refused("bad argument", f"{rows}1 twice", stream.run, x, None, None, [1, 1])
    refused(
        "bad argument", "count: expected 0 to 2, the rows of the stream, but got 3",
        stream.run, np.zeros((3, 1, 3)), None, None, [0, 1, 1],
    )  # fmt: skip
    logits = np.zeros(6, np.float32)
    sentence = "logits: expected NULL for a model without a head but got a pointer"
    refused("bad argument", sentence, lambda: call(stream, steps=3, x=x, logits=logits))
    refused("bad argument", "row: expected -1 to 1 but got 2", stream.reset, 2)
    found = stream.run(x, None, None, [1, 0])  # no mark of a refused call is left
    assert np.isfinite(found["out"]).all()


def test_calls_of_classifiers(classifier: Model) -> None:
    stream, ids = classifier.stream(2, 4), np.zeros((2, 3), np.int64)
    before = stream.run(ids[:, :0])["logits"].copy()
    for value in (10, -1, 2**40):
        bad = ids.copy()
        bad[1, 2] = value
        refused("bad argument", f"ids: expected 0 to 9 but got {value} in row 1 at step 2", stream.run, bad)
        stream.run(bad, [3, 2])  # not read beyond a row's length
        stream.reset()
    np.testing.assert_array_equal(stream.run(ids[:, :0])["logits"], before)
    sentence = "resets: expected NULL for a classifier, whose rows begin anew by seqcls_reset(), but got a pointer"
    refused("bad argument", sentence, stream.run, ids, None, np.zeros((2, 3)))
    x = np.zeros((2, 8), np.float32)
    refused("bad argument", "x: expected NULL, as this model takes ids, but got a pointer",
            lambda: call(stream, steps=1, ids=ids, x=x))  # fmt: skip


def test_handles_and_places(layer: Model) -> None:
    lib = library()
    kept = np.zeros(40)  # of another kind than a handle
    at, stream = kept.ctypes.data, layer.stream()
    for words, status in {
        "model: expected an open model but got NULL": lambda: lib.seqcls_describe(None, ctypes.byref(Info())),
        "model: expected an open model but got another pointer": lambda: lib.seqcls_describe(at, at),
        "info: expected a place for the description but got NULL": lambda: lib.seqcls_describe(layer.handle, None),
        "stream: expected a place for the handle but got NULL": lambda: lib.seqcls_stream_new(layer.handle, 1, 1, None),
        "stream: expected a stream but got NULL": lambda: lib.seqcls_step(None, None, None),
        "stream: expected a stream but got another pointer": lambda: lib.seqcls_reset(at, 0),
        "call: expected what to run but got NULL": lambda: lib.seqcls_run(stream.handle, None),
        "x: expected a pointer to the input but got NULL": lambda: lib.seqcls_step(stream.handle, None, None),
        "path: expected the name of a file but got NULL": lambda: lib.seqcls_open(None, None, at),
        "data: expected the bytes of a file but got NULL": lambda: lib.seqcls_open_memory(None, 9, None, at),
        "data: expected memory aligned to 8 bytes": lambda: lib.seqcls_open_memory(at + 1, 9, None, at),
        "model: expected a place for the handle but got NULL": lambda: lib.seqcls_open(b"x", None, None),
    }.items():
        refused("bad argument", words, lambda status=status: done(status()))
    lib.seqcls_close(None)
    lib.seqcls_stream_close(None)


def test_places_are_emptied_by_every_error(layer: Model) -> None:
    """A program that ignores a status then has a null handle and no address of something else."""
    lib, kept = library(), np.zeros(40)
    at = kept.ctypes.data
    for function in (
        lambda place: lib.seqcls_open(None, None, place),
        lambda place: lib.seqcls_open(b"/none", None, place),
        lambda place: lib.seqcls_open_memory(None, 9, None, place),
        lambda place: lib.seqcls_open_memory(at + 1, 9, None, place),
        lambda place: lib.seqcls_stream_new(None, 1, 1, place),
        lambda place: lib.seqcls_stream_new(at, 1, 1, place),
        lambda place: lib.seqcls_stream_new(layer.handle, 0, 1, place),
    ):
        handle = ctypes.c_void_p(77)
        assert function(ctypes.byref(handle)) != 0
        assert handle.value is None
    for model in (None, at):
        info = Info(cell=b"x", features=5, hidden=7)
        assert lib.seqcls_describe(model, ctypes.byref(info)) != 0
        assert (info.cell, info.features, info.hidden) == (None, 0, 0)


def test_sizes_of_streams(layer: Model) -> None:
    most = 1 << 20
    refused("bad argument", f"rows: expected 1 to {most} but got 0", layer.stream, 0)
    refused("bad argument", f"rows: expected 1 to {most} but got {most + 1}", layer.stream, most + 1)
    refused("bad argument", f"steps: expected 1 to {1 << 31} but got 0", layer.stream, 1, 0)
    with pytest.raises(Refused, match="no memory: steps: expected at most"):
        layer.stream(most, 1 << 31)
    assert library().seqcls_stream_bytes(layer.handle, 0, 1) == 0
    small, large = (library().seqcls_stream_bytes(layer.handle, rows, 16) for rows in (1, 100))
    assert 0 < small < 10_000
    assert small < large < 100 * small


@pytest.mark.parametrize(
    ("more", "words"),
    [({"bidirectional": True}, "has two directions"), ({"pooling": "attention"}, "pools by attention")],
)
def test_models_that_need_whole_sequences(more: Any, words: str, tmp_path: Path) -> None:
    model = sf.SequenceClassifier(3, 4, 2, **more).eval()
    to_runtime(model, tmp_path / "model.sfm")
    stream = Model(tmp_path / "model.sfm", FASTEST).stream(1, 5)
    refused(
        "not streamable",
        f"step: expected a model that reads its input once, from its beginning on, but this one {words}: run whole "
        "sequences with seqcls_run()",
        stream.step, np.zeros((1, 3)),
    )  # fmt: skip
    refused(
        "bad argument",
        "steps: expected at most 5, for which the stream was made, as this model needs whole sequences, but got 6",
        stream.run, np.zeros((1, 6, 3)),
    )  # fmt: skip
    x = torch.randn(1, 5, 3)
    with sf.use_impl(FASTEST), torch.no_grad():
        expected = model(x).numpy()
    for _ in range(2):  # each call is a sequence from its beginning
        np.testing.assert_array_equal(stream.run(x.numpy())["logits"], expected)


def test_nan_propagates(layer: Model) -> None:
    stream = layer.stream(2, 4)
    x = np.zeros((2, 5, 3), np.float32)
    x[1, 2, 1] = NAN
    found = stream.run(x)["out"]
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[1, :2]).all()
    assert np.isnan(found[1, 2:]).all()
    stream.reset(1)
    assert np.isfinite(stream.run(x[:, :1])["out"]).all()


def test_a_stream_outlives_its_model(tmp_path: Path) -> None:
    to_runtime(sf.LSTM(3, 8), tmp_path / "model.sfm")
    model = Model(tmp_path / "model.sfm")
    stream = model.stream(1)
    expected = stream.step(np.ones((1, 3)))
    library().seqcls_close(model.handle)
    model.handle = ctypes.c_void_p()
    stream.reset()
    np.testing.assert_array_equal(stream.step(np.ones((1, 3))), expected)


def test_many_threads_over_one_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = sf.LSTM(5, 24, num_layers=2, batch_first=True)
    to_runtime(module, tmp_path / "model.sfm")
    model, x = Model(tmp_path / "model.sfm", FASTEST), torch.randn(6, 200, 5)
    with sf.use_impl(FASTEST), torch.no_grad():
        expected = module(x)[0].numpy()
    wrong = []

    def follow(k: int) -> None:
        stream = model.stream(1)
        for _ in range(3):
            found = np.stack([stream.step(x[k, t].numpy()) for t in range(200)], 1)
            if found.tobytes() != expected[k : k + 1].tobytes():
                wrong.append(k)
            stream.reset()

    threads = [threading.Thread(target=follow, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_errors_are_of_a_thread(layer: Model) -> None:
    with pytest.raises(Refused):
        layer.stream(0)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(library().seqcls_error()))
    thread.start()
    thread.join()
    assert found == [b""]
    assert library().seqcls_error().startswith(b"rows: expected")
