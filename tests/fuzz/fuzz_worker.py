"""Runs the calls of fuzz_ops.py one after the other and says what was wrong with each, in a process that may die of it.

A valid call must return what reference.py says and leave its arguments as they were. A hostile one must return, or
raise one of torch's types of exceptions with a sentence.
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
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import Call, expected, found, least_scale, spoiled, valid_call
from fuzz_changes import hostile_call, in_memory, plain, readable
from fuzz_functions import own_call
from fuzz_writer import ROOM
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.nested._internal.nested_tensor import NestedTensor

from support.checks import compare, padding, poisoned_memory

SECONDS = 20  # a call that takes longer hangs
SANITIZED = "ASAN_OPTIONS" in os.environ  # whose shadow memory takes terabytes of addresses
ADDRESSES = 3 << 30  # bytes that calls may ask for, beyond what an idle process has
LONGEST = 2000  # characters of a message
RACE_COSTS = (20_000_000, 400_000_000)  # multiply-adds: long enough to be overtaken
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
    """What is wrong with how a call went, or None."""
    torch.set_num_threads(call.threads)
    if call.changes:
        try:
            results = call.run()
        except Exception as error:
            return fault_of_error(call, error)
        return fault_of_success(call, results)
    before = [(slot, memory_of(t).clone()) for slot, t in call.tensors().items()]
    try:
        getattr(torch.ops.seqcls_fast, call.function).default(*spoiled(call))
        with poisoned_memory():
            results = call.run()
    except Exception as error:
        return f"valid, but raised {type(error).__name__}: {error}"
    tensors = call.tensors()
    faulthandler.cancel_dump_traceback_later()  # what follows is slow where others need the CPUs
    torch.set_num_threads(1)
    changed = [slot for slot, memory in before if not torch.equal(memory, memory_of(tensors[slot]))]
    return f"changed its arguments {changed}" if changed else fault_of_results(call, results)


def memory_of(t: Tensor) -> Tensor:
    """The bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def fault_of_results(call: Call, results: Any) -> str | None:
    """Of a valid call: what its results have not in common with the reference."""
    try:
        got = found(call, results)
        wanted = expected(call)
        wanted = {name: wanted[name] for name in got}
        compare(got, wanted, call.case, least_scale=least_scale(call, wanted))
        beyond = padding(call.problem.lengths, call.case.T)
        for name in ("output", "d x"):
            if beyond is not None and name in got:
                assert not got[name][beyond].any(), f"{name} is not 0 beyond the lengths"
    except (AssertionError, ValueError, KeyError) as error:
        return f"wrong results: {error}"
    return None


def fault_of_error(call: Call, error: Exception) -> str | None:
    """Whether a refusal is one a user can make use of: torch's types, and a sentence of bounded length."""
    text, name = str(error), type(error).__name__
    # what these kinds of tensors raise themselves, before the operator
    refusals = (AssertionError, NotImplementedError, DynamicOutputShapeException)
    if isinstance(error, refusals) and any(isinstance(t, FakeTensor | NestedTensor) for t in call.tensors().values()):
        return None
    if not isinstance(error, RuntimeError | TypeError | ValueError | IndexError | MemoryError):
        return f"raised {name}: {text[:500]}"
    if len(text.split()) < 3 or "API call failed" in text:
        return f"raised {name} without a sentence: {text[:500]!r}"
    # sentences of torch and pybind11 that quote whole arguments, list all backends or say where they are from
    theirs = "xpected a value of type|incompatible function arguments|Could not run .* backend|failed to unpack"
    if len(text) > LONGEST and not re.search(theirs, text):
        return f"raised {name} of {len(text)} characters: {text[:300]}..."
    return None


def fault_of_success(call: Call, results: Any) -> str | None:
    """Of a hostile call that returned: it must have found its memory, and return what it does of ordinary tensors."""
    tensors = call.tensors()
    if not call.is_operator or not all(map(plain, tensors.values())):
        return None  # another kernel ran, which reads no numbers
    missing = {name for (name, _), t in tensors.items() if not in_memory(t)}
    if missing:
        return f"returned although the memory of {', '.join(sorted(missing))} is gone"
    for t in results:
        if t.numel() * t.element_size() > ADDRESSES:
            return f"returned a tensor of shape {tuple(t.shape)}"
    if not all(map(readable, tensors.values())):
        return None
    for slot, t in tensors.items():
        call.set(slot, t.detach().resolve_conj().resolve_neg().contiguous().clone())
    compared = len(results) - bool(call.arguments.get("want_saved"))  # of saved, not all is written
    for place, (t, again) in enumerate(zip(results[:compared], call.run()[:compared], strict=True)):
        if not torch.allclose(t, again, rtol=0, atol=0, equal_nan=True):
            return f"result {place} differs from that of tensors of ordinary memory"
    return None


# ---- Races


class Race:
    """Runs calls whose arguments lie where the other process writes. What comes of them is not looked at, but nothing
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
            if not size or used + size > ROOM:
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
    if not SANITIZED:  # else its own report of a crash says more
        faulthandler.enable()
        make(seed, start, races)  # so that what is loaded on demand is there
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
    """Shows a call and runs it in this process."""
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
