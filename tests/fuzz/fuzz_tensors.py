"""Hostile changes of one tensor among the arguments of a call: its shape, its kind, its memory. For fuzz_changes.py.

Several changes may be made to one call, so a change reads a tensor's numbers only where `readable` says that they are
in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from fuzz_calls import Call, Slot
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from seqcls_fast._cells import BUILT_IN

Change = Callable[[Call, random.Random], str | None]

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


class PlainSubclass(Tensor):
    pass


FAKES = FakeTensorMode(allow_non_fake_inputs=True)


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
