"""`plan`: how a layer would run on a GPU, and the least time that a step can take.

The planner itself is csrc/cuda/plan.h, called through the extension; this file puts its numbers into words. No GPU is
needed: the extension knows the limits of several devices.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

from .._cells import BUILT_IN
from .shared import UsageError, add_command, add_out

__all__ = ["CELLS", "REGIMES", "add", "explain", "table"]

EXAMPLES = """\
examples:
  seqcls-fast plan --cell lstm --hidden 256 --batch 64 --dtype bf16 --device h200
  seqcls-fast plan --cell gru --hidden 512 --dtype fp32 --exact --json
"""
# The extension has these lists too. They are repeated for --help, which must not load it; a test holds them equal.
CELLS = tuple(BUILT_IN)
REGIMES = ("auto", "onchip", "cluster", "grid", "stepwise")
DTYPES = ("bf16", "fp16", "fp32", "fp64")
PASSES = ("forward", "backward")
PRODUCTS = {  # the precisions of a matrix product, in words
    "bf16": "bf16 products",
    "fp16": "fp16 products",
    "tf32": "TF32 products",
    "tf32x3": "three TF32 products for one of float32",
    "fp64": "float64 products",
}
CLOCK_GHZ = {"h200": 1.98}
FLOAT64_WHY = "float64 has no kernel that keeps its weights on the chip"


def add(commands: Any) -> None:
    purpose = "how a layer would run on a GPU, and the least a step can cost; needs no GPU"
    parser = add_command(commands, "plan", purpose, EXAMPLES, _plan)
    add_out(parser)
    parser.add_argument("--cell", required=True, choices=CELLS)
    parser.add_argument("--hidden", required=True, type=_size, metavar="H", help="hidden_size")
    parser.add_argument("--batch", type=_size, default=64, metavar="B", help="rows (default: %(default)s)")
    parser.add_argument("--directions", type=int, choices=(1, 2), default=1, help="2: bidirectional")
    parser.add_argument("--noisy", action="store_true", help="zoneout or a dropout changes the layer")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")
    products = parser.add_mutually_exclusive_group()
    products.add_argument("--tf32", action="store_true", help="fp32: products rounded to TF32, torch's default")
    products.add_argument("--exact", action="store_true", help="fp32: products as exact as float32")
    parser.add_argument("--regime", choices=REGIMES, default="auto", help="force one (default: the first that fits)")
    words = "a known device, or cuda for the one of this machine (default: %(default)s)"
    parser.add_argument("--device", default="h200", help=words)


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 2147483647 but got {text!r}")
    return int(text)


def _plan(arguments: argparse.Namespace) -> None:
    precision = arguments.dtype
    if precision != "fp32" and (arguments.tf32 or arguments.exact):
        raise UsageError(f"--tf32 and --exact: expected with --dtype fp32 but got {precision}")
    if precision == "fp32":
        precision = "tf32x3" if arguments.exact else "tf32"
    layer = (arguments.cell, arguments.hidden, arguments.batch, precision, arguments.directions)
    answer = explain(*layer, regime=arguments.regime, device=arguments.device, noisy=arguments.noisy)
    print(json.dumps(answer, indent=2) if arguments.json else table(answer))


def explain(
    cell: str,
    hidden: int,
    batch: int,
    precision: str,
    directions: int = 1,
    regime: str = "auto",
    device: str = "h200",
    noisy: bool = False,
) -> dict[str, Any]:
    """The plans of both passes as plain JSON values; ``precision`` is one of PRODUCTS, ``device`` a name or "cuda"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error below says that the extension is missing
        from .. import _ext
    if _ext.C is None:
        raise RuntimeError(
            f"plan: needs the compiled extension, in whose place torch's own layers run: {_ext.why_missing}"
        )
    limits, clock = _device(_ext.C, device)
    request = {"cell": cell, "hidden": hidden, "batch": batch, "precision": precision, "directions": directions}
    request["noisy"] = noisy
    passes = {name: _pass(_ext.C, request, name == "backward", regime, limits, clock) for name in PASSES}
    built = bool(_ext.C.build_info()["cuda"])
    return {**request, "device": device, "limits": limits, "clock_ghz": clock, "built": built, **passes}


def _device(extension: Any, name: str) -> tuple[dict[str, Any], float | None]:
    """The limits of a device, and its highest clock where that is known."""
    known = extension.known_devices()
    if name in known:
        return known[name], CLOCK_GHZ.get(name)
    if name != "cuda":
        raise ValueError(f"--device: expected one of {', '.join((*known, 'cuda'))} but got {name!r}")
    import torch

    if not hasattr(extension, "device_limits"):
        raise RuntimeError(
            "--device cuda: the extension was built without CUDA, so torch's own layers run there; name a known device"
        )
    if not torch.cuda.is_available():
        raise RuntimeError("--device cuda: this machine has no CUDA device; name a known device instead")
    index = torch.cuda.current_device()
    return extension.device_limits(index), torch.cuda.get_device_properties(index).clock_rate / 1e6


def _pass(
    extension: Any,
    request: dict[str, Any],
    backward: bool,
    regime: str,
    limits: dict[str, Any],
    clock: float | None,
) -> dict[str, Any]:
    """The plan of one pass, with the planner's reasons against the regimes that it tried before."""
    if request["precision"] == "fp64":  # the planner knows no float64: such layers always run step by step
        fits = regime in ("auto", "stepwise")
        chosen = "stepwise" if fits else regime
        return {"regime": chosen, "fits": fits, "why": FLOAT64_WHY, "rejected": {}}
    plan: dict[str, Any] = extension.plan(**request, backward=backward, regime=regime, limits=limits)
    rejected = {}
    if regime == "auto":
        regimes = extension.regimes()
        for earlier in regimes[: regimes.index(plan["regime"])]:
            tried = extension.plan(**request, backward=backward, regime=earlier, limits=limits)
            rejected[earlier] = tried["why"]
    plan["rejected"] = rejected
    if plan["threads"] and plan["fits"]:
        plan["launched_blocks"] = plan["blocks"] * plan["teams"] * request["directions"]
        plan["floor_cycles"] = max(plan["mma_cycles"], plan["mufu_cycles"])
        plan["floor_us"] = plan["floor_cycles"] / clock / 1e3 if clock else None
    return plan


def table(answer: dict[str, Any]) -> str:
    """The answer as text: a column for each pass."""
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
    cell = answer["cell"] + (", with zoneout or dropouts" if answer["noisy"] else "")
    return (
        f"{cell}, hidden {answer['hidden']}, batch {answer['batch']}, {PRODUCTS[answer['precision']]}, {both}"
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
