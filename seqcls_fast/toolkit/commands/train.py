"""`train`: from a file of examples to a saved model, and what it takes to train the same model again."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ... import __version__
from .._extras import need
from . import options
from .shared import (
    ESTIMATORS,
    UsageError,
    add_command,
    check_folder,
    plain,
    print_json,
    read_examples,
    save_pictures,
    write_text,
)

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast train reviews.csv --text review --label stars --validation-share 0.1 --out model
  seqcls-fast train sensors.ts --kind series --missing mean --cell lstm --epochs 50 --out model
  seqcls-fast train train.jsonl --validation dev.jsonl --patience 3 --report report.html --pictures pictures --out model
  seqcls-fast train --config model/command.json --out again    the same model once more
"""


def add(commands: Any) -> None:
    purpose = "learn a classifier from a file and save it as a directory"
    parser = add_command(commands, "train", purpose, EXAMPLES, _train)
    parser.usage = "%(prog)s DATA --out DIR [options]"
    options.add_settings(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    result.add_argument("--overwrite", action="store_true", help="replace what --out holds, once training is done")
    result.add_argument("--report", metavar="FILE.html", help="the validation's report as a page")
    result.add_argument("--pictures", metavar="DIR", help="learning curves and, with a validation, its pictures")
    options.add_parameters(parser)


def _train(arguments: argparse.Namespace) -> None:
    settings, chosen = options.settings_of(arguments)
    validated = settings["validation"] is not None or settings["validation_share"] is not None
    if arguments.report and not validated:
        raise UsageError("--report: expected with --validation or --validation-share, which it is about")
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: expected a new or empty directory (--overwrite replaces a saved model)")
    check_folder(arguments.report)
    need("numpy", "seqcls-fast train")
    from .. import estimators

    columns = {name: settings[name] for name in ("kind", "text", "label", "weight", "delimiter")}
    columns["format"] = settings["input_format"]
    x, y, weight = read_examples(settings["data"], **columns)
    validation = None
    if settings["validation"] is not None:
        validation = read_examples(settings["validation"], **columns | {"weight": None})[:2]
    elif settings["validation_share"] is not None:
        x, y, weight, validation = _split(x, y, weight, settings["validation_share"], chosen["seed"])
    command = options.command_line(settings, chosen, arguments.out)
    record = _record(command, settings, chosen)
    estimator = getattr(estimators, ESTIMATORS[settings["kind"]])(**chosen | _class_weight(chosen, y))
    start = time.perf_counter()
    estimator.fit(x, y, validation=validation, sample_weight=weight)
    seconds = time.perf_counter() - start
    estimator.save(out)
    write_text(out / "command.json", json.dumps(plain(record), indent=2, ensure_ascii=False) + "\n")
    report = None if validation is None else estimator.evaluate(*validation)
    if arguments.report and report is not None:
        lengths = estimator.encoder_.encode(x).lengths
        write_text(arguments.report, report.to_html(history=estimator.history_, lengths=lengths))
    if arguments.pictures:
        save_pictures(Path(arguments.pictures), report, estimator, x)
    if arguments.json:
        print_json({
            "out": arguments.out, "classes": estimator.classes_, "rows": len(x), "seconds": seconds,
            "validation_rows": 0 if validation is None else len(validation[0]), "history": estimator.history_,
            "report": None if report is None else report.to_dict(), "command": shlex.join(["seqcls-fast", *command]),
        })  # fmt: skip
        return
    what = f"{len(x)} {'series' if settings['kind'] == 'series' else 'texts'}, {len(estimator.classes_)} classes"
    print(f"{what}, {len(estimator.history_)} epochs, {seconds:.1f} s: saved to {out}")
    if report is not None:
        print(f"\nvalidation\n{report}")


def _record(command: list[str], settings: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """What stands in command.json; `--config` reads its settings back."""
    import torch

    names = [settings["data"], *([settings["validation"]] if settings["validation"] else [])]
    return {
        "command": shlex.join(["seqcls-fast", *command]),
        "settings": settings | chosen,
        "sha256": {str(name): _sha256(name) for name in names},
        "versions": {"seqcls_fast": __version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
    }


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _split(x: list[Any], y: list[Any], weight: list[float] | None, share: float, seed: int | None) -> tuple[Any, ...]:
    """What to learn from and what to hold back, as fit(validation=share) would, but in hand for the report."""
    from .. import labels

    kept, held = labels.stratified(labels.to_targets(y, labels.classes_of(y)), share, seed)
    train, test = kept.tolist(), held.tolist()
    left = None if weight is None else [weight[i] for i in train]
    return [x[i] for i in train], [y[i] for i in train], left, ([x[i] for i in test], [y[i] for i in test])


def _class_weight(chosen: dict[str, Any], labels: Iterable[Any]) -> dict[str, Any]:
    """JSON has no keys but strings; the labels of a file may be numbers."""
    weights = chosen.get("class_weight")
    if not isinstance(weights, dict):
        return {}
    by_name = {str(label): label for label in labels}
    return {"class_weight": {by_name.get(str(name), name): weight for name, weight in weights.items()}}
