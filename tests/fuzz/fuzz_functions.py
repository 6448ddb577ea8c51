"""Calls of the functions of seqcls_fast._C (those that are no operators) with unusual arguments, for fuzz_ops.py."""

from __future__ import annotations

import ctypes
import datetime
import random
from typing import Any

import torch
from fuzz_calls import Call
from fuzz_changes import INT64, NAMES
from fuzz_tensors import HUGE, ODD
from torch.utils.dlpack import to_dlpack

from seqcls_fast import _ext
from seqcls_fast._cells import BUILT_IN

FUNCTIONS = (
    "build_info", "cells", "impls", "cpu_features", "cached_packs", "clear_packed_cache", "pool_held", "trim_pool",
    "regimes", "known_devices", "device_limits",
)  # fmt: skip
KEPT = [ctypes.create_string_buffer(bytes(range(1, 256)), 4096)]  # memory for a capsule of another library


def capsule(name: bytes | None) -> Any:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(ctypes.addressof(KEPT[0]), name, None)


def own_call(seed: int, number: int, rng: random.Random) -> Call:
    """A random call of a function of the extension."""
    kind = rng.random()
    if kind < 0.6:
        return Call(seed, number, "plan", plan_arguments(rng), changes=["as listed"])
    if kind < 0.8:
        given = rng.choice((*ODD, to_dlpack(torch.zeros(3)), datetime.datetime_CAPI, capsule(None)))  # type: ignore[attr-defined]
        return Call(seed, number, "register_plugin", {"plugin": given}, changes=["as listed"])
    name = rng.choice([name for name in FUNCTIONS if hasattr(_ext.C, name)])
    few = rng.choice((0, 0, 1, 2))
    return Call(seed, number, name, {str(k): rng.choice(ODD) for k in range(few)}, changes=["as listed"])


def plan_arguments(rng: random.Random) -> dict[str, Any]:
    assert _ext.C is not None
    devices = _ext.C.known_devices()
    limits: Any = dict(devices[rng.choice(sorted(devices))])
    arguments: dict[str, Any] = {
        "cell": rng.choice(tuple(BUILT_IN)), "hidden": rng.randrange(1, 2000), "batch": rng.randrange(1, 5000),
        "precision": rng.choice(("bf16", "fp16", "tf32", "tf32x3")), "directions": rng.choice((1, 2)),
        "backward": rng.random() < 0.5, "regime": rng.choice(("auto", *_ext.C.regimes())), "limits": limits,
    }  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(list(arguments))
        if name == "limits":
            key = rng.choice(sorted(devices["h200"]))
            small = (0, -1, 1, 7, 32, 10**4, 2**31 - 1, -(2**31), 2**31, 2**40)
            value = rng.choice((*small, *small, *ODD))
            changed = limits | {key: value}
            dropped = {k: v for k, v in limits.items() if k != key}
            limits = rng.choice((changed, changed, changed, dropped, {}))
            arguments[name] = rng.choice((limits, limits, limits, limits, limits, rng.choice(ODD)))
        elif name in ("hidden", "batch", "directions"):
            arguments[name] = rng.choice((0, *INT64, *HUGE, *ODD))
        else:
            arguments[name] = rng.choice((*NAMES, *ODD))
    return arguments
