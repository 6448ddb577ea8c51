"""`python -m seqcls_fast`, also `seqcls-fast`: the parser of every command, and the two that need torch alone.

`--version` and `--help` need nothing but the standard library: they must answer in milliseconds and on a machine where
torch itself is what is broken. The commands around a model are in toolkit/commands/.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ._version import __version__
from .cli import main as cli

EXAMPLES = """\
examples:
  seqcls-fast train reviews.csv --text review --label stars --validation-share 0.1 --out model
  seqcls-fast predict model new.csv --text review > labels.csv
  seqcls-fast info

seqcls-fast COMMAND --help has examples of each. `python -m seqcls_fast` is the same program.
"""
INFO_EXAMPLES = """\
examples:
  seqcls-fast info          a table
  seqcls-fast info --json   for scripts and bug reports
"""
PLAN_EXAMPLES = """\
examples:
  seqcls-fast plan --cell lstm --hidden 256 --batch 64 --dtype bf16 --device h200
  seqcls-fast plan --cell gru --hidden 512 --dtype fp32 --exact --json
"""
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
DTYPES = ("bf16", "fp16", "fp32", "fp64")
REGIMES = ("auto", "onchip", "cluster", "grid", "stepwise")
LAYERS = {  # what runs a layer, in words
    "kernels": "compiled kernels",
    "torch": "torch's own, whose bits may depend on batch, chunks and threads",
}


def collect() -> dict[str, Any]:
    """Everything `info` prints, as plain JSON values."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing extension is a line of the table, not also a warning
        from . import _ext, ops

        impls = list(ops.available_impls())
    module = _ext.C
    build = dict(module.build_info()) if module is not None else {}
    return {
        "version": __version__,
        "extension": "loaded" if module is not None else f"missing: {_ext.why_missing}",
        "build": build,
        "impls": impls,
        "chosen": impls[-1],
        "layers": {"cpu": "kernels" if build else "torch", "cuda": "kernels" if build.get("cuda") else "torch"},
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
        "layers on a CPU": LAYERS[info["layers"]["cpu"]],
        "layers on CUDA": LAYERS[info["layers"]["cuda"]],
        "CPU features": " ".join(info["cpu_features"]) or "unknown without the extension",
        "threads": info["threads"],
        "torch": info["torch"],
        "torch's CUDA": info["torch_cuda"] or "none (a CPU build)",
        "Python": info["python"],
        "platform": info["platform"],
    }
    return "\n".join(f"{name:<16}{value}" for name, value in rows.items())


def _info(arguments: argparse.Namespace) -> None:
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else _table(info))


def _plan(arguments: argparse.Namespace) -> None:
    precision = arguments.dtype
    if precision != "fp32" and (arguments.tf32 or arguments.exact):
        raise cli.UsageError(f"--tf32 and --exact: expected with --dtype fp32 but got {precision}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing extension is the answer, not also a warning
        from .cli import plan as _plan
    if precision == "fp32":
        precision = "tf32x3" if arguments.exact else "tf32"
    layer = (arguments.cell, arguments.hidden, arguments.batch, precision, arguments.directions)
    answer = _plan.explain(*layer, regime=arguments.regime, device=arguments.device)
    print(json.dumps(answer, indent=2) if arguments.json else _plan.table(answer))


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 2147483647 but got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="seqcls-fast",
        description="Sequence classification on fused recurrent layers for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seqcls_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    cli.add_commands(commands)
    purpose = "the implementations usable here and the one chosen, CPU features, threads, torch, the extension"
    cli.add_command(commands, "info", purpose, INFO_EXAMPLES, _info)
    purpose = "how a layer would run on a GPU, and the least a step can cost; needs no GPU"
    plan = cli.add_command(commands, "plan", purpose, PLAN_EXAMPLES, _plan)
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
    return cli.run(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
