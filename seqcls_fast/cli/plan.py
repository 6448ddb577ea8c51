"""What ``python -m seqcls_fast plan`` prints: how a layer would run on a GPU, and the floor of a step.

The planner itself is csrc/cuda/plan.h, asked through the extension; here are only words around its numbers. No GPU is
needed: the limits of known devices are part of the extension.
"""

from __future__ import annotations

from typing import Any

from .. import _ext

PASSES = ("forward", "backward")
PRODUCTS = {
    "bf16": "bf16 products",
    "fp16": "fp16 products",
    "tf32": "TF32 products",
    "tf32x3": "three TF32 products for one of float32",
    "fp64": "float64 products",
}
CLOCK_GHZ = {"h200": 1.98}
FLOAT64_WHY = "float64 has no kernel that keeps its weights on the chip"


class PlanError(Exception):
    """A sentence for whoever asked."""


def explain(
    cell: str,
    hidden: int,
    batch: int,
    precision: str,
    directions: int = 1,
    regime: str = "auto",
    device: str = "h200",
) -> dict[str, Any]:
    """Both passes of a layer as plain JSON values; ``precision`` is one of PRODUCTS, ``device`` a name or "cuda"."""
    if _ext.C is None:
        raise PlanError(
            f"plan: needs the compiled extension, in whose place torch's own layers run: {_ext.why_missing}"
        )
    limits, clock = _device(device)
    request = {"cell": cell, "hidden": hidden, "batch": batch, "precision": precision, "directions": directions}
    passes = {name: _pass(request, name == "backward", regime, limits, clock) for name in PASSES}
    built = bool(_ext.C.build_info()["cuda"])
    return {**request, "device": device, "limits": limits, "clock_ghz": clock, "built": built, **passes}


def _device(name: str) -> tuple[dict[str, int], float | None]:
    """Limits of a device, and its highest clock where that is known."""
    assert _ext.C is not None
    known = _ext.C.known_devices()
    if name in known:
        return known[name], CLOCK_GHZ.get(name)
    if name != "cuda":
        raise PlanError(f"--device: expected one of {', '.join((*known, 'cuda'))} but got {name!r}")
    import torch

    if not hasattr(_ext.C, "device_limits"):
        raise PlanError(
            "--device cuda: the extension was built without CUDA, so torch's own layers run there; name a known device"
        )
    if not torch.cuda.is_available():
        raise PlanError("--device cuda: this machine has no CUDA device; name a known device instead")
    index = torch.cuda.current_device()
    return _ext.C.device_limits(index), torch.cuda.get_device_properties(index).clock_rate / 1e6


def _pass(
    request: dict[str, Any], backward: bool, regime: str, limits: dict[str, int], clock: float | None
) -> dict[str, Any]:
    """What the planner says of one pass, with the reason against every regime it tried before."""
    assert _ext.C is not None
    if request["precision"] == "fp64":  # never gets as far as the planner
        fits = regime in ("auto", "stepwise")
        chosen = "stepwise" if fits else regime
        return {"regime": chosen, "fits": fits, "why": FLOAT64_WHY, "rejected": {}}
    plan = _ext.C.plan(**request, backward=backward, regime=regime, limits=limits)
    rejected = {}
    if regime == "auto":
        regimes = _ext.C.regimes()
        for earlier in regimes[: regimes.index(plan["regime"])]:
            tried = _ext.C.plan(**request, backward=backward, regime=earlier, limits=limits)
            rejected[earlier] = tried["why"]
    plan["rejected"] = rejected
    if plan["threads"] and plan["fits"]:
        plan["launched_blocks"] = plan["blocks"] * plan["teams"] * request["directions"]
        plan["floor_cycles"] = max(plan["mma_cycles"], plan["mufu_cycles"])
        plan["floor_us"] = plan["floor_cycles"] / clock / 1e3 if clock else None
    return plan


def table(answer: dict[str, Any]) -> str:
    """The answer for people: a line per question, a column per pass."""
    rows = [_rows(answer, answer[name]) for name in PASSES]
    labels = list(dict.fromkeys(label for column in rows for label in column))
    lines = [["", *PASSES], *([label, *(column.get(label, "-") for column in rows)] for label in labels)]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    text = ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = [] if answer["built"] else ["", "This build has no CUDA kernels: on a GPU it runs torch's own layers."]
    return "\n".join([_title(answer), "", *text, *note])


def _title(answer: dict[str, Any]) -> str:
    limits = answer["limits"]
    both = "both directions" if answer["directions"] == 2 else "one direction"
    clusters = f"clusters of up to {limits['cluster']}" if limits["cluster"] > 1 else "no clusters"
    return (
        f"{answer['cell']}, hidden {answer['hidden']}, batch {answer['batch']}, {PRODUCTS[answer['precision']]}, {both}"
        f"\n{answer['device']}: {limits['multiprocessors']} multiprocessors, "
        f"{limits['shared_bytes'] / 1024:.0f} KB of shared memory a block, {clusters}"
    )


def _rows(answer: dict[str, Any], plan: dict[str, Any]) -> dict[str, str]:
    rows = {"regime": plan["regime"]}
    if not plan["fits"]:
        return rows | {"cannot run": plan["why"]}
    rows |= {f"not {regime}": why for regime, why in plan["rejected"].items()}
    if not plan.get("threads"):
        if not plan["rejected"] and plan["why"]:
            rows["because"] = plan["why"]
        return rows | {"a step": "one product by cuBLAS per direction and one kernel; nothing stays on the chip"}
    limits, groups = answer["limits"], _count(plan["block_groups"], "group")
    parts, warps = _count(plan["splits"], "part"), _count(plan["threads"] // 32, "warp")
    return rows | {
        "padded H": f"{answer['hidden']} to {plan['padded']}",
        "units": f"{_count(plan['groups'], 'group')} of 16, K in {parts} of {plan['k_tiles']} tiles",
        "team": f"{_count(plan['blocks'], 'block')} of {groups}",
        "batch": f"{_count(plan['teams'], 'team')} a direction, {_count(plan['tiles'], 'tile')} of 8 rows each",
        "launch": f"{_count(plan['launched_blocks'], 'block')} for {limits['multiprocessors']} multiprocessors",
        "threads": f"{plan['threads']} a block, {warps}",
        "registers": f"at most {plan['registers']} a thread, {plan['weight_registers']} of them weights",
        "shared memory": f"{plan['shared_bytes']} of {limits['shared_bytes']} bytes a block",
        "tensor cores": f"{plan['mma_cycles']:.0f} cycles a step",
        "special functions": f"{plan['mufu_cycles']:.0f} cycles a step",
        "floor": _floor(plan, answer["clock_ghz"]),
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _floor(plan: dict[str, Any], clock: float | None) -> str:
    cycles = f"{plan['floor_cycles']:.0f} cycles a step"
    return cycles if clock is None else f"{cycles}, {plan['floor_us']:.2f} us at {clock:.2f} GHz"
