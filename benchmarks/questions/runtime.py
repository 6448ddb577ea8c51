"""The runtime (csrc/runtime): single steps of a stream, from C and from Python, the start of a process, and sizes.

The row beside RTNeural has a table of its own: where there is no checkout of it, the last such rows stay.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

import seqcls_fast as sf
from seqcls_fast.export import to_onnx, to_runtime
from seqcls_fast.toolkit.timing import MIN_ROUNDS, timed, turns

from .. import stream_engines as engines
from ..harness import Session, no_garbage_collection
from ..layer_cases import Shape
from ..rows import ROOT, Row, Side
from ..stream_engines import SHAPES, Follower, FromC, Stream

CHECKED, BOUND = 100, 1e-4  # steps after which outputs are compared with float64, and how far they may be from it
OF_A_CALL = {"from C": 500, "from Python": 50}  # steps
SINGLE = 10_000  # steps of a sample, of which 99.9 % are faster than the slowest ten
TEXT = Shape(1, 20, 96, 96)  # tokens and widths of the classifier that a process starts with
VOCABULARY, CLASSES = 5000, 4
MEDIAN = "ours, median"
WITHOUT_TORCH = "import sys, numpy\nx = numpy.arange(1, 21)[None]\n"
STARTS = {  # each loads a model and predicts once
    "ours": "from seqcls_fast.runtime import Model\nModel.open(sys.argv[1] + '.sfm').predict_proba(x)",
    "ours with torch": "import torch, seqcls_fast as sf\n"
    f"model = sf.SequenceClassifier({TEXT.I}, {TEXT.H}, {CLASSES}, vocab_size={VOCABULARY}).eval()\n"
    "model.load_state_dict(torch.load(sys.argv[1] + '.pt'))\n"
    "with torch.inference_mode(): model(torch.from_numpy(x)).softmax(1)",
    "onnxruntime": "import onnxruntime\nsession = onnxruntime.InferenceSession(sys.argv[1] + '.onnx')\n"
    "session.run(None, {session.get_inputs()[0].name: x})",
}


def measure(session: Session) -> Iterator[Row]:
    for cell in ("LSTM", "GRU"):
        for shape in SHAPES[:1] if session.quick else SHAPES:
            yield from _rows(session, Stream(cell, *shape))
    yield _start(session)
    yield from _sizes(session)


def has_onnxruntime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def followers(stream: Stream, way: str) -> dict[str, Callable[[Stream], Follower]]:
    """The sides of a table of steps."""
    if way == "from C":
        return {"ours": FromC}
    if way == "beside RTNeural":
        return {"ours": FromC, "RTNeural": engines.from_rtneural}
    found = {"ours": engines.from_python, "ours from C": FromC, "ours in torch": engines.from_torch}
    return found | ({"onnxruntime": engines.from_onnxruntime} if has_onnxruntime() else {})


def _rows(session: Session, stream: Stream) -> Iterator[Row]:
    yield _steps(session, stream, "from C", {})
    if engines.checkout():
        yield _steps(session, stream, "beside RTNeural", {"RTNeural": 1.0 if stream.H < 64 else 1.4})
    yield _steps(session, stream, "from Python", {"onnxruntime": 10.0} if stream.H <= 64 else {})
    yield _percentile(session, stream)


def _steps(session: Session, stream: Stream, way: str, goals: Mapping[str, float]) -> Row:
    """The seconds of a step, of many in a call."""
    row = Row("runtime", f"one step {way}", stream.name, session.threads, {}, goals=dict(goals))
    built = {name: make(stream) for name, make in followers(stream, way).items()}
    expected, calls = stream.expected(CHECKED), {}
    count = OF_A_CALL.get(way, OF_A_CALL["from C"])
    for name, each in built.items():
        each.run(CHECKED)
        error = float(np.abs(each.output() - expected).max())
        row.sides[name] = Side(error=error, note=f"WRONG: error {error:.1e}")
        if error <= BOUND:
            calls[name] = partial(each.run, count)
    for name, side in session.time(calls).items():
        found = [None if value is None else value / count for value in side.rounds]
        least = None if side.least is None else side.least / count
        note = f"at {engines.rtneural_version()}" if name == "RTNeural" else ""
        row.sides[name] = Side(found, least, row.sides[name].error, note)
    for each in built.values():
        each.close()
    return row


def _percentile(session: Session, stream: Stream) -> Row:
    """Of single steps from C, each of which reads the clock too."""
    sides, follower = {"ours": Side(), MEDIAN: Side()}, FromC(stream)
    with no_garbage_collection():
        for _ in range(MIN_ROUNDS if session.quick else session.max_rounds):
            seconds: list[np.ndarray] = []

            def sample(to: list[np.ndarray] = seconds) -> None:
                to[:] = [np.sort(follower.seconds(SINGLE))]

            _, good = session.guard.sample(sample, 1, warm=True)
            sides["ours"].add(float(seconds[0][-SINGLE // 1000]), good)
            sides[MEDIAN].add(float(seconds[0][SINGLE // 2]), good)
    follower.close()
    return Row("runtime", "99.9th percentile from C", stream.name, session.threads, sides, goals={MEDIAN: 0.5})


def _start(session: Session) -> Row:
    """Whole processes: one text, as ids, through a classifier."""
    torch.manual_seed(0)
    path = engines.build_folder() / "text"
    model = sf.SequenceClassifier(TEXT.I, TEXT.H, CLASSES, vocab_size=VOCABULARY).eval()
    to_runtime(model, f"{path}.sfm")
    torch.save(model.state_dict(), f"{path}.pt")
    programs = dict(STARTS)
    if has_onnxruntime() and importlib.util.find_spec("onnxscript"):
        to_onnx(model, (torch.arange(1, TEXT.T + 1)[None],), f"{path}.onnx")
    else:
        del programs["onnxruntime"]
    sides = {name: Side() for name in programs}
    for _, name in turns(programs, 1 if session.quick else 2 * MIN_ROUNDS):
        command = [sys.executable, "-c", WITHOUT_TORCH + programs[name], str(path)]
        seconds, _ = timed(partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL))
        sides[name].rounds.append(seconds)
    goals = {"onnxruntime": 1.0} if "onnxruntime" in sides else {}
    return Row("runtime", "start to the first prediction", f"GRU {TEXT.H}, a text", session.threads, sides, goals=goals)


def _sizes(session: Session) -> Iterator[Row]:
    """Bytes of the libraries that a program loads."""
    library = next(path for path in engines.runtime_folder().glob("libseqcls.*") if path.suffix in (".so", ".dylib"))
    found = {"ours": library, "torch": _largest(Path(torch.__file__).parent / "lib")}
    if spec := importlib.util.find_spec("onnxruntime"):
        found["onnxruntime"] = _largest(Path(spec.origin or "").parent / "capi")
    sides = {name: Side([float(path.stat().st_size)]) for name, path in found.items()}
    yield Row("runtime", "size of the library", library.name, session.threads, sides, unit="bytes")


def _largest(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
