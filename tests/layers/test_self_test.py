"""The check of the CUDA kernels before a first call on a GPU trusts them, with a device that is none.

A fake device answers for its regimes; the comparison with torch's own layer runs on the CPU's kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqcls_fast import _ext, _self_test, ops
from seqcls_fast._autograd import Spec

if _ext.C is None:
    pytest.skip(f"needs the compiled extension: {_ext.why_missing}", allow_module_level=True)

REGIMES = ("onchip", "cluster", "grid", "stepwise")
LIMITS = _ext.C.known_devices()["h200"]


class Fake:
    regimes = REGIMES

    def __init__(self, wrong: dict[str, str | Exception] | None = None, *, name: str = "cuda:0") -> None:
        self.wrong, self.name, self.busy = wrong or {}, name, False
        self.checked: list[str] = []

    def key(self) -> str:
        return f"{self.name} driver 1 build 1"

    def is_busy(self) -> bool:
        return self.busy

    def limits(self) -> dict[str, Any]:
        return LIMITS

    def problem(self, regime: str) -> str | None:
        self.checked.append(regime)
        found = self.wrong.get(regime)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_self_test, "_verdicts", {})
    return tmp_path / "cache"


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process knows, as another one would not know it."""
    return lambda: monkeypatch.setattr(_self_test, "_verdicts", {})


def test_right_kernels_are_trusted_and_checked_once(folder: Path, another_process: Callable[[], None]) -> None:
    device = Fake()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _self_test.failed_regimes(device) == {}
        assert _self_test.failed_regimes(device) == {}
        another_process()
        assert _self_test.failed_regimes(device) == {}
    assert device.checked == list(REGIMES)
    (path,) = folder.glob("*.json")
    assert json.loads(path.read_text()) == {"running": None, "passed": list(REGIMES), "failed": {}}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("gru in fp16, H = 130: d x is off by 2e+00", "d x is off by 2e+00"),
        (TimeoutError("it did not end within 20 s"), "it did not end within 20 s"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            "an illegal memory access was enc",
        ),
    ],
)
def test_a_wrong_regime_is_left_out(wrong: str | Exception, reason: str, another_process: Callable[[], None]) -> None:
    device = Fake({"cluster": wrong})
    with pytest.warns(UserWarning, match=r"torch's own .* cuda:0 .* report") as caught:
        assert list(_self_test.failed_regimes(device) or {}) == ["cluster"]
    (message,) = [str(one.message) for one in caught]
    assert f"cluster: {reason}" in message or reason in message
    assert "more" not in message.replace("more than", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _self_test.failed_regimes(device)
    another_process()
    with pytest.warns(UserWarning, match="cluster"):  # once in each process
        assert _self_test.failed_regimes(device)
    assert device.checked.count("cluster") == 1
    # LSTM of 256 units is planned for a cluster, of 64 for one multiprocessor, of 768 for the grid
    layers = {H: _self_test.trusts(device, "lstm", H, 64, torch.bfloat16, 1, False) for H in (64, 256, 768)}
    assert layers == {64: True, 256: False, 768: True}
    assert _self_test.trusts(device, "lstm", 256, 64, torch.float64, 1, False)
    # zoneout, dropouts and peepholes run where the cell does, a normalisation stepwise
    assert not _self_test.trusts(device, "lstm", 256, 64, torch.bfloat16, 1, False, True)
    assert not _self_test.trusts(device, "lstm_peephole", 256, 64, torch.bfloat16, 1, False)
    assert _self_test.trusts(device, "lstm", 64, 64, torch.bfloat16, 1, False, True)
    assert _self_test.trusts(device, "lstm_layer_norm", 256, 64, torch.bfloat16, 1, False, True)
    assert _self_test.trusts(device, "lstm_layer_norm", 256, 64, torch.bfloat16, 1, False)


def test_a_process_that_dies_in_a_check_leaves_a_mark(folder: Path, another_process: Callable[[], None]) -> None:
    class Dies(Fake):
        def problem(self, regime: str) -> str | None:
            if regime == "grid":
                raise KeyboardInterrupt  # ends the check as a crash would: nothing more is written
            return super().problem(regime)

    with pytest.raises(KeyboardInterrupt):
        _self_test.failed_regimes(Dies())
    another_process()
    device = Fake()
    with pytest.warns(UserWarning, match="grid: the process that checked it died"):
        assert list(_self_test.failed_regimes(device) or {}) == ["grid"]
    assert device.checked == ["stepwise"]  # the others are known


def test_nothing_is_checked_while_a_graph_is_captured() -> None:
    device = Fake()
    device.busy = True
    assert _self_test.failed_regimes(device) is None
    assert not _self_test.trusts(device, "lstm", 64, 8, torch.bfloat16, 1, False)
    assert device.checked == []
    device.busy = False
    assert _self_test.trusts(device, "lstm", 64, 8, torch.bfloat16, 1, False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"running": 3, "passed": [], "failed": {}}', '{"passed": 1}'])
def test_a_damaged_file_is_checked_again(folder: Path, another_process: Callable[[], None], content: str) -> None:
    _self_test.failed_regimes(Fake())
    (path,) = folder.glob("*.json")
    path.write_text(content)
    another_process()
    device = Fake()
    assert _self_test.failed_regimes(device) == {}
    assert device.checked == list(REGIMES)


def test_another_driver_or_build_is_another_verdict(another_process: Callable[[], None]) -> None:
    with pytest.warns(UserWarning, match="grid: wrong"):
        _self_test.failed_regimes(Fake({"grid": "wrong"}))
    another_process()
    device = Fake()
    device.key = lambda: "driver 2"  # type: ignore[method-assign]
    assert _self_test.failed_regimes(device) == {}
    assert device.checked == list(REGIMES)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEQCLS_CACHE", str(tmp_path / "file" / "cache"))
    device = Fake()
    with pytest.warns(UserWarning, match=r"cannot keep the check .* SEQCLS_CACHE names another folder"):
        assert _self_test.failed_regimes(device) == {}
    assert device.checked == list(REGIMES)


def test_processes_at_once_check_one_after_another(folder: Path) -> None:
    """The second waits for the first, and takes its verdict."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_self_test import Fake\nfrom seqcls_fast import _self_test\n"
        "class Slow(Fake):\n"
        "    def problem(self, regime):\n        time.sleep(0.1)\n        return super().problem(regime)\n"
        "device = Slow()\n_self_test.failed_regimes(device)\nprint(len(device.checked))\n"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert sorted(int(run.communicate(timeout=120)[0]) for run in runs) == [0, 0, len(REGIMES)]


def test_threads_check_once() -> None:
    device = Fake()
    threads = [threading.Thread(target=_self_test.failed_regimes, args=(device,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.checked == list(REGIMES)


# -- the comparison ---------------------------------------------------------------------------------------------------

LAYERS = [layer[:2] + layer[3:] for layer in _self_test._LAYERS]


@pytest.mark.parametrize(("cell", "dtype", "rounding"), LAYERS, ids=lambda v: str(v).removeprefix("torch."))
def test_right_kernels_agree_with_torch(cell: str, dtype: torch.dtype, rounding: float) -> None:
    waited = []
    spec = Spec(1, cell, False, True, "auto")
    found, wanted = _self_test.compare(spec, 33, dtype, torch.device("cpu"), lambda: waited.append(1))
    assert found.keys() == wanted.keys()
    assert {"output", "h_n", "d x", "d h0", "d w_ih", "d w_hh", "d b_ih", "d b_hh"} <= found.keys()
    assert _self_test.differences(found, wanted, rounding) == ""
    assert waited == [1]
    for name in found:  # one wrong element of one tensor is seen
        spoiled = found | {name: found[name].clone()}
        spoiled[name].view(-1)[-1] += wanted[name].abs().max()
        assert _self_test.differences(spoiled, wanted, rounding).startswith(f"{name} is off by ")
        spoiled[name].view(-1)[-1] = torch.nan
        assert _self_test.differences(spoiled, wanted, rounding) == f"{name} is off by nan"


def test_under_inference_mode_and_without_gradients() -> None:
    """A first call may come from anywhere."""
    spec = Spec(1, "gru", False, True, "auto")
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            found, wanted = _self_test.compare(spec, 33, torch.float32, torch.device("cpu"))
            assert _self_test.differences(found, wanted, 2**-22) == ""


# -- the choice -------------------------------------------------------------------------------------------------------


def test_auto_asks_and_a_named_implementation_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors on a GPU, which are none here: what decides is called with what they are."""
    asked = []
    monkeypatch.setattr(ops, "_runs_on", lambda index: True)
    monkeypatch.setattr(ops, "_DEVICES", ("cpu", "meta", "cuda"))
    monkeypatch.setattr(ops, "_trusted", lambda index, *layer: asked.append((index, *layer)))
    x = torch.empty(5, 9, 8)
    assert not ops._has_kernels("auto", "cuda", x, "lstm", 64)
    assert ops._has_kernels("grid", "cuda", x, "lstm", 64)
    assert asked == [(None, "lstm", 64)]
    weights = [torch.empty(4 * 64, 8)] * 2 + [torch.empty(4 * 64, 64)] * 2
    assert ops._planned(x, weights, 2, "lstm", None, False)[:5] == ("lstm", 64, 9, torch.float32, 2)
    assert ops._planned(x, weights, 2, "lstm", None, True)[2] == 5
    assert ops._planned(x.view(45, 8), weights, 2, "lstm", torch.tensor([7, 3]), False)[2] == 7
