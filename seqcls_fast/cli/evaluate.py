"""`evaluate`: the metrics of a saved model on labelled data, with intervals and warnings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .shared import (
    add_command,
    add_labelled,
    add_out,
    check_folder,
    labelled,
    labels_of,
    load,
    own_format,
    print_json,
    save_pictures,
    write_text,
)

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast evaluate model test.csv --text review --label stars
  seqcls-fast evaluate model test.jsonl --html report.html --pictures pictures
  seqcls-fast evaluate model test.csv --json > report.json
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "evaluate", "measure a saved model on labelled data", EXAMPLES, _evaluate)
    parser.add_argument("model", help="directory that train wrote")
    add_labelled(parser)
    words = "other data to look for duplicates of, beside the data that the model was trained on"
    parser.add_argument("--train", metavar="FILE", help=words)
    add_out(parser, html="holds the report as a page, as that of --html does")
    parser.add_argument("--html", metavar="FILE", help="the report as a page")
    parser.add_argument("--pictures", metavar="DIR", help="its pictures as files")


def _evaluate(arguments: argparse.Namespace) -> None:
    pages = [path for path in (arguments.html, own_format(arguments)) if path is not None]
    check_folder(*pages)
    estimator, kind = load(arguments.model)
    x, y = labelled(arguments, arguments.data, kind)
    if arguments.train is not None:
        from ..toolkit.data.leakage import fingerprints

        estimator.seen_ |= fingerprints(labelled(arguments, arguments.train, kind)[0])
    report = estimator.evaluate(x, labels_of(estimator, y))
    report.about["data"] += f" of {arguments.data}"
    for path in pages:
        write_text(path, report.to_html())
    if arguments.pictures:
        save_pictures(Path(arguments.pictures), report, estimator, estimator.encoder_.encode(x).lengths)
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report)
