"""`python -m seqcls_fast`: `info` says what this installation runs on, `plan` how a layer would run on a GPU.

Needs torch alone, and nothing but the standard library for `--version` and `--help`: they must answer in milliseconds
and on a machine where torch itself is what is broken.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import __version__

EXAMPLES = """\
examples:
  python -m seqcls_fast info          a table
  python -m seqcls_fast info --json   for scripts and bug reports
  python -m seqcls_fast plan --cell lstm --hidden 256 --batch 64 --dtype bf16 --device h200
"""
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
DTYPES = ("bf16", "fp16", "fp32", "fp64")
REGIMES = ("auto", "onchip", "cluster", "grid", "stepwise")


def collect() -> dict[str, Any]:
    """Everything `info` prints, as plain JSON values."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing extension is a line of the table, not also a warning
        from . import _ext, ops

        impls = list(ops.available_impls())
    module = _ext.C
    return {
        "version": __version__,
        "extension": "loaded" if module is not None else f"missing: {_ext.why_missing}",
        "build": dict(module.build_info()) if module is not None else {},
        "impls": impls,
        "chosen": impls[-1],
        "cpu_features": list(module.cpu_features()) if module is not None else [],
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _table(info: dict[str, Any]) -> str:
    rows = {
        "seqcls_fast": info["version"],
        "extension": info["extension"],
        "build": ", ".join(f"{key} {value}" for key, value in info["build"].items()) or "-",
        "implementation": f"{info['chosen']} (available: {', '.join(info['impls'])})",
        "CPU features": " ".join(info["cpu_features"]) or "unknown without the extension",
        "threads": info["threads"],
        "torch": info["torch"],
        "torch's CUDA": info["torch_cuda"] or "none (a CPU build)",
        "Python": info["python"],
        "platform": info["platform"],
    }
    return "\n".join(f"{name:<16}{value}" for name, value in rows.items())


def _plan(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing extension is the answer, not also a warning
        from . import _plan
    precision = arguments.dtype
    if precision == "fp32":
        precision = "tf32x3" if arguments.exact else "tf32"
    layer = (arguments.cell, arguments.hidden, arguments.batch, precision, arguments.directions)
    try:
        answer = _plan.explain(*layer, regime=arguments.regime, device=arguments.device)
    except _plan.PlanError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if arguments.json else _plan.table(answer))
    return 0


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 2147483647 but got {text!r}")
    return int(text)


def _command(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seqcls-fast",
        description="Fused recurrent layers for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seqcls_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _command(
        commands,
        "info",
        "the implementations usable here and the one chosen, CPU features, threads, torch, the extension",
    )
    plan = _command(commands, "plan", "how a layer would run on a GPU, and the least a step can cost; needs no GPU")
    plan.add_argument("--cell", required=True, choices=CELLS)
    plan.add_argument("--hidden", required=True, type=_size, metavar="H", help="hidden_size")
    plan.add_argument("--batch", type=_size, default=64, metavar="B", help="rows (default: %(default)s)")
    plan.add_argument("--directions", type=int, choices=(1, 2), default=1, help="2: bidirectional")
    plan.add_argument("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")
    products = plan.add_mutually_exclusive_group()
    products.add_argument("--tf32", action="store_true", help="fp32: products rounded to TF32, torch's default")
    products.add_argument("--exact", action="store_true", help="fp32: products as exact as float32")
    plan.add_argument("--regime", choices=REGIMES, default="auto", help="force one (default: the first that fits)")
    plan.add_argument("--device", default="h200", help="a known one, or cuda for this machine's (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        info = collect()
        print(json.dumps(info, indent=2) if arguments.json else _table(info))
        return 0
    if arguments.dtype != "fp32" and (arguments.tf32 or arguments.exact):
        parser.error(f"--tf32 and --exact: expected with --dtype fp32 but got {arguments.dtype}")
    return _plan(arguments)


if __name__ == "__main__":
    sys.exit(main())
