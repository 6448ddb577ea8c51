"""Runs the calls of fuzz_ops.py one after the other, in a process that may crash, and prints the faults of each.

A valid call must return the results of reference.py and leave its arguments as they are. A hostile one must return, or
raise one of torch's types of exceptions with a readable message. The eager entry, given the same arguments, must return
what the operator returns, or decline.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import RATES, STATES, Call, expected, found, least_scale, sensitivity, spoiled, valid_call
from fuzz_changes import hostile_call
from fuzz_functions import own_call
from fuzz_tensors import in_memory, plain, readable
from fuzz_writer import ROOM
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.nested._internal.nested_tensor import NestedTensor

from seqcls_fast import _eager, _ext, ops
from support.checks import compare, leaf, padding, poisoned_memory

SECONDS = 20  # a call that takes longer counts as a hang
SANITIZED = "ASAN_OPTIONS" in os.environ  # AddressSanitizer reserves terabytes of addresses
ADDRESSES = 3 << 30  # bytes that calls may allocate, in addition to those of an idle process
LONGEST = 2000  # characters in a message
RACE_COSTS = (20_000_000, 400_000_000)  # multiply-adds: long enough for changes during a call
WRITER = Path(__file__).with_name("fuzz_writer.py")


def make(seed: int, number: int, races: bool) -> Call:
    """The call with this number."""
    rng = random.Random(f"{seed}/{number}")
    if races:
        return valid_call(seed, number, rng, costs=RACE_COSTS)
    kind = rng.random()
    if kind < 0.06:
        return own_call(seed, number, rng)
    call = valid_call(seed, number, rng)
    return call if kind < 0.45 else hostile_call(call, rng)


def fault_of(call: Call) -> str | None:
    """Runs a call and returns its fault, or None."""
    torch.set_num_threads(call.threads)
    if call.changes:
        try:
            results = call.run()
        except Exception as error:
            return fault_of_error(call, error) or fault_of_eager(call, None)
        return fault_of_eager(call, results) or fault_of_success(call, results)
    before = [(slot, memory_of(t).clone()) for slot, t in call.tensors().items()]
    try:
        getattr(torch.ops.seqcls_fast, call.function).default(*spoiled(call))
        with poisoned_memory():
            results = call.run()
            wrong = fault_of_eager(call, results)
    except Exception as error:
        return f"valid, but raised {type(error).__name__}: {error}"
    if wrong:
        return wrong
    tensors = call.tensors()
    faulthandler.cancel_dump_traceback_later()  # comparing may be slow when the CPUs are busy
    torch.set_num_threads(1)
    changed = [slot for slot, memory in before if not torch.equal(memory, memory_of(tensors[slot]))]
    return f"changed its arguments {changed}" if changed else fault_of_results(call, results) or repeated(call, results)


EAGER = (
    "x", "weights", "directions", "h0", "c0", "cell", "lengths", "batch_sizes", "batch_first", "want_output", "packed",
    "resets", "seed", "h_reset", "c_reset", "rates",
)  # fmt: skip


def eager_arguments(given: dict[str, Any]) -> list[Any]:
    together = {"want_output": True, "packed": None} | given | {"rates": tuple(given[name] for name in RATES)}
    return [together[name] for name in EAGER]


def fault_of_eager(call: Call, results: Any) -> str | None:
    """How the eager entry's results differ from the operator's. They are None if the operator refused the call."""
    if call.function not in ("rnn_forward", "rnn_backward"):
        return None
    given = call.arguments
    if given["impl"] not in ("auto", *_ext.C.impls()):
        return None
    if call.function == "rnn_backward":
        return None if call.changes or given["samples"] else fault_of_eager_gradients(call, results)
    with torch.no_grad(), ops.use_impl(given["impl"]):
        found = _eager.layer(*eager_arguments(given))
    if found is NotImplemented:
        return None
    if results is None:
        # it is not told of these two, and saved values need more memory
        unknown = given["want_saved"] is not False or not isinstance(given["allow_tf32"], bool)
        return None if unknown else "the eager entry runs a call that the operator refuses"
    output, h_n, c_n = found
    wanted = list(results)[: len(results) - bool(given["want_saved"])]
    if given["want_saved"] and not given["want_output"]:
        wanted.pop()
    got = [t for t in (h_n, c_n, output) if t is not None]
    return None if same_numbers(got, wanted) else "the eager entry returns other results than the operator"


def fault_of_eager_gradients(call: Call, results: list[Tensor]) -> str | None:
    """How its gradients differ from those of the operator."""
    given = dict(call.arguments)
    wanted = ["x"] if given["want_d_x"] else []
    wanted += [name for name in STATES if given[name] is not None]
    for name in wanted:
        given[name] = leaf(given[name])
    leaves = [given[name] for name in wanted]
    if given["want_d_weights"]:
        given["weights"] = [leaf(t) for t in given["weights"]]
        leaves += given["weights"]
    with ops.use_impl(given["impl"]):
        found = _eager.layer(*eager_arguments(given)) if leaves else NotImplemented
    if found is NotImplemented:
        return None
    incoming = (given["d_output"], given["d_h_n"], given["d_c_n"])
    pairs = [(t, d) for t, d in zip(found, incoming, strict=True) if d is not None]
    got = torch.autograd.grad([t for t, _ in pairs], leaves, [d for _, d in pairs])
    return None if same_numbers(got, results) else "the eager entry returns other gradients than the operator"


def same_numbers(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        torch.allclose(t, other, rtol=0, atol=0, equal_nan=True) for t, other in zip(found, wanted, strict=True)
    )


def repeated(call: Call, results: Any) -> str | None:
    """How the results with another number of threads, and in memory that was not poisoned, differ from these."""
    torch.set_num_threads(3 - call.threads)
    count = without_gaps(call, results)
    again = call.run()
    return None if same_numbers(again[:count], results[:count]) else "another number of threads gives other results"


def without_gaps(call: Call, results: Any) -> int:
    """How many results are written as a whole: not some elements of `saved`, nor some bytes of packed weights."""
    return len(results) - bool(call.arguments.get("want_saved") or call.function == "pack_weights")


def memory_of(t: Tensor) -> Tensor:
    """The bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def fault_of_results(call: Call, results: Any) -> str | None:
    """How the results of a valid call differ from the reference, or None."""
    try:
        got = found(call, results)
        wanted = expected(call)
        wanted = {name: wanted[name] for name in got}
        scales = least_scale(call, wanted)
        try:
            compare(got, wanted, call.case, least_scale=scales)
        except AssertionError:
            if not call.case.cell.endswith("_layer_norm"):
                raise
            changes = sensitivity(call, wanted)  # seldom needed, and as long as all of the rest
            compare(got, wanted, call.case, least_scale={k: max(scales[k], changes[k]) for k in wanted})
        beyond = padding(call.problem.lengths, call.case.T)
        for name in ("output", "d x"):
            if beyond is not None and name in got:
                assert not got[name][beyond].any(), f"{name} is not 0 beyond the lengths"
    except (AssertionError, ValueError, KeyError) as error:
        return f"wrong results: {error}"
    return None


def fault_of_error(call: Call, error: Exception) -> str | None:
    """The fault of an error, or None if it helps a user: one of torch's types, with a message of some words and not too
    many."""
    text, name = str(error), type(error).__name__
    # errors that these kinds of tensors raise before the operator runs
    refusals = (AssertionError, NotImplementedError, DynamicOutputShapeException)
    if isinstance(error, refusals) and any(isinstance(t, FakeTensor | NestedTensor) for t in call.tensors().values()):
        return None
    if not isinstance(error, RuntimeError | TypeError | ValueError | IndexError | MemoryError):
        return f"raised {name}: {text[:500]}"
    if len(text.split()) < 3 or "API call failed" in text:
        return f"raised {name} without a sentence: {text[:500]!r}"
    # messages of torch and pybind11 that quote whole arguments, list all backends or have a stack trace
    theirs = "xpected a value of type|incompatible function arguments|Could not run .* backend|failed to unpack"
    theirs += "|no tensor arguments to this function"
    if len(text) > LONGEST and not re.search(theirs, text):
        return f"raised {name} of {len(text)} characters: {text[:300]}..."
    return None


def fault_of_success(call: Call, results: Any) -> str | None:
    """The fault of a hostile call that returned, or None. All memory must exist, all rates must be within their range,
    and ordinary tensors with the same numbers must give the same results."""
    tensors = call.tensors()
    if not call.is_operator or not all(map(plain, tensors.values())):
        return None  # the call did not run our kernels
    missing = {name for (name, _), t in tensors.items() if not in_memory(t)}
    if missing:
        return f"returned although the memory of {', '.join(sorted(missing))} is gone"
    for name in RATES:
        if not 0 <= call.arguments.get(name, 0) < 1:
            return f"returned although {name} is {call.arguments[name]}"
    for t in results:
        if t.numel() * t.element_size() > ADDRESSES:
            return f"returned a tensor of shape {tuple(t.shape)}"
    if not all(map(readable, tensors.values())):
        return None
    for slot, t in tensors.items():
        call.set(slot, t.detach().resolve_conj().resolve_neg().contiguous().clone())
    count = without_gaps(call, results)
    for place, (t, again) in enumerate(zip(results[:count], call.run()[:count], strict=True)):
        if not torch.allclose(t, again, rtol=0, atol=0, equal_nan=True):
            return f"result {place} differs from that of tensors of ordinary memory"
    return None


# ---- Races


class Race:
    """Runs calls whose arguments are in memory to which another process writes. Results are not compared, but nothing
    may crash."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(16 + 2 * ROOM))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.words = memoryview(self.memory).cast("q")
        self.writer = subprocess.Popen([sys.executable, str(WRITER), str(path)])

    def __call__(self, call: Call) -> str | None:
        torch.set_num_threads(call.threads)
        self.words[0] = self.words[1] = used = integers = 0
        for slot, t in sorted(call.tensors().items(), key=lambda item: item[1].is_floating_point()):
            size = (t.numel() * t.element_size() + 7) // 8 * 8
            if not size or used + size > ROOM or slot[0] == "packed":  # which must be aligned
                continue
            moved = torch.frombuffer(self.memory, dtype=t.dtype, count=t.numel(), offset=16 + used).view(t.shape)
            call.set(slot, moved.copy_(t))
            used += size
            integers = integers if t.is_floating_point() else used // 8
        self.memory[16 + ROOM : 16 + ROOM + used] = self.memory[16 : 16 + used]
        self.words[0], self.words[1] = integers, used // 8
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            try:
                call.run()
            except Exception as error:
                if fault := fault_of_error(call, error):
                    return fault
        return None


# ---- All calls


def work(seed: int, start: int, stop: int, races: bool, progress: Path) -> None:
    """Runs calls, and prints a line of JSON for each failure."""
    warnings.simplefilter("ignore")
    if not SANITIZED:  # the sanitizer's own report of a crash is better
        faulthandler.enable()
        make(seed, start, races)  # loads modules that the calls import, before memory is limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
    file = os.open(progress, os.O_WRONLY)
    test = Race(progress.with_name("words")) if races else fault_of

    def note(text: str) -> None:
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(errors="replace"), 0)

    for number in range(start, stop):
        note(f"{number}\n")
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        call = make(seed, number, races)
        note(f"{number}\n{call}")
        fault = test(call)
        if fault:
            print(json.dumps({"number": number, "fault": fault, "call": str(call)}), flush=True)
    faulthandler.cancel_dump_traceback_later()


def run_one(seed: int, number: int, races: bool) -> int:
    """Prints a call and runs it in this process."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        call = make(seed, number, races)
        print(call, flush=True)
        fault = Race(Path(folder, "words"))(call) if races else fault_of(call)
    print(fault or "passed")
    return int(bool(fault))


if __name__ == "__main__":
    work(*map(int, sys.argv[1:4]), races=sys.argv[4] == "races", progress=Path(sys.argv[5]))
