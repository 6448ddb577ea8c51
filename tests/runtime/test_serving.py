"""examples/serve.py behind a real server: answers under load, sentences for bad input, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqcls_fast as sf
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model

MISSING = "the service's packages are not installed; `make test-peers` installs them"
httpx = pytest.importorskip("httpx", reason=MISSING)
websockets = pytest.importorskip("websockets", reason=MISSING)
connect = pytest.importorskip("websockets.sync.client", reason=MISSING).connect
for name in ("fastapi", "uvicorn"):
    pytest.importorskip(name, reason=MISSING)

ROOT = Path(__file__).parents[2]


class Server:
    def __init__(self, path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.path = path
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "serve:app"]
        where = ["--port", str(self.port), "--log-level", "warning"]
        environment = os.environ | {"MODEL": str(self.path), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([*command, *where], cwd=ROOT, env=environment)
        for _ in range(600):
            assert self.process.poll() is None, "the server ended"
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait(30)

    def post(self, **more: Any) -> Any:
        return httpx.post(f"http://127.0.0.1:{self.port}/predict", timeout=60, trust_env=False, **more)

    def stream(self) -> Any:
        return connect(f"ws://127.0.0.1:{self.port}/stream", proxy=None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("serving") / "model.sfm"
    to_runtime(sf.SequenceClassifier(3, 16, 4, pooling="mean"), path)
    server = Server(path)
    yield server
    server.kill(signal.SIGTERM)
    assert server.process.returncode in (0, -signal.SIGTERM), "it ends in order"


def sequences(seed: int) -> list[list[list[float]]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 3)).astype(np.float32).tolist() for length in (5, 1, 12)]


def told(socket: Any, message: Any) -> dict[str, Any]:
    socket.send(json.dumps(message))
    found: dict[str, Any] = json.loads(socket.recv(60))
    return found


def follow(server: Server, seed: int) -> None:
    """A stream has the outputs of a stream here, whatever other clients do."""
    stream = Model.open(server.path).stream()
    with server.stream() as socket:
        for chunk in sequences(seed):
            assert told(socket, chunk) == {"output": stream.push(chunk).tolist()}


def test_answers_under_load(server: Server) -> None:
    model = Model.open(server.path)

    def ask(seed: int) -> None:
        found = server.post(json=sequences(seed))
        assert found.status_code == 200
        assert found.json() == {"classes": [0, 1, 2, 3], "probabilities": model.predict_proba(sequences(seed)).tolist()}

    with ThreadPoolExecutor(16) as pool:
        tasks = [pool.submit(*each) for seed in range(60) for each in ((ask, seed), (follow, server, seed))]
        for task in tasks:
            task.result()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 422, "the model does not take this JSON: Expecting property name"),
        (b"[" * 100_000, 422, "the model does not take this JSON: maximum recursion depth exceeded"),
        (b"\xff", 422, "the model does not take this JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"{}", 422, "expected a list of 1 to 256"),
        (b"[]", 422, "expected a list of 1 to 256"),
        (json.dumps([[[0, 0, 0]]] * 257).encode(), 422, "expected a list of 1 to 256"),
        (json.dumps([[[0, 0, 0]] * 10_001]).encode(), 422, "expected at most 10000 steps or characters in each"),
        (json.dumps(["x" * 10_001]).encode(), 422, "expected at most 10000 steps or characters in each"),
        (b'["a text"]', 422, "X[0]: expected an array of numbers, as the model was not trained on texts"),
        (b"[[[1, 2]]]", 422, "X[0]: expected an array (T, 3) but got (1, 2)"),
        (b'[[[1, 2, "three"]]]', 422, "X[0]: expected numbers but got text"),
        (b'[[[1, null, "3"]]]', 422, "X[0]: expected numbers but got str among them"),
        (b"[[[1, 2, 1" + b"0" * 400 + b"]]]", 422, "X[0]: expected numbers that float64 holds but got a larger one"),
        (b"[[[1, 2, NaN]]]", 422, "expected numbers but got NaN, or null"),
        (b"[[[1, 2, null]]]", 422, "expected numbers but got NaN, or null"),
        (b" " * 4_000_001, 413, "body: expected at most 4000000 bytes"),
    ],
)
def test_bad_requests_get_a_sentence(server: Server, body: bytes, status: int, sentence: str) -> None:
    found = server.post(content=body)
    assert found.status_code == status
    assert sentence in found.json()["detail"]


def test_bad_messages_get_a_sentence_and_change_nothing(server: Server) -> None:
    stream, (first, _, last) = Model.open(server.path).stream(), sequences(5)
    with server.stream() as socket:
        assert told(socket, first) == {"output": stream.push(first).tolist()}
        for bad, sentence in (
            ({}, "expected a list of 1 to 10000"),
            ([[1, 2]], "chunk: expected (T, 3) but got (1, 2)"),
            ([["a", 1, 2]], "chunk: expected numbers but got text"),
            (["x" * 10_001], "expected at most 10000 steps or characters in each"),
            ([[1, None, 2]], "expected numbers but got NaN, or null"),
        ):
            assert sentence in told(socket, bad)["error"]
        assert told(socket, last) == {"output": stream.push(last).tolist()}
    with server.stream() as socket:
        socket.send(b"bytes")
        with pytest.raises(websockets.ConnectionClosed, match="expected messages of text"):
            socket.recv(60)


def test_texts(tmp_path: Path) -> None:
    texts = ["a good film", "a dull film"] * 20
    model = sf.TextClassifier(hidden_size=3, embedding_dim=3, epochs=1, holdout=None).fit(texts, ["good", "dull"] * 20)
    to_runtime(model, tmp_path / "texts.sfm")
    other = Server(tmp_path / "texts.sfm")
    try:
        found = other.post(json=texts[:2]).json()
        assert found == {"classes": ["dull", "good"], "probabilities": model.predict_proba(texts[:2]).tolist()}
        for bad, sentence in (
            (["x" * 10_001], "expected at most 10000 steps or characters in each"),
            (["a", None], "X: expected strings but got None at 1"),
            (["a", 3], "X: expected strings but got int at 1"),
        ):
            refused = other.post(json=bad)
            assert refused.status_code == 422
            assert sentence in refused.json()["detail"]
    finally:
        other.kill()


def test_a_model_that_needs_whole_sequences_has_no_streams(tmp_path: Path) -> None:
    to_runtime(sf.SequenceClassifier(3, 8, 2, bidirectional=True), tmp_path / "model.sfm")
    other = Server(tmp_path / "model.sfm")
    try:
        with (
            other.stream() as socket,
            pytest.raises(websockets.ConnectionClosed, match="expected a model that streams, and a free stream"),
        ):
            socket.recv(60)
        assert other.post(json=sequences(0)).status_code == 200
    finally:
        other.kill()


def test_a_kill_ends_all_calls_and_a_new_server_goes_on(server: Server) -> None:
    """No client hangs; one that sends its steps again to the next server gets the same answers."""
    ended: list[str] = []

    def until_killed(seed: int) -> None:
        try:
            while True:
                if seed % 2:
                    server.post(json=sequences(seed)).raise_for_status()
                else:
                    follow(server, seed)
        except (httpx.TransportError, websockets.WebSocketException, OSError) as error:
            ended.append(type(error).__name__)

    threads = [threading.Thread(target=until_killed, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    server.kill()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 8, ended
    server.start()
    follow(server, 3)
    assert server.post(json=sequences(3)).status_code == 200
