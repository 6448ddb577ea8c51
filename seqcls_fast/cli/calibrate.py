"""`calibrate`: fits a temperature, and a threshold for one label, to data that the model was not trained on.

The model's weights stay as they are; its folder is replaced as a whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..toolkit._terminal import escaped, shown
from .shared import UsageError, add_command, add_labelled, claimed, labelled, labels_of, load, print_json

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast calibrate model dev.csv --text review --label stars      probabilities that match frequencies
  seqcls-fast calibrate model dev.csv --for spam --precision 0.99      what is called spam is spam in 99 % of the cases
  seqcls-fast calibrate model dev.csv --for ill --recall 0.95 --no-temperature --out careful
"""


def add(commands: Any) -> None:
    purpose = "fit a saved model's probabilities, and a threshold for a label, to data that training has not seen"
    parser = add_command(commands, "calibrate", purpose, EXAMPLES, _calibrate)
    parser.add_argument("model", help="directory that train wrote")
    add_labelled(parser)
    words = "the label to choose a threshold for: it is predicted from that probability on"
    parser.add_argument("--for", dest="chosen", metavar="LABEL", help=words)
    target = parser.add_mutually_exclusive_group()
    words = "the share of examples predicted to be LABEL that must be right; the recall is the largest possible then"
    target.add_argument("--precision", type=_share, metavar="P", help=words)
    words = "the share of examples of LABEL that must be found; the precision is the largest possible then"
    target.add_argument("--recall", type=_share, metavar="R", help=words)
    parser.add_argument("--no-temperature", action="store_true", help="leave the probabilities as they are")
    parser.add_argument("--out", metavar="DIR", help="where to save the result (default: in the place of the model)")


def _calibrate(arguments: argparse.Namespace) -> None:
    asked = arguments.precision is not None or arguments.recall is not None
    if asked != (arguments.chosen is not None):
        raise UsageError("--for: expected with --precision or --recall, and they with it, but got one of the two")
    if arguments.no_temperature and not asked:
        raise UsageError("--no-temperature: expected with --for, or nothing is left to do")
    from ..toolkit import store

    out = Path(arguments.out or arguments.model)
    with store.opened(arguments.model):  # refuses a missing model before a lock is written beside it
        pass
    with claimed(out, replaces=not arguments.out):
        estimator, kind = load(arguments.model)
        x, y = labelled(arguments, arguments.data, kind)
        y = labels_of(estimator, y)
        if not arguments.no_temperature:
            estimator.calibrate(x, y)
        if asked:
            (label,) = labels_of(estimator, [arguments.chosen])
            estimator.choose_threshold(x, y, label=label, precision=arguments.precision, recall=arguments.recall)
        report = estimator.evaluate(x, y)
        estimator.save(out)
    rule = estimator.threshold_
    if arguments.json:
        after = {name: value for name, value, _ in report.summary()}
        print_json({
            "out": str(out), "fitted_to": arguments.data, "examples": len(x), "temperature": estimator.temperature_,
            "threshold": None if rule is None else rule.to_json(), "before": report.before, "after": after,
            "warnings": report.warnings,
        })  # fmt: skip
        return
    sequences = "series" if kind == "series" else "texts"
    print(f"{len(x)} {sequences}: temperature {estimator.temperature_:.4g}, saved to {escaped(out)}")
    print(f"\n{report}\n")
    print("These are the data that it was fitted to; `seqcls-fast evaluate` measures it on others.")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0, at most 1, but got {shown(text)}")
    return share
