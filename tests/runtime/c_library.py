"""libseqcls from Python by ctypes, as a C program uses it. It is built once, into build/runtime of the tree."""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from seqcls_fast._files import locked
from seqcls_fast.ops import available_impls

ROOT = Path(__file__).parents[2]
SANITIZED = "SEQCLS_RUNTIME_SANITIZED" in os.environ  # set by `make asan-runtime`
BUILD = ROOT / "build" / ("runtime-asan" if SANITIZED else "runtime")
FASTEST = "base" if SANITIZED else available_impls()[-1]  # the kernels that the module and the library both have
# What of classifiers the runtime does not compute is left out.
PLAIN_TEXT = {"wide": False}
PLAIN_SERIES = {"convolutions": 0, "normalize": "data", "differences": False, "time": False}
STATUS = ("ok", "bad argument", "no file", "bad file", "unknown part", "not streamable", "no memory")


class Info(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("cell", "dtype", "isa", "about")),
        *((name, ctypes.c_int64) for name in ("features", "vocabulary", "outputs")),
        *((name, ctypes.c_int32) for name in ("is_classifier", "is_streamable", "layers", "directions")),
        *((name, ctypes.c_int64) for name in ("hidden", "projection")),
    )


class Call(ctypes.Structure):
    _fields_ = (
        ("steps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "x_double", "ids", "lengths", "resets", "rows")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("out", "logits", "probabilities", "classes")),
    )


class Texts(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("texts", "sizes")),
        ("are_normal", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("ids", "lengths", "logits", "probabilities", "classes")),
    )


class Refused(Exception):
    """A function returned an error: its status in words, and its sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(f"{STATUS[status]}: {sentence}")
        self.status, self.sentence = STATUS[status], sentence


def isas() -> list[str]:
    """The instruction sets of the library: those of the module. With sanitizers the others take long to compile."""
    flags = runpy.run_path(str(ROOT / "csrc/flags.py"))
    known = [name for name in flags["ISAS"] if flags["kernel_source"](name) == flags["KERNELS"]]
    return ["base"] if SANITIZED else [name for name in known if name in available_impls()]


@lru_cache
def library() -> ctypes.CDLL:
    """The library of this tree, compiled if a source has changed since."""
    build = runpy.run_path(str(ROOT / "csrc/runtime/build.py"))
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(BUILD / "lock", BUILD):
        build["build"](BUILD, build["FLAGS"]["chosen_isas"](",".join(isas()), "isas"), SANITIZED)
    found = ctypes.CDLL(str(BUILD / ("libseqcls.dylib" if sys.platform == "darwin" else "libseqcls.so")))
    found.seqcls_error.restype = ctypes.c_char_p
    found.seqcls_stream_bytes.restype = ctypes.c_size_t
    for name in ("stream_new", "stream_bytes"):
        getattr(found, f"seqcls_{name}").argtypes = (
            [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64] + [ctypes.c_void_p] * (name == "stream_new")
        )  # fmt: skip
    for name in ("close", "stream_close"):
        getattr(found, f"seqcls_{name}").argtypes = [ctypes.c_void_p]
        getattr(found, f"seqcls_{name}").restype = None
    found.seqcls_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    found.seqcls_open_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    found.seqcls_describe.argtypes = found.seqcls_run.argtypes = [ctypes.c_void_p] * 2
    found.seqcls_step.argtypes = [ctypes.c_void_p] * 3
    found.seqcls_reset.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.seqcls_classify.argtypes = [ctypes.c_void_p] * 2
    found.seqcls_state_bytes.restype = ctypes.c_size_t
    found.seqcls_state_bytes.argtypes = [ctypes.c_void_p]
    for name in ("get_state", "set_state"):
        getattr(found, f"seqcls_{name}").argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t]
    return found


def done(status: int) -> None:
    if status:
        raise Refused(status, library().seqcls_error().decode())


def pointer(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Model:
    def __init__(self, source: Path | bytes, isa: str | None = None) -> None:
        self.handle = ctypes.c_void_p()
        name = None if isa is None else isa.encode()
        if isinstance(source, bytes):
            self.memory = np.zeros(len(source) // 8 + 1)
            ctypes.memmove(self.memory.ctypes.data, source, len(source))
            done(library().seqcls_open_memory(self.memory.ctypes.data, len(source), name, ctypes.byref(self.handle)))
        else:
            done(library().seqcls_open(os.fsencode(source), name, ctypes.byref(self.handle)))
        self.info = Info()
        done(library().seqcls_describe(self.handle, ctypes.byref(self.info)))

    def __del__(self) -> None:
        library().seqcls_close(self.handle)

    def stream(self, rows: int = 1, steps: int = 16) -> Stream:
        return Stream(self, rows, steps)

    def classify(self, texts: list[str] | list[bytes], ids: Any = None, lengths: Any = None) -> dict[str, np.ndarray]:
        contents = [text.encode() if isinstance(text, str) else text for text in texts]
        kept = (ctypes.c_char_p * len(contents))(*contents)
        sizes = np.array([len(content) for content in contents], np.uintp)
        shape = (len(contents), self.info.outputs)
        ids = None if ids is None else np.ascontiguousarray(ids, np.int64)
        lengths = None if lengths is None else np.ascontiguousarray(lengths, np.int64)
        found = {"logits": np.full(shape, np.nan, np.float32), "probabilities": np.full(shape, np.nan)}
        found |= {"classes": np.full(len(contents), -1, np.int64)}
        given = {name: pointer(array) for name, array in {"ids": ids, "lengths": lengths, **found}.items()}
        call = Texts(len(contents), ctypes.cast(kept, ctypes.c_void_p), sizes.ctypes.data, **given)
        done(library().seqcls_classify(self.handle, ctypes.byref(call)))
        return found


class Stream:
    def __init__(self, model: Model, rows: int, steps: int) -> None:
        self.rows, self.info, self.handle = rows, model.info, ctypes.c_void_p()
        done(library().seqcls_stream_new(model.handle, rows, steps, ctypes.byref(self.handle)))

    def __del__(self) -> None:
        library().seqcls_stream_close(self.handle)

    def reset(self, row: int = -1) -> None:
        done(library().seqcls_reset(self.handle, row))

    def state(self, row: int = 0) -> np.ndarray:
        found = np.zeros(library().seqcls_state_bytes(self.handle), np.uint8)
        done(library().seqcls_get_state(self.handle, row, found.ctypes.data, found.nbytes))
        return found

    def set_state(self, state: np.ndarray, row: int = 0) -> None:
        done(library().seqcls_set_state(self.handle, row, state.ctypes.data, state.nbytes))

    def step(self, x: np.ndarray) -> np.ndarray:
        given = np.ascontiguousarray(x, np.float32)  # stays alive until the call is over
        out = np.full((self.rows, self.info.outputs), np.nan, np.float32)
        done(library().seqcls_step(self.handle, given.ctypes.data, out.ctypes.data))
        return out

    def run(
        self, x: np.ndarray, lengths: Any = None, resets: Any = None, rows: Any = None, double: bool = False
    ) -> dict[str, np.ndarray]:
        """Everything that a call can write, by the names of seqcls_call."""
        is_ids = bool(self.info.vocabulary)
        name = "ids" if is_ids else "x_double" if double else "x"
        x = np.ascontiguousarray(x, np.int64 if is_ids else np.float64 if double else np.float32)
        count, steps = x.shape[:2]
        shape = (count, self.info.outputs) if self.info.is_classifier else (count, steps, self.info.outputs)
        found = {"out": np.full(shape, np.nan, np.float32)}
        if self.info.is_classifier:
            found |= {
                "logits": np.full(shape, np.nan, np.float32),
                "probabilities": np.full(shape, np.nan),
                "classes": np.full(count, -1, np.int64),
            }
        lengths = None if lengths is None else np.ascontiguousarray(lengths, np.int64)
        resets = None if resets is None else np.ascontiguousarray(resets, np.uint8)
        rows = None if rows is None else np.ascontiguousarray(rows, np.int64)
        call = Call(steps=steps, lengths=pointer(lengths), resets=pointer(resets), rows=pointer(rows), count=count)
        setattr(call, name, x.ctypes.data)
        for name, array in found.items():
            setattr(call, name, array.ctypes.data)
        done(library().seqcls_run(self.handle, ctypes.byref(call)))
        return found
