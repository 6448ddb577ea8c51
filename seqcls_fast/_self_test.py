"""Checks the CUDA kernels on a GPU before a first call trusts them: small layers in every regime beside torch's own.

A regime (csrc/cuda/plan.h) that gives other results, fails or does not end is left out on this GPU, with one warning,
and torch's own layers run in its place. The verdict is kept in the user's cache folder, for this GPU, driver and build.
The regime that is being checked is written down first: if the process dies in it, the next one leaves that regime out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _torch_layer
from ._autograd import Layer, Outputs, Spec, reference_layer
from ._cells import Rates
from ._ext import C
from ._files import locked, make_folder, replacing
from ._inputs import autocast_off
from ._shapes import CELLS
from ._spec import without_options

__all__ = ["all_passed", "cache_folder", "failed_regimes", "trusts"]

# cell, dtype, whether TF32 is allowed, and the rounding error of one operand of a product
_LAYERS = (
    ("lstm", torch.bfloat16, False, 2**-8),
    ("gru", torch.float16, False, 2**-11),
    ("lstm", torch.float32, True, 2**-11),
    ("gru", torch.float32, False, 2**-22),
    ("rnn_tanh", torch.bfloat16, False, 2**-8),
)
# Cells that are checked with zoneout and dropouts, in float32 without TF32, in each regime that runs them
_OPTIONS = (
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_tanh_layer_norm",
    "gru_layer_norm",
    "lstm_layer_norm",
    "lstm_peephole",
    "gru_reset_before",
)
_RATES, _OPTION_ROUNDING = Rates(0.2, 0.2, 0.2, 0.2), 2**-20
_SIZES = (33, 65, 130, 200, 300, 520)  # of H: the smallest that a regime can run is taken
_T, _B, _I = 5, 9, 8  # two batch tiles, the second of one row
_ROUNDINGS = 16  # an error may be as large as that of so many roundings, relative to the largest value
_PATIENCE = 20.0  # seconds; a kernel that waits in vain ends itself after less


def cache_folder() -> Path:
    """Where verdicts are kept: ``SEQCLS_CACHE``, or ``seqcls_fast`` in the user's cache folder."""
    if given := os.environ.get("SEQCLS_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqcls_fast"


class Device(Protocol):
    """What the check needs of a GPU; the tests have one that is none."""

    name: str
    regimes: tuple[str, ...]

    def key(self) -> str:
        """Identifies the GPU, its driver and this build."""

    def is_busy(self) -> bool:
        """Whether nothing can be checked now, as a CUDA graph is being captured."""

    def problem(self, regime: str) -> str | None:
        """What is wrong with a regime."""

    def limits(self) -> dict[str, Any]:
        """The limits that plans for it observe."""


class Gpu:
    """A GPU of this machine, by its index."""

    regimes = tuple(C.regimes()) if C is not None else ()

    def __init__(self, index: int) -> None:
        self.index, self.name = index, f"cuda:{index}"

    def key(self) -> str:
        assert C is not None
        assert C.__file__ is not None
        found = torch.cuda.get_device_properties(self.index)
        build = hashlib.sha256(Path(C.__file__).read_bytes()).hexdigest()
        driver = Path("/proc/driver/nvidia/version")
        version = driver.read_text() if driver.exists() else str(torch.version.cuda)
        return "|".join((platform.node(), found.name, version, torch.__version__, build))

    def is_busy(self) -> bool:
        return bool(torch.cuda.is_current_stream_capturing())

    def limits(self) -> dict[str, Any]:
        assert C is not None
        return dict(C.device_limits(self.index))

    def problem(self, regime: str) -> str | None:
        for cell, dtype, tf32, rounding in _LAYERS:
            precision = _precision(dtype, tf32)
            hidden = _smallest(cell, precision, regime, self.limits())
            if hidden is None:
                continue  # no plan for this GPU chooses the regime with this precision
            for resets in (False, True):
                spec = Spec(1, cell, False, True, regime, tf32)
                if wrong := self._differences(spec, hidden, dtype, rounding, resets):
                    return f"{cell} in {precision}, H = {hidden}{', with resets' if resets else ''}: {wrong}"
        for cell in _OPTIONS:
            hidden = _smallest(cell, _precision(torch.float32, False), regime, self.limits(), True)
            if hidden is None:
                continue
            spec = Spec(1, cell, False, True, regime).replace(rates=rates_of(cell))
            if wrong := self._differences(spec, hidden, torch.float32, _OPTION_ROUNDING, True):
                return f"{cell} with zoneout and dropouts, H = {hidden}: {wrong}"
        return None

    def _differences(self, spec: Spec, hidden: int, dtype: torch.dtype, rounding: float, resets: bool) -> str:
        with torch.cuda.device(self.index), torch.cuda.stream(torch.cuda.Stream()), autocast_off("cuda"):
            found, wanted = compare(spec, hidden, dtype, torch.device("cuda", self.index), _wait, resets)
        return differences(found, wanted, rounding)


def rates_of(cell: str) -> Rates:
    """Those of _RATES that a cell takes."""
    of_c, of_candidate = CELLS[cell].has_c, CELLS[cell].gates > 1
    return _RATES._replace(zoneout_c=_RATES.zoneout_c * of_c, candidate_dropout=_RATES.candidate_dropout * of_candidate)


def _precision(dtype: torch.dtype, tf32: bool) -> str:
    """How products of a dtype are formed, by its name in plan.h."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "tf32" if tf32 else "tf32x3")


def _smallest(cell: str, precision: str, regime: str, limits: dict[str, Any], noisy: bool = False) -> int | None:
    """The smallest of _SIZES at which a regime runs both passes of a cell."""
    for hidden in _SIZES:
        assert C is not None
        plan = (C.plan(cell, hidden, _B, precision, 1, backward, regime, limits, noisy) for backward in (False, True))
        if all(each["fits"] for each in plan):
            return hidden
    return None


def _wait() -> None:
    """Waits for the current stream, at most some seconds."""
    done, end = torch.cuda.Event(), time.monotonic() + _PATIENCE
    done.record()
    while not done.query():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not end within {_PATIENCE:.0f} s")
        time.sleep(0)


@torch.inference_mode(False)
@torch.enable_grad()
def compare(
    spec: Spec,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    wait: Callable[[], None] = lambda: None,
    resets: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The results and gradients of a small layer by our kernels, and the same in float64 by torch's own layer; with
    resets, to a learnt state, by the reference."""
    has_c, rows = CELLS[spec.cell].has_c, CELLS[spec.cell].gates * hidden
    state, generator = (1, _B, hidden), torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"x": (_T, _B, _I), "h0": state}
    results: dict[str, tuple[int, ...]] = {"output": (_T, _B, hidden), "h_n": state}
    if has_c:
        shapes["c0"], results["c_n"] = state, state
    if resets:
        shapes |= {"h_reset": (1, hidden)} | ({"c_reset": (1, hidden)} if has_c else {})
    weights: dict[str, tuple[int, ...]] = {"w_ih": (rows, _I), "w_hh": (rows, hidden), "b_ih": (rows,), "b_hh": (rows,)}
    for kind in CELLS[spec.cell].further:
        weights[kind.name] = (kind.rows, hidden) if kind.is_matrix else (kind.rows * hidden,)
    shapes |= weights
    mask = (torch.arange(_T * _B, device=device).view(_T, _B) % 4 == 1) if resets else None
    seed = torch.tensor(1, device=device) if spec.rates is not None else None

    def drawn(wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        scale = {name: hidden**-0.5 if name[:2] in ("w_", "b_") else 1.0 for name in wanted}
        return {n: (torch.randn(s, generator=generator) * scale[n]).to(dtype).to(device) for n, s in wanted.items()}

    def run(layer: Callable[..., Outputs], dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
        of = leaves.get
        options = (mask, seed, of("h_reset"), of("c_reset"))
        tensors = (of("x"), of("h0"), of("c0"), None, None, *options, *(leaves[name] for name in weights))
        found = [t for t in layer(spec, *tensors) if t is not None]
        grads = torch.autograd.grad(found, list(leaves.values()), [t.to(dtype) for t in cotangents.values()])
        names = (*results, *(f"d {name}" for name in leaves))
        return {name: t.detach() for name, t in zip(names, (*found, *grads), strict=True)}

    given, cotangents = drawn(shapes), drawn(results)
    found = run(Layer.apply, dtype)
    wait()
    if resets:
        return found, run(reference_layer, torch.float64)
    return found, run(lambda spec, *tensors: _torch_layer.torch_layer(spec, *without_options(tensors)), torch.float64)


def differences(found: dict[str, Tensor], wanted: dict[str, Tensor], rounding: float) -> str:
    """What is further from the truth than roundings explain; empty if nothing is."""
    wrong = []
    for name, truth in wanted.items():
        error = float((found[name].double() - truth).abs().max() / truth.abs().max())
        if not error <= _ROUNDINGS * rounding:  # NaN is wrong too
            wrong.append(f"{name} is off by {error:.0e}")
    return ", ".join(wrong)


# -- the verdict ------------------------------------------------------------------------------------------------------

_verdicts: dict[str, dict[str, str]] = {}  # by the name of a device: its regimes that failed, with the reason


def failed_regimes(device: Device) -> dict[str, str] | None:
    """The regimes that failed on a device, with the reason of each. Checks them if that was not done before.

    None if they cannot be checked now. Warns once in a process if any failed, or if the verdict cannot be kept.
    """
    if device.name not in _verdicts:
        if device.is_busy():
            return None
        _verdicts[device.name] = failed = _verdict(device)
        if failed:
            reasons = "; ".join(f"{regime}: {reason}" for regime, reason in failed.items())
            warnings.warn(
                f"seqcls_fast runs torch's own recurrent layers on {device.name} in the place of these kernels, which "
                f"failed their check there ({reasons}). Please report this with the output of "
                "`python -m seqcls_fast info`.",
                UserWarning,
                stacklevel=2,
            )
    return _verdicts[device.name]


def all_passed(name: str) -> bool:
    """Whether a device of this name was checked before in this process and every regime passed."""
    return _verdicts.get(name) == {}


def _verdict(device: Device) -> dict[str, str]:
    path = cache_folder() / f"self-test-{hashlib.sha256(device.key().encode()).hexdigest()[:20]}.json"
    try:
        make_folder(path.parent)
        with locked(path.with_suffix(".lock"), path):
            return _checked(device, path)
    except OSError as error:
        warnings.warn(
            f"seqcls_fast cannot keep the check of its kernels on {device.name} in {path.parent}, so that each process "
            f"runs it again ({error}). SEQCLS_CACHE names another folder.",
            UserWarning,
            stacklevel=2,
        )
        return _checked(device, None)


def _checked(device: Device, path: Path | None) -> dict[str, str]:
    """The failed regimes, from the file or by checking those that it does not have. Holds the lock of the file."""
    state = _read(path)
    if state["running"] is not None:
        state["failed"][state["running"]] = "the process that checked it died"
    for regime in device.regimes:
        if regime in state["passed"] or regime in state["failed"]:
            continue
        _write(path, state | {"running": regime})
        try:
            reason = device.problem(regime)
        except (RuntimeError, TimeoutError) as error:
            reason = str(error).partition("\n")[0]
        if reason is None:
            state["passed"].append(regime)
        else:
            state["failed"][regime] = reason
    _write(path, state | {"running": None})
    return dict(state["failed"])


def _read(path: Path | None) -> dict[str, Any]:
    fresh: dict[str, Any] = {"running": None, "passed": [], "failed": {}}
    try:
        found = json.loads(path.read_text()) if path is not None and path.exists() else fresh
        valid = set(found) == set(fresh) and all(type(found[key]) is type(fresh[key]) for key in ("passed", "failed"))
        return found if valid and isinstance(found["running"], str | None) else fresh
    except (ValueError, TypeError):  # a damaged file: check again
        return fresh


def _write(path: Path | None, state: dict[str, Any]) -> None:
    if path is not None:
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(state))


def trusts(
    device: Device,
    cell: str,
    hidden: int,
    batch: int,
    dtype: torch.dtype,
    directions: int,
    tf32: bool,
    noisy: bool = False,
) -> bool:
    """Whether both passes of a layer run in regimes that a device was seen to run right.

    ``noisy``: zoneout or a dropout changes it."""
    failed = failed_regimes(device)
    if not failed:
        return failed is not None
    assert C is not None
    if dtype == torch.float64:
        return "stepwise" not in failed
    precision = _precision(dtype, tf32)
    limits = device.limits()
    layer = (cell, hidden, batch, precision, directions)
    plans = (C.plan(*layer, back, "auto", limits, noisy) for back in (False, True))
    return all(plan["regime"] not in failed for plan in plans)
