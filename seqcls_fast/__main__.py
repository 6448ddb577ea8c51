"""`python -m seqcls_fast info`: what this installation runs on, and why, for people and for bug reports.

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
"""


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seqcls-fast",
        description="Fused recurrent layers for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seqcls_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    info = commands.add_parser(
        "info",
        help="the implementations usable here and the one chosen, CPU features, threads, torch, the extension",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else _table(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
