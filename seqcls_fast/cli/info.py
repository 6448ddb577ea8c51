"""`info`: the versions, the build and the machine, as bug reports need them."""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from typing import Any

from .._version import __version__
from .shared import add_command, add_out

__all__ = ["add", "collect"]

EXAMPLES = """\
examples:
  seqcls-fast info          a table
  seqcls-fast info --json   for scripts and bug reports
"""
LAYERS = {  # who runs a layer, in words
    "kernels": "compiled kernels",
    "torch": "torch's own, whose bits may depend on batch, chunks and threads",
}


def add(commands: Any) -> None:
    purpose = "the implementations usable here and the one chosen, CPU features, threads, torch, the extension"
    add_out(add_command(commands, "info", purpose, EXAMPLES, _info))


def collect() -> dict[str, Any]:
    """Everything `info` prints, as plain JSON values."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says that the extension is missing
        from .. import _eager, _ext, ops

        impls = list(ops.available_impls())
    module = _ext.C
    build = dict(module.build_info()) if module is not None else {}
    return {
        "version": __version__,
        "extension": "loaded" if module is not None else f"missing: {_ext.why_missing}",
        "eager": "on" if _eager.why_off is None else f"off: {_eager.why_off}",
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


def _info(arguments: argparse.Namespace) -> None:
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else _table(info))


def _table(info: dict[str, Any]) -> str:
    rows = {
        "seqcls_fast": info["version"],
        "extension": info["extension"],
        "eager entry": info["eager"],
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
