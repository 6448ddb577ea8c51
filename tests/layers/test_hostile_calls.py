"""Calls that must not crash the process: tensors without the memory they claim, sizes beyond 64 bits, values that
another thread changes during the call, objects of a wrong kind. Each raises a clear error or returns a right result."""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import seqcls_fast as sf
from seqcls_fast import _ext

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

T, B, I, H = 4, 3, 5, 6
LENGTHS = torch.tensor([4, 2, 0])
GATES = {"gru": 3, "lstm": 4}


def forward_arguments(cell: str = "lstm", **changes: Any) -> dict[str, Any]:
    """The arguments of rnn_forward by name, each weight under a name of its own."""
    G = GATES[cell]
    arguments = {
        "x": torch.randn(T, B, I), "w_ih": torch.randn(G * H, I), "w_hh": torch.randn(G * H, H),
        "b_ih": torch.randn(G * H), "b_hh": torch.randn(G * H), "h0": torch.randn(1, B, H),
        "c0": torch.randn(1, B, H) if cell == "lstm" else None, "lengths": LENGTHS.clone(), "batch_sizes": None,
        "cell": cell, "want_output": True, "want_saved": False, "impl": "auto",
    }  # fmt: skip
    return arguments | changes


def forward(a: dict[str, Any]) -> list[Tensor]:
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr") if a.get(name) is not None]
    return torch.ops.seqcls_fast.rnn_forward(
        a["x"], weights, a["h0"], a["c0"], a["lengths"], a["batch_sizes"], a["cell"], 1, False,
        a["want_output"], a["want_saved"], a["impl"],
    )  # fmt: skip


def backward(a: dict[str, Any], samples: int = 0) -> list[Tensor]:
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if a[name] is not None]
    return torch.ops.seqcls_fast.rnn_backward(
        a["d_output"], a["d_h_n"], a["d_c_n"], a["x"], weights, a["h0"], a["c0"], a["lengths"], a["batch_sizes"],
        a["output"], a["saved"], a["cell"], 1, False, True, True, samples, a["impl"],
    )  # fmt: skip


def backward_arguments(**changes: Any) -> dict[str, Any]:
    a = forward_arguments(want_saved=True, **changes)
    h_n, c_n, output, saved = forward(a)
    d_steps = {"d_output": torch.ones_like(output), "d_h_n": torch.ones_like(h_n), "d_c_n": torch.ones_like(c_n)}
    return a | d_steps | {"output": output, "saved": saved}


# -- storage that was freed or made smaller ---------------------------------------------------------------------------

SHRUNK: tuple[tuple[str, Callable[[Tensor], int]], ...] = (
    ("freed", lambda t: 0),
    ("one byte short", lambda t: t.untyped_storage().nbytes() - 1),
)
FORWARD_TENSORS = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0", "lengths")
BACKWARD_TENSORS = (*FORWARD_TENSORS, "output", "saved", "d_output", "d_h_n", "d_c_n")


@pytest.mark.parametrize(("how", "size"), SHRUNK, ids=[how for how, _ in SHRUNK])
@pytest.mark.parametrize(
    ("direction", "name"),
    [*(("forward", name) for name in FORWARD_TENSORS), *(("backward", name) for name in BACKWARD_TENSORS)],
)
def test_a_tensor_without_its_memory_is_refused(
    direction: str, name: str, how: str, size: Callable[[Tensor], int]
) -> None:
    arguments, call = (forward_arguments, forward) if direction == "forward" else (backward_arguments, backward)
    a = arguments()
    a[name].untyped_storage().resize_(size(a[name]))
    with pytest.raises(RuntimeError, match=f"^{name}: expected memory for shape .* but its storage holds"):
        call(a)


def test_the_same_of_packed_rows_and_ids() -> None:
    for name, x in (("x", torch.randn(3, I)), ("x", torch.zeros(3).long()), ("batch_sizes", torch.randn(3, I))):
        a = forward_arguments(x=x, h0=None, c0=None, lengths=None, batch_sizes=torch.tensor([2, 1]))
        forward(a)
        a[name].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"^{name}: expected memory"):
            forward(a)


def test_a_module_whose_weights_were_freed() -> None:
    """A framework that shards or offloads weights leaves them so when it does not bring them back."""
    gru = sf.GRU(I, H)
    gru.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^w_hh: expected memory for shape \(18, 6\)"):
        gru(torch.randn(T, B, I))


def test_a_view_at_the_end_of_its_storage_is_taken() -> None:
    """A tensor needs memory up to its last element and no more."""
    a = forward_arguments()
    memory = torch.randn(1000)
    for name in ("x", "w_ih", "h0"):
        t = a[name]
        a[name] = memory[1000 - t.numel() :].view(t.shape)
    whole = a | {name: a[name].clone() for name in ("x", "w_ih", "h0")}
    assert all(map(torch.equal, forward(a), forward(whole)))


# -- sizes beyond what 64 bits hold -----------------------------------------------------------------------------------


def wide(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros of any shape, in the memory of one element."""
    return torch.zeros(1, dtype=dtype).expand(shape) if 0 not in shape else torch.empty(shape, dtype=dtype)


FAR = 2**58
ALONE: dict[str, Any] = {"h0": None, "c0": None, "lengths": None}  # so that no other tensor has the size that is tested
OVERFLOWS: dict[str, dict[str, Any]] = {
    "steps": ALONE | {"x": wide(2**60 + 2**18, 1, 1)},
    "steps of no rows": ALONE | {"x": wide(2**62, 0, 1), "want_saved": True},
    "rows": ALONE | {"x": wide(1, FAR, I), "lengths": wide(FAR, dtype=torch.int64)},
    "features": ALONE | {"x": wide(1, 1, FAR), "w_ih": wide(24, FAR)},
    "columns of w_ih, for ids": ALONE | {"x": torch.zeros(T, B).long(), "w_ih": wide(24, FAR)},
    "rows of w_ih": ALONE | {"w_ih": wide(FAR, I), "w_hh": wide(FAR, 1), "b_ih": None, "b_hh": None},
    "projection": ALONE | {"w_hr": wide(2**58, H), "w_hh": wide(24, 2**58)},
    "memory": ALONE | {"x": wide(2**44, B, I)},
    "memory for lengths": ALONE | {"x": wide(T, 2**40, I), "lengths": wide(2**40, dtype=torch.int64)},
    "packed steps": ALONE | {"batch_sizes": wide(2**45, dtype=torch.int64), "x": wide(3, I)},
}


@pytest.mark.parametrize("what", OVERFLOWS)
def test_sizes_that_overflow_are_refused(what: str) -> None:
    with pytest.raises(RuntimeError, match=r"expected at most|fits into memory") as caught:
        forward(forward_arguments(**OVERFLOWS[what]))
    assert len(str(caught.value)) < 2000


def test_samples_that_overflow_are_refused() -> None:
    a = backward_arguments(x=torch.randn(T, 0, I), h0=None, c0=None, lengths=None)
    with pytest.raises(RuntimeError, match="expected at most 281474976710656 elements"):
        backward(a, samples=2**61 + 2**20)


@pytest.mark.parametrize("ids", [False, True])
def test_steps_that_no_row_reaches_cost_nothing(ids: bool) -> None:
    """Steps beyond all lengths are not run (2**40 would take days), and without output they write nothing."""
    x = wide(2**40, B, dtype=torch.int64) if ids else wide(2**40, B, I)
    a = forward_arguments(x=x, lengths=torch.tensor([0, 2, 1]), want_output=False)
    found = forward(a)
    wanted = forward(a | {"x": x[:2]})
    assert all(map(torch.equal, found, wanted))
    assert torch.equal(found[0][:, 0], a["h0"][:, 0])


# -- values that another thread changes -------------------------------------------------------------------------------


def while_changing(change: Callable[[], None], work: Callable[[], None], seconds: float = 1.0) -> None:
    """Repeats ``work`` while another thread repeats ``change``. A RuntimeError of ``work`` must be one of ours."""
    done = threading.Event()

    def changing() -> None:
        while not done.is_set():
            change()

    other = threading.Thread(target=changing)
    other.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                work()
            except RuntimeError as error:
                assert "expected" in str(error)  # noqa: PT017  (an error is one of the two right answers)
    finally:
        done.set()
        other.join()


@pytest.mark.alone
def test_ids_changed_during_the_call() -> None:
    """Each id is read once, so the id that was checked is used. A changed id would be read far outside the weights."""
    ids = torch.randint(I, (1000, 40))
    a = backward_arguments(x=ids, h0=None, c0=None, lengths=None)

    def change() -> None:  # changes the id that is used last, long after it was checked
        ids[-1, -1] = 2**40
        ids[-1, -1] = 0

    def work() -> None:
        forward(a)
        backward(a)

    while_changing(change, work)


@pytest.mark.alone
def test_batch_sizes_changed_during_the_call() -> None:
    sizes = torch.full((50,), 20)
    a = forward_arguments(x=torch.randn(1000, I), h0=None, c0=None, lengths=None, batch_sizes=sizes)

    def change() -> None:
        sizes[0] = 1
        sizes[0] = 20

    while_changing(change, lambda: forward(a) and None)


@pytest.mark.alone
def test_lengths_changed_during_the_call() -> None:
    lengths = torch.full((B,), T)
    a = forward_arguments(lengths=lengths)

    def change() -> None:
        lengths.fill_(2**40)
        lengths.fill_(T)

    while_changing(change, lambda: forward(a) and None)


@pytest.mark.alone
def test_weights_changed_during_a_call_are_not_kept() -> None:
    """Packed weights are kept under a hash of the weights. When weights change between hashing and packing, the new
    packed weights must not be found later under the hash of the old ones."""
    assert _ext.C is not None
    gru, x, delay = sf.GRU(256, 512), torch.randn(1, 1, 256), random.Random(0)
    versions = [[torch.randn_like(p) / 20 for p in gru.parameters()] for _ in range(2)]

    def load(version: list[Tensor]) -> None:
        for p, values in zip(gru.parameters(), version, strict=True):
            p.copy_(values)

    def call() -> Tensor:
        with torch.no_grad():
            return gru(x)[1]

    def sound(version: list[Tensor]) -> Tensor:
        _ext.C.clear_packed_cache()  # type: ignore[union-attr]
        load(version)
        return call()

    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        wanted = [sound(version) for version in versions]
        for _ in range(100):
            _ext.C.clear_packed_cache()
            load(versions[0])
            running = pool.submit(call)
            time.sleep(delay.random() / 1000)  # hashing and packing take about half a millisecond
            load(versions[1])
            running.result()
            for version, want in zip(versions, wanted, strict=True):
                load(version)
                assert torch.equal(call(), want)


# -- objects of a wrong kind, and messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [None, 3, datetime.datetime_CAPI], ids=["None", "a number", "a capsule of others"])  # type: ignore[attr-defined]
def test_only_our_plugins_are_registered(plugin: object) -> None:
    assert _ext.C is not None
    with pytest.raises(TypeError, match=r"^plugin: expected a capsule named seqcls_fast\.Plugin\.\d+ but got"):
        _ext.C.register_plugin(plugin)


LIMITS = {"architecture": 90, "multiprocessors": 132, "shared_bytes": 232448, "cluster": 16, "warps": 16}


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({}, "expected a whole number for 'architecture' but got none"),
        (LIMITS | {"warps": 0}, "expected a whole number from 1 to 2147483647 for 'warps' but got '0'"),
        (LIMITS | {"warps": 2**80}, "expected a whole number from 1 to 2147483647 for 'warps' but got '1208925"),
        (LIMITS | {"cluster": "many"}, "expected a whole number from 1 to 2147483647 for 'cluster' but got ''many''"),
        (LIMITS | {"cluster": 1.5}, "expected a whole number from 1 to 2147483647 for 'cluster' but got '1.5'"),
    ],
)
def test_limits_of_a_plan(limits: dict[str, Any], sentence: str) -> None:
    assert _ext.C is not None
    with pytest.raises(RuntimeError, match=f"^limits: {sentence}"):
        _ext.C.plan("gru", 64, 64, "bf16", 1, False, "auto", limits)


@pytest.mark.parametrize("argument", ["cell", "impl"])
def test_names_in_messages_are_short_and_printable(argument: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{argument}: expected one of .* but got '\\?\\[31m") as caught:
        forward(forward_arguments() | {argument: "\x1b[31m" + "long" * 1000})
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_shapes_in_messages_are_short() -> None:
    with pytest.raises(RuntimeError, match=r"^x: expected \(T, B, I\) but got shape \(1, 1, .*, \.\.\.\)$") as caught:
        forward(forward_arguments(x=torch.zeros(1).expand([1] * 1000)))
    assert len(str(caught.value)) < 500


def test_tensors_without_values_are_refused_alike() -> None:
    """The fake kernels, which take meta tensors, make the same checks."""
    a = forward_arguments()
    meta = {name: t.to("meta") if isinstance(t, Tensor) else t for name, t in a.items()}
    with pytest.raises(RuntimeError, match=r"^cell: expected one of rnn_tanh, rnn_relu, gru, lstm, .* but got 'none'$"):
        forward(meta | {"cell": "none"})


@pytest.mark.parametrize("name", ["x", "output", "saved"])
@pytest.mark.parametrize("meta", [False, True])
def test_none_is_no_tensor(name: str, meta: bool) -> None:
    """torch's dispatcher takes None as a tensor, so the ops check for it."""
    a = backward_arguments()
    if meta:
        a = {key: t.to("meta") if isinstance(t, Tensor) else t for key, t in a.items()}
    for call in (forward, backward) if name == "x" else (backward,):
        with pytest.raises(RuntimeError, match=f"^{name}: expected a tensor but got None$"):
            call(a | {name: None})


@pytest.mark.parametrize("meta", [False, True])
def test_names_and_shapes_of_python_s_checks_are_short(meta: bool) -> None:
    device, weights = "meta" if meta else "cpu", ([torch.zeros(3 * H, I)], [torch.zeros(3 * H, H)])
    w_ih, w_hh = ([w.to(device) for w in group] for group in weights)
    x = torch.zeros(1, device=device)
    for arguments in (
        {"x": x.expand([1] * 1000)},
        {"x": x.expand(T, B, I), "lengths": torch.zeros([1] * 1000, dtype=torch.int64, device=device)},
        {"x": x.expand(T, B, I), "cell": "x" * 5000},
        {"x": x.expand(T, B, I), "impl": "x" * 5000},
    ):
        for impl in ("auto", "reference", "torch"):
            with pytest.raises((RuntimeError, ValueError)) as caught:
                sf.rnn_layer(**{"w_ih": w_ih, "w_hh": w_hh, "cell": "gru", "impl": impl} | arguments)
            assert len(str(caught.value)) < 500
