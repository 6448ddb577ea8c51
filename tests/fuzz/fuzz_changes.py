"""Hostile changes to a valid call of fuzz_calls.py.

A change returns a description, or None where it does not apply. Those of one tensor are in fuzz_tensors.py.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from fuzz_calls import OPTIONS, RATES, Call
from fuzz_tensors import (
    HUGE,
    ODD,
    Change,
    all_meta,
    of_a_tensor,
    one_dtype,
    one_huge,
    one_kind,
    one_shape,
    plain,
    readable,
    sizes,
    slot_of,
    storage,
)
from torch import Tensor

from seqcls_fast._cells import BUILT_IN

INT64 = (-(2**63), -(2**63) + 1, 2**63 - 1, 2**62, -(2**40), 2**40 + 1, 2**32, 2**31, -1)
NAMES = (
    "", " ", "GRU", "gru ", "gru\0", "\0", "l\u00e5tm", "\U0001f600", "\udc80", "%s%n", "auto-tf32", "-tf32",
    "reference", "x" * 1950, "x" * 5000, "\u00e9" * 3000, "x" * 10**6,
)  # fmt: skip
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e-310, 1e-40, 3e38, -3e38, 1e300, -0.0, 6e-8, 65504.0)


def hostile_call(call: Call, rng: random.Random) -> Call:
    """Changes one to four things of a valid call."""
    wanted = rng.choice((1, 1, 1, 2, 2, 3, 4))
    for _ in range(50):
        try:
            done = rng.choice(CHANGES)(call, rng)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, OverflowError, IndexError):
            done = None  # torch refuses this for such a tensor
        call.changes += [done] if done else []
        if len(call.changes) == wanted:
            break
    ask_for_no_more_than_can_be_done(call)
    # done last, and only where all types are right: torch's message about a wrong type prints the numbers of tensors
    if well_typed(call) and rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2))):
            call.changes += [storage(call, rng) or "nothing to shrink"]
    return call


def well_typed(call: Call) -> bool:
    """Whether the arguments have the types that the operator's schema asks for."""

    def fits(name: str, value: Any) -> bool:
        if name == "weights":
            return isinstance(value, list) and all(type(t) is Tensor for t in value)
        if name in ("cell", "impl"):
            return isinstance(value, str) and value.isprintable()
        if name in RATES:
            return isinstance(value, float)
        if name in ("directions", "samples"):
            return type(value) is int and -(2**63) <= value < 2**63
        if name.startswith("want") or name in ("batch_first", "allow_tf32", "ids"):
            return isinstance(value, bool)
        required = name in ("x", "output", "saved")
        return isinstance(value, Tensor) or (value is None and not required)

    return all(fits(name, value) for name, value in call.arguments.items())


# ---- Numbers


@of_a_tensor(test=lambda t: readable(t) and t.is_floating_point() and t.numel() > 0)
def floats(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    t = t.contiguous().clone()
    if rng.random() < 0.4:
        noise = [rng.randrange(256) for _ in range(1024)]
        raw = t.view(-1).view(torch.uint8)
        raw.copy_(torch.tensor(noise, dtype=torch.uint8).repeat(raw.numel() // 1024 + 1)[: raw.numel()])
        return t, "random bits"
    value = rng.choice(NUMBERS)
    t.view(-1)[rng.randrange(t.numel()) :: rng.choice((1, 2, 10**6))] = value
    return t, f"{value} among its numbers"


def holds_integers(t: Tensor) -> bool:
    return readable(t) and t.dtype == torch.int64 and t.numel() > 0


@of_a_tensor("x", "lengths", "batch_sizes", "seed", test=holds_integers)
def integers(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    t = t.contiguous().clone()
    value = rng.choice((*INT64, 0, 1, int(t.max()) + 1, int(t.max()) * 2, 5, 40))
    t.view(-1)[rng.randrange(t.numel()) :: rng.choice((1, 2, 10**6))] = value
    return t, f"{value} among its numbers"


@of_a_tensor("resets", test=lambda t: readable(t) and t.dtype == torch.bool and t.numel() > 0)
def odd_booleans(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """Bytes that are neither 0 nor 1."""
    t = t.contiguous().clone()
    t.view(-1).view(torch.uint8)[rng.randrange(t.numel()) :: rng.choice((1, 2))] = rng.choice((2, 128, 255))
    return t, "other bytes than 0 and 1"


@of_a_tensor("packed", test=lambda t: readable(t) and t.dtype == torch.uint8 and t.numel() > 0)
def packed_bytes(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """Other bytes in the header of 64, or behind it."""
    t = t.contiguous().clone()
    in_header = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 2, 8, 100))):
        t[rng.randrange(min(len(t), 64) if in_header else len(t))] = rng.randrange(256)
    return t, f"other bytes{' in its header' if in_header else ''}"


def directions(call: Call, rng: random.Random) -> str:
    call.arguments["directions"] = rng.choice((0, 1, 2, 3, 4, *INT64, *ODD))
    return f"directions = {call.arguments['directions']!r}"


def rate(call: Call, rng: random.Random) -> str | None:
    name = rng.choice([name for name in RATES if name in call.arguments] or [""])
    if not name:
        return None
    unusual = (*NUMBERS, -1.0, 1.0, 1.5, 1 - 2**-53, 5e-324, -5e-324, 0.5, 0.5)
    call.arguments[name] = rng.choice((*unusual, *unusual, *ODD, *INT64))
    return f"{name} = {call.arguments[name]!r}"


def samples(call: Call, rng: random.Random) -> str | None:
    if "samples" not in call.arguments:
        return None
    call.arguments["samples"] = rng.choice((0, 1, 2, call.case.B, call.case.B + 1, *INT64, *HUGE, *HUGE, *ODD))
    return f"samples = {call.arguments['samples']!r}"


def one_name(call: Call, rng: random.Random) -> str:
    name = rng.choice(("cell", "impl"))
    call.arguments[name] = rng.choice((*BUILT_IN, *NAMES, *NAMES, *ODD[:6]))
    return f"another {name}"


def one_flag(call: Call, rng: random.Random) -> str:
    flags = [name for name in call.arguments if name.startswith("want") or name in ("batch_first", "allow_tf32", "ids")]
    name = rng.choice(flags)
    call.arguments[name] = rng.choice((not call.arguments[name], not call.arguments[name], *ODD))
    return f"{name} = {call.arguments[name]!r}"


# ---- Exchanged, missing and added tensors


def weight_list(call: Call, rng: random.Random) -> str | None:
    weights = call.arguments["weights"]
    if not isinstance(weights, list) or not weights:
        return None
    weights = list(weights)
    kind = rng.choice(
        ("none", "one less", "one twice", "shuffled", "very many", "repeated", "None", "a tensor", "one more")
    )
    k = rng.randrange(len(weights))
    if kind == "one less":
        del weights[k]
    elif kind == "one twice":
        weights.insert(rng.randrange(len(weights) + 1), weights[k])
    elif kind == "one more":
        weights.append(torch.zeros([rng.randrange(4) for _ in range(rng.randrange(4))]))
    elif kind == "shuffled":
        rng.shuffle(weights)
    elif kind == "very many":
        weights = weights * 30
    elif kind == "repeated":
        weights = weights * rng.choice((2, 3))
    call.arguments["weights"] = {"none": [], "None": None, "a tensor": weights[k]}.get(kind, weights)
    return f"weights: {kind}"


def swapped(call: Call, rng: random.Random) -> str | None:
    first, second = (slot_of(call, rng, test=plain) for _ in range(2))
    if first is None or second is None or first == second:
        return None
    a, b = (call.tensors()[slot] for slot in (first, second))
    call.set(first, b)
    if rng.random() < 0.6:
        call.set(second, a)
    return f"{second[0]} in the place of {first[0]}"


def present_or_not(call: Call, rng: random.Random) -> str | None:
    """Removes an optional tensor, or adds one that is missing, in the right or a wrong shape."""
    optional = ("h0", "c0", "lengths", "batch_sizes", "d_output", "d_h_n", "d_c_n", "packed", *OPTIONS[:4])
    names = [name for name in optional if name in call.arguments]
    name, case = rng.choice(names), call.case
    if call.arguments[name] is not None:
        call.arguments[name] = None
        return f"{name}: None"
    if name == "packed":
        call.arguments[name] = torch.full((rng.choice((0, 64, 5000)),), rng.randrange(256), dtype=torch.uint8)
        return f"{name}: added"
    rows, width = rng.choice(((case.T, case.B), (case.B, case.T))), rng.choice((case.out, case.H))
    dtype = {"resets": torch.bool}.get(name, torch.int64)
    if name in ("lengths", "batch_sizes"):
        shape: tuple[int, ...] = rows[:1]
    elif name in ("resets", "seed"):
        shape = rows if name == "resets" else ()
    else:
        shape = (case.directions, *([] if name.endswith("reset") else [case.B]), width)
        dtype = case.torch_dtype
    call.arguments[name] = torch.full(shape, rng.choice((0, 1, case.T)), dtype=dtype)
    return f"{name}: added"


# Changes that have found the most errors are drawn most often.
CHANGES: tuple[Change, ...] = (
    *(sizes,) * 6, *(one_shape,) * 2, *(one_huge,) * 2, *(integers,) * 3, *(one_kind,) * 3, floats, packed_bytes,
    one_dtype, all_meta, directions, samples, samples, one_name, one_flag, weight_list, swapped, present_or_not,
    present_or_not, *(rate,) * 2, odd_booleans,
)  # fmt: skip


def ask_for_no_more_than_can_be_done(call: Call) -> None:
    """Keeps a call from running for ever. A sequence of 2**40 steps may need little memory and is then valid. Unless
    its rows are short, the call asks for the output, which is too large and is refused."""
    x, lengths = (call.arguments.get(name) for name in ("x", "lengths"))
    if not plain(x) or max(x.shape, default=0) < 10**5 or "want_output" not in call.arguments:
        return
    known = isinstance(lengths, Tensor) and readable(lengths) and lengths.dtype == torch.int64 and lengths.numel()
    if not known or int(lengths.max()) > 1000:
        call.arguments["want_output"] = True
