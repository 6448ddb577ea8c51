"""A sample of the operators' fuzz test, and tests that the fuzzer notices faults. `make fuzz` runs 100,000 calls with
AddressSanitizer and UBSan."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import seqcls_fast
from seqcls_fast import _eager, _ext
from seqcls_fast._cells import BUILT_IN

if _ext.C is None:
    pytest.skip(f"needs the compiled extension: {_ext.why_missing}", allow_module_level=True)

import fuzz_calls
import fuzz_changes
import fuzz_ops
import fuzz_tensors
import fuzz_worker
from fuzz_calls import Call, valid_call

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch, about experimental kinds of tensors
    pytest.mark.alone,  # its processes use every core
]
TESTS = Path(__file__).resolve().parent
SEED = 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs fuzz_ops.py with the package under test, which may not be the installed one."""
    folders = (Path(seqcls_fast.__file__).parents[1], TESTS.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(TESTS / "fuzz_ops.py"), "--seed", str(SEED), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("arguments", [("--calls", "2000"), ("--calls", "40", "--races")], ids=["calls", "races"])
def test_sample(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--failures", "3")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_one_call_alone() -> None:
    done = run("--only", "3")
    assert done.returncode == 0, done.stdout
    assert f"call 3 of seed {SEED}" in done.stdout
    assert "passed" in done.stdout


def test_a_call_depends_on_its_number_alone() -> None:
    def described(number: int) -> str:
        # torch numbers the jagged tensors of a process
        return re.sub(r"\bj\d+\b", "j", str(fuzz_worker.make(SEED, number, races=False)))

    first = [described(number) for number in range(60)]
    again = [described(number) for number in reversed(range(60))]
    addresses = [text for text in first if " at 0x" in text]  # with an object() among the arguments
    assert [text for text in first if text not in addresses] == [text for text in again[::-1] if " at 0x" not in text]
    assert len(addresses) < 20


def test_every_change_is_made() -> None:
    """Every change applies to some call; one that never applied would be useless."""
    for change in {*fuzz_changes.CHANGES, fuzz_tensors.storage}:
        found = (attempt(change, number) for number in itertools.count())
        assert any(itertools.islice(found, 200)), change


def attempt(change: fuzz_tensors.Change, number: int) -> str | None:
    rng = random.Random(number)
    try:
        return change(valid_call(SEED, number, rng), rng)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


# ---- Faults of one call


def valid(function: str = "rnn_forward") -> Call:
    calls = (valid_call(SEED, number, random.Random(number)) for number in itertools.count())
    return next(call for call in calls if call.function == function and call.case.B and call.case.dtype == "float32")


class Tampered(Call):
    """A call whose results are replaced by those of `instead`."""

    def run(self) -> Any:
        return self.instead(self, super().run())


def tampered(call: Call, instead: Any) -> Tampered:
    changed = Tampered(**vars(call))
    changed.instead = staticmethod(instead)
    return changed


def raising(error: Exception) -> Any:
    def instead(call: Call, results: Any) -> Any:
        raise error

    return instead


def off_by_little(call: Call, results: Any) -> Any:
    return [results[0] + 1e-3, *results[1:]]


def one_less(call: Call, results: Any) -> Any:
    return results[:-1]


def writes(call: Call, results: Any) -> Any:
    call.arguments["weights"][0].untyped_storage().fill_(0)
    return results


# Without the eager entry: it does not run what stands in the operator's place.
@pytest.mark.usefixtures("calls_by_python")
@pytest.mark.parametrize(
    ("instead", "fault"),
    [
        (lambda call, results: results, None),
        (off_by_little, "wrong results: h_n"),
        (one_less, "wrong results"),
        (writes, "changed its arguments"),
        (raising(RuntimeError("x: expected something else")), "valid, but raised"),
    ],
)
def test_of_a_valid_call(instead: Any, fault: str | None) -> None:
    found = fuzz_worker.fault_of(tampered(valid(), instead))
    assert found is None if fault is None else found is not None and found.startswith(fault)


@pytest.mark.usefixtures("calls_by_python")
def test_of_gradients() -> None:
    call = valid("rnn_backward")
    call.arguments["want_d_weights"] = True
    assert fuzz_worker.fault_of(call) is None
    found = fuzz_worker.fault_of(tampered(call, lambda call, results: [*results[:-1], results[-1] + 1]))
    assert found is not None
    assert found.startswith("wrong results: d b_hh" if call.case.bias else "wrong results: d w")


@pytest.mark.usefixtures("calls_by_python")
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("x: expected (T, B, I) but got (3,)"), None),
        (torch.OutOfMemoryError("there is too little memory"), None),
        (MemoryError("std::bad_alloc"), "without a sentence"),
        (KeyError("architecture"), "raised KeyError"),
        (RuntimeError("empty(shape) API call failed at x.cpp, line 3"), "without a sentence"),
        (ValueError("much of it " * 300), "of 3300 characters"),
    ],
)
def test_of_a_hostile_call(error: Exception, fault: str | None) -> None:
    call = valid()
    call.changes.append("something")
    found = fuzz_worker.fault_of(tampered(call, raising(error)))
    assert found is None if fault is None else found is not None and fault in found


def test_of_the_eager_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    call = valid()
    call.arguments |= {"impl": "auto", "want_output": True, "want_saved": False}
    results = call.run()
    assert fuzz_worker.fault_of_eager(call, results) is None
    assert "that the operator refuses" in str(fuzz_worker.fault_of_eager(call, None))
    assert "other results" in str(fuzz_worker.fault_of_eager(call, results[:-1]))
    right = _eager.layer(*fuzz_worker.eager_arguments(call.arguments))
    monkeypatch.setattr(_eager, "layer", lambda *_: (right[0], right[1] + 1, right[2]))
    assert "other results" in str(fuzz_worker.fault_of_eager(call, results))
    monkeypatch.setattr(_eager, "layer", lambda *_: NotImplemented)
    assert fuzz_worker.fault_of_eager(call, results) is None


def test_of_the_gradients_of_the_eager_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = (valid_call(SEED, number, random.Random(number)) for number in itertools.count())
    call = next(c for c in calls if c.function == "rnn_backward" and c.arguments["h_reset"] is not None and c.case.B)
    call.arguments |= {"samples": 0, "want_d_weights": True}
    results = call.run()
    assert fuzz_worker.fault_of_eager(call, results) is None
    assert "other gradients" in str(fuzz_worker.fault_of_eager(call, [t + 1 for t in results]))


def test_of_threads() -> None:
    call = valid()
    call.threads = 2
    assert fuzz_worker.fault_of(call) is None
    found = fuzz_worker.repeated(call, [call.run()[0] + 1e-6, *call.run()[1:]])
    assert "another number of threads" in str(found)


def test_what_must_be_refused() -> None:
    call = valid()
    results = call.run()
    call.changes.append("something")
    call.arguments["x"].untyped_storage().resize_(0)
    assert "the memory of x is gone" in str(fuzz_worker.fault_of_success(call, results))
    call = valid()
    call.arguments["zoneout_h"] = 1.0
    assert "zoneout_h is 1.0" in str(fuzz_worker.fault_of_success(call, results))
    call = valid()
    wrong = [torch.zeros_like(results[0]), *results[1:]]
    assert "differs from that of tensors of ordinary memory" in str(fuzz_worker.fault_of_success(call, wrong))
    assert fuzz_worker.fault_of_success(valid(), valid().run()) is None


# ---- Faults of a process


DYING = """
import ctypes, sys, time
folder = sys.argv.pop(1)
sys.path[:0] = [folder, folder + "/.."]
import fuzz_worker
fuzz_worker.SECONDS = 2

class Call:
    changes = ["something"]
    threads = 1
    function, is_operator = "none", False
    def __init__(self, number):
        self.number = number
    def __str__(self):
        return f"this is call {self.number}"
    def tensors(self):
        return {}
    def run(self):
        {11: lambda: ctypes.string_at(1), 13: lambda: time.sleep(60), 14: dict().popitem}.get(self.number, int)()

fuzz_worker.make = lambda seed, number, races: Call(number)
fuzz_worker.work(*map(int, sys.argv[1:4]), races=False, progress=fuzz_worker.Path(sys.argv[5]))
"""


def test_crashes_and_hangs_have_a_number() -> None:
    worker = (sys.executable, "-c", DYING, str(TESTS))
    failures = list(fuzz_ops.run_calls(SEED, 10, 20, False, worker))
    assert [failure.number for failure in failures] == [11, 13, 14]
    assert [failure.call for failure in failures] == [f"this is call {number}" for number in (11, 13, 14)]
    crash, hang, error = (failure.kind for failure in failures)
    assert crash.startswith("crash: Fatal Python error: Segmentation fault")
    assert hang.startswith("hang: Timeout")
    assert error.startswith("raised KeyError")


def test_reports_of_the_sanitizers() -> None:
    report = """==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60b0000a at pc 0x7f2 bp 0x7f
READ of size 4 at 0x60b0000a thread T0
    #0 0x7f29 in float sf::(anonymous namespace)::read_row<float>(sf::Dtype, char const*) (_C.so+0x1)
    #1 0x7f29 in sf::run_forward(sf::Kernels const&, sf::Forward const&) (_C.so+0x1)
    #2 0x7f29 in _PyEval_EvalFrame Include/internal/pycore_ceval.h:73
"""
    kind = fuzz_ops.Failure(1, fuzz_ops.cause_of_death(1, report)).kind
    assert kind == "crash: ERROR: AddressSanitizer: heap-buffer-overflow in read_row < run_forward"
    report = "./csrc/bindings/ops.cpp:78:1: runtime error: signed integer overflow: 2 * 4611686018427387904 cannot be\n"
    kind = fuzz_ops.Failure(1, fuzz_ops.cause_of_death(1, report)).kind
    assert kind.startswith("crash: runtime error: signed integer overflow: # * #")


def test_options_are_drawn() -> None:
    calls = [valid_call(SEED, number, random.Random(number)) for number in range(300)]
    assert {call.case.cell for call in calls} == {*BUILT_IN}
    for name in fuzz_calls.OPTIONS:
        given = [call.arguments[name] for call in calls if name in call.arguments]
        assert 0 < sum(isinstance(value, torch.Tensor) or bool(value) for value in given) < len(given) / 2, name
    samples = [call.arguments.get("samples") for call in calls if call.arguments.get("seed") is not None]
    assert any(samples), "a call with masks and samples"


def test_implementations_are_drawn() -> None:
    calls = [valid_call(SEED, number, random.Random(number)).arguments for number in range(100)]
    assert {call["impl"] for call in calls} == {*fuzz_calls.IMPLS, "auto"}
    assert {call["allow_tf32"] for call in calls if "allow_tf32" in call} == {True, False}
