"""Hostile changes to a valid call of fuzz_calls.py.

A change returns a description, or None where it does not apply. Several changes may be made to one call, so a change
reads a tensor's numbers only where `readable` says that they are in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from fuzz_calls import OPTIONS, RATES, Call, Slot
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from seqcls_fast._cells import BUILT_IN

Change = Callable[[Call, random.Random], str | None]

INT64 = (-(2**63), -(2**63) + 1, 2**63 - 1, 2**62, -(2**40), 2**40 + 1, 2**32, 2**31, -1)
# Sizes that must be refused, because they need too much memory. Smaller ones above a few thousand would only be slow.
HUGE = (
    2**31, 2**31 + 1, 2**32 - 1, 2**40, 2**48, 2**58, 2**58 + 2**18, 2**59 + 2**20, 2**60, 2**60 + 2**18, 2**61 + 2**20,
    2**62, 2**62 - 1, 2**63 - 1, 2**63 - 2**20,
)  # fmt: skip
ODD = (None, 3, -1, 2.5, "x", b"x", [], [1], (), {}, object(), True, 2**70, float("nan"), 1j, torch.float32)
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint64, torch.bool, torch.complex64, torch.complex128, torch.complex32,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
NAMES = (
    "", " ", "GRU", "gru ", "gru\0", "\0", "l\u00e5tm", "\U0001f600", "\udc80", "%s%n", "auto-tf32", "-tf32",
    "reference", "x" * 1950, "x" * 5000, "\u00e9" * 3000, "x" * 10**6,
)  # fmt: skip
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e-310, 1e-40, 3e38, -3e38, 1e300, -0.0, 6e-8, 65504.0)


class PlainSubclass(Tensor):
    pass


FAKES = FakeTensorMode(allow_non_fake_inputs=True)


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


def plain(t: Any) -> bool:
    """Whether `t` is an ordinary CPU tensor, of which views can be made."""
    usual = type(t) in (Tensor, torch.nn.Parameter, PlainSubclass)
    return usual and t.device.type == "cpu" and t.layout == torch.strided and not (t.is_quantized or t.is_nested)


def readable(t: Tensor) -> bool:
    """Whether the numbers of `t` can be read: they are few and all in memory."""
    return plain(t) and t.numel() <= 10**6 and in_memory(t)


def in_memory(t: Tensor) -> bool:
    """Whether the storage of a plain tensor is large enough for its shape and strides."""
    reach = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True)) + 1 if t.numel() else 0
    return not reach or (t.storage_offset() + reach) * t.element_size() <= t.untyped_storage().nbytes()


def slot_of(call: Call, rng: random.Random, *names: str, test: Callable[[Tensor], bool] = readable) -> Slot | None:
    """A random tensor among the arguments, with one of `names` if any are given. Every name is equally likely."""
    slots = [slot for slot, t in call.tensors().items() if test(t) and slot[0] in (names or call.arguments)]
    name = rng.choice(sorted({name for name, _ in slots})) if slots else None
    return rng.choice([slot for slot in slots if slot[0] == name]) if slots else None


def of_a_tensor(*names: str, test: Callable[[Tensor], bool] = readable) -> Callable[..., Change]:
    """Turns a function of a tensor and a random generator, which returns another tensor and a description, into a
    change."""

    def decorate(function: Callable[[Tensor, random.Random], tuple[Any, str] | None]) -> Change:
        def change(call: Call, rng: random.Random) -> str | None:
            slot = slot_of(call, rng, *names, test=test)
            done = function(call.tensors()[slot], rng) if slot else None
            if slot is None or done is None:
                return None
            call.set(slot, done[0])
            return f"{slot[0]}: {done[1]}"

        return change

    return decorate


# ---- Shapes


def sizes(call: Call, rng: random.Random) -> str | None:
    """Changes one or two of T, B, I, H and P in all tensors that have them."""
    case = call.case
    given = {"T": case.T, "B": case.B, "I": case.I, "H": case.H} | ({"P": case.P} if case.proj else {})
    new = dict(given)
    for name in rng.sample(sorted(given), rng.choice((1, 1, 2))):
        huge = rng.choice(HUGE)
        if huge >= 2**40:
            huge //= rng.choice((1, 1, 1, 2, 3, 4, 16))
        new[name] = rng.choice((0, huge, huge, rng.randrange(1, 40)))
    T, B, I, H, P = new["T"], new["B"], new["I"], new["H"], new.get("P", 0)
    D, rows, out = case.directions, case.G * H, P or H
    outer = (T * B,) if case.layout == "packed" else (B, T) if case.layout == "batch_first" else (T, B)
    per_step = (T * B,) if case.layout == "packed" else (T, B)
    weights = [(rows, I), (rows, out), *([(rows,)] * 2 if case.bias else []), *([(P, H)] if case.proj else [])]
    cell = BUILT_IN[case.cell]
    weights += [(kind.rows, H) if kind.is_matrix else (kind.rows * H,) for kind in cell.further]
    saved = cell.saved + (cell.gates == 1 and _is_positive(call.arguments.get("zoneout_h")))
    shapes: dict[str, tuple[int, ...]] = {
        "x": outer if case.ids else (*outer, I), "h0": (D, B, out), "c0": (D, B, H), "lengths": (B,),
        "output": (*outer, D * out), "d_output": (*outer, D * out), "d_h_n": (D, B, out), "d_c_n": (D, B, H),
        "saved": (D, *per_step, saved * ((H + 15) // 16 * 16)), "batch_sizes": (T,),
        "resets": outer, "h_reset": (D, out), "c_reset": (D, H), "seed": (),
    }  # fmt: skip
    for (name, place), t in call.tensors().items():
        if name == "packed":
            continue
        shape = weights[min(place // D, len(weights) - 1)] if name == "weights" else shapes[name]
        if plain(t) and t.dim() == len(shape):
            if name == "batch_sizes" and (T, B) != (case.T, case.B):
                t = torch.tensor([B])
            t = resized(t, shape)
            small = name == "saved" and t.numel() < 10**6
            call.set((name, place), t.contiguous() if small else t)
    return "sizes " + ", ".join(f"{name} = {size}" for name, size in new.items() if size != given[name])


def _is_positive(rate: Any) -> bool:
    return isinstance(rate, float) and rate > 0


def resized(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A part of `t`, or its first elements repeated with stride 0."""
    if not t.numel() and 0 not in shape:
        t = t.new_zeros([1] * t.dim())
    for d, size in enumerate(shape):
        t = t.narrow(d, 0, min(size, t.size(d)) if t.size(d) >= size or t.size(d) == 0 else 1)
    return t.expand(shape) if all(a in (1, b) for a, b in zip(t.shape, shape, strict=True)) else t.new_zeros(shape)


@of_a_tensor(test=plain)
def one_shape(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    d = rng.randrange(max(t.dim(), 1))
    size = t.size(d) if t.dim() else 0
    kind = rng.randrange(9)
    if kind == 0:
        return t.unsqueeze(rng.randrange(t.dim() + 1)), "one dimension more"
    if kind == 1:
        return t.select(d, 0), "one dimension less"
    if kind == 2:
        return t.reshape(-1) if t.numel() < 10**6 else t, "one dimension"
    if kind == 3:
        return t.reshape([*t.shape, *[1] * rng.choice((60, 1000))]), "many dimensions"
    if kind == 4:
        return t.narrow(d, 0, size - 1), f"dimension {d} is 1 smaller"
    if kind == 5:
        return torch.cat([t, t.narrow(d, 0, 1)], d), f"dimension {d} is 1 larger"
    if kind == 6:
        return t.new_zeros(()), "no dimension"
    if kind == 7:
        return t.transpose(d, rng.randrange(t.dim())), "transposed"
    return t.narrow(d, 0, 0), f"dimension {d} is 0"


@of_a_tensor(test=plain)
def one_huge(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    shape = list(t.shape)
    for d in rng.sample(range(t.dim()), min(t.dim(), rng.choice((1, 1, 2)))):
        shape[d] = rng.choice(HUGE)
    if rng.random() < 0.3:
        shape[rng.randrange(t.dim())] = 0
        return t.new_empty(shape), f"empty, of shape {tuple(shape)}"
    return resized(t, tuple(shape)), f"expanded to {tuple(shape)}"


# ---- Kinds of tensors, and memory


@of_a_tensor()
def one_dtype(t: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    dtype = rng.choice(DTYPES)
    return t.to(dtype), f"{dtype}"


@of_a_tensor()
def one_kind(t: Tensor, rng: random.Random) -> tuple[Any, str]:
    kinds: dict[str, Callable[[], Any]] = {
        "meta": lambda: t.to("meta"),
        "sparse": t.to_sparse,
        "sparse by rows": t.to_sparse_csr,
        "mkldnn": t.to_mkldnn,
        "quantized": lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor(list(t)),
        "nested, jagged": lambda: torch.nested.nested_tensor(list(t), layout=torch.jagged),
        "fake": lambda: FAKES.from_tensor(t),
        "a parameter": lambda: torch.nn.Parameter(t),
        "of a subclass": lambda: t.as_subclass(PlainSubclass),
        "with a gradient": lambda: t.detach().requires_grad_(),
        "of inference": lambda: _of_inference(t),
        "negated when it is read": lambda: torch._neg_view(t),
        "conjugated when it is read": lambda: t.to(torch.complex64).conj(),
        "an imaginary part": lambda: torch.complex(t.float(), t.float()).conj().imag,
        "overlapping": lambda: t.as_strided(t.shape, [1] * t.dim(), t.storage_offset()),
        "undefined": lambda: None,
        "odd": lambda: rng.choice(ODD),
        "a list": lambda: [t],
        "an array": t.numpy,
    }
    kind = rng.choice(list(kinds))
    return kinds[kind](), kind


def _of_inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def all_meta(call: Call, rng: random.Random) -> str | None:
    convert = rng.choice((lambda t: t.to("meta"), FAKES.from_tensor))
    for slot, t in call.tensors().items():
        if plain(t):
            call.set(slot, convert(t))
    return "all without numbers"


@of_a_tensor(test=lambda t: readable(t) and not (t.is_neg() or t.is_conj()))  # torch copies these before a call
def storage(t: Tensor, rng: random.Random) -> tuple[Tensor, str] | None:
    memory = t.untyped_storage()
    before = memory.nbytes()
    after = rng.choice((0, 0, before // 2, before - t.element_size(), rng.randrange(before + 1)))
    if not (0 <= after < before and memory.resizable()):
        return None
    memory.resize_(after)
    return t, f"its storage shrunk from {before} to {after} bytes"


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


@of_a_tensor("x", "lengths", "batch_sizes", "seed", test=lambda t: readable(t) and t.dtype == torch.int64 and t.numel() > 0)
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
