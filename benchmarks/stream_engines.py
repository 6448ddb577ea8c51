"""One recurrent layer that follows a stream, step by step with its state: ours from C and from Python, and others.

RTNeural's models are compiled for their shapes. It is asked if RTNEURAL names a checkout of it; nothing of it is kept.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import runpy
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seqcls_fast as sf
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model

from . import peers, rows
from .layer_cases import Case, Problem, Shape

SHAPES = ((1, 8), (1, 16), (1, 32), (1, 64), (32, 32), (50, 64), (64, 128))  # (I, H)
COUNT = 64  # steps of input, which are followed over and over
RTNEURAL = ["-O3", "-march=native", "-ffast-math", "-DRTNEURAL_DEFAULT_ALIGNMENT=32", "-DRTNEURAL_NAMESPACE=RTNeural"]


@dataclass
class Follower:
    """Runs some steps, from those of the last call on, and tells the last output."""

    run: Callable[[int], object]
    output: Callable[[], np.ndarray]
    close: Callable[[], object] = lambda: None


@dataclass
class Stream:
    """A layer, and the input that it follows."""

    cell: str
    I: int
    H: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.module = getattr(sf, self.cell)(self.I, self.H).eval()
        self.x = np.random.default_rng(0).standard_normal((COUNT, self.I)).astype(np.float32)

    @property
    def name(self) -> str:
        return f"{self.cell} ({self.I}, {self.H})"

    def expected(self, steps: int) -> np.ndarray:
        """The last output after so many steps, in float64."""
        plain = getattr(torch.nn, self.cell)(self.I, self.H).double()
        plain.load_state_dict(self.module.state_dict())
        x = torch.from_numpy(np.resize(self.x, (steps, self.I))).double()
        with torch.no_grad():
            return plain(x)[0][-1].numpy()

    def file(self) -> Path:
        path = build_folder() / f"{self.cell}-{self.I}-{self.H}.sfm"
        to_runtime(self.module, path)
        return path


@cache
def build_folder() -> Path:
    folder = rows.ROOT / "build" / "bench-runtime"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def runtime_folder() -> Path:
    """The folder of libseqcls, which is built with every instruction set."""
    build = runpy.run_path(str(rows.ROOT / "csrc/runtime/build.py"))
    build["build"](build["OUT"], build["FLAGS"]["chosen_isas"](None, "isas"), False)
    return Path(build["OUT"])


def _library(name: str, flags: list[str], version: str, linked: list[str]) -> ctypes.CDLL:
    """Compiles a source of this folder, once for each text of it, flags and version, and loads it.

    It is linked without the flags: with -ffast-math, GCC would link code that lets the process flush denormals to zero.
    """
    source = Path(__file__).with_name(name)
    digest = hashlib.sha256("\n".join([source.read_text(), *flags, version]).encode()).hexdigest()[:12]
    library = build_folder() / f"{source.stem}-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=build_folder()) as folder:
            built, compiled = Path(folder) / library.name, str(Path(folder) / "source.o")
            compiler = runpy.run_path(str(rows.ROOT / "csrc/flags.py"))["COMPILER"]
            options = ["-std=c++17", "-fPIC", "-fvisibility=hidden", *flags]
            subprocess.run([*compiler, *options, "-c", str(source), "-o", compiled], check=True)
            subprocess.run([*compiler, "-shared", compiled, *linked, "-o", str(built)], check=True)
            built.replace(library)
    return ctypes.CDLL(str(library))


@cache
def _steps() -> ctypes.CDLL:
    folder = runtime_folder()
    library = _library("stream_steps.cpp", ["-O2", f"-I{folder}"], rows.csrc_hash(), [str(folder / "libseqcls.a")])
    library.steps_open.restype = ctypes.c_void_p
    return library


class FromC(Follower):
    def __init__(self, stream: Stream) -> None:
        out = np.zeros(stream.H, np.float32)
        self.handle = ctypes.c_void_p(_steps().steps_open(os.fsencode(stream.file())))
        assert self.handle, "steps_open: expected a stream but got none"
        self.arguments = (
            self.handle, ctypes.c_void_p(stream.x.ctypes.data), ctypes.c_int64(COUNT), ctypes.c_int64(stream.I),
            ctypes.c_void_p(out.ctypes.data),
        )  # fmt: skip

        def run(steps: int) -> None:
            _steps().steps_run(*self.arguments, ctypes.c_int64(steps))

        super().__init__(run, lambda: out, lambda: _steps().steps_close(self.handle))

    def seconds(self, steps: int) -> np.ndarray:
        """Of each step."""
        found = np.zeros(steps)
        _steps().steps_time(*self.arguments, ctypes.c_int64(steps), ctypes.c_void_p(found.ctypes.data))
        return found


def checkout() -> Path | None:
    return Path(os.environ["RTNEURAL"]).resolve() if os.environ.get("RTNEURAL") else None


def rtneural_version() -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout()), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"commit {done.stdout.strip()}" if done.stdout else "an unknown commit"


@cache
def _rtneural() -> ctypes.CDLL:
    """With Eigen, its fastest way at these sizes, if the checkout has it, else with plain C++."""
    root = checkout()
    assert root is not None
    eigen = root / "modules" / "Eigen"
    flags = [*RTNEURAL, f"-I{root}", "-DSHAPES(X)=" + " ".join(f"X({i}, {h})" for i, h in SHAPES)]
    if (eigen / "Eigen" / "Dense").exists():
        flags += ["-DRTNEURAL_USE_EIGEN=1", "-DEIGEN_STACK_ALLOCATION_LIMIT=0", f"-I{eigen}"]
    library = _library("rtneural_steps.cpp", flags, rtneural_version(), [])
    library.rtneural_open.restype = ctypes.c_void_p
    return library


def from_rtneural(stream: Stream) -> Follower:
    order = [0, 1, 2, 3] if stream.cell == "LSTM" else [1, 0, 2]  # of its gates among torch's
    state = stream.module.state_dict()
    weights = [
        np.concatenate([np.split(state[f"{name}_l0"].numpy(), len(order))[gate] for gate in order])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    out = np.zeros(stream.H, np.float32)
    pointers = [ctypes.c_void_p(each.ctypes.data) for each in (*weights, stream.x)]
    sizes = ctypes.c_int64(stream.I), ctypes.c_int64(stream.H)
    library = _rtneural()
    handle = ctypes.c_void_p(
        library.rtneural_open(int(stream.cell == "LSTM"), *sizes, *pointers, ctypes.c_int64(COUNT))
    )
    assert handle, "SHAPES: expected all shapes that are asked for"
    to = ctypes.c_void_p(out.ctypes.data)
    return Follower(
        lambda steps: library.rtneural_run(handle, to, ctypes.c_int64(steps)),
        lambda: out,
        lambda: library.rtneural_close(handle),
    )


def _in_python(stream: Stream, step: Callable[[np.ndarray], np.ndarray]) -> Follower:
    given = [row.copy() for row in stream.x]
    last: list[Any] = [None]

    def run(steps: int) -> None:
        for i in range(steps):
            last[0] = step(given[i % COUNT])

    return Follower(run, lambda: np.asarray(last[0]).reshape(-1))


def from_python(stream: Stream) -> Follower:
    followed = Model.open(stream.file()).stream()
    return _in_python(stream, followed.step)


def from_torch(stream: Stream) -> Follower:
    """Our module in torch, which is given its state and returns the next one."""
    state: Any = None

    def step(x: np.ndarray) -> np.ndarray:
        nonlocal state
        with torch.inference_mode():
            out, state = stream.module(torch.from_numpy(x)[None], state)
        return out.numpy()

    return _in_python(stream, step)


def from_onnxruntime(stream: Stream) -> Follower:
    """Its session keeps nothing: the states go in and come out at each step."""
    import onnxruntime

    case = Case(stream.cell, Shape(1, 1, stream.I, stream.H), state=True)
    zeros = torch.zeros(1, 1, stream.H)
    states = (zeros, zeros) if stream.cell == "LSTM" else (zeros,)
    problem = Problem(case, stream.module.state_dict(), torch.zeros(1, 1, stream.I), None, states)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(peers.onnx_model(problem), settings, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    feeds = {name: tensor.numpy() for name, tensor in problem.inputs.items()}

    def step(x: np.ndarray) -> np.ndarray:
        feeds["x"] = x.reshape(1, 1, -1)
        found = dict(zip(names, session.run(None, feeds), strict=True))
        for name, next_name in (("h0", "h_n"), ("c0", "c_n")):
            if name in feeds:
                feeds[name] = found[next_name]
        return feeds["h0"]

    return _in_python(stream, step)
