"""`trace`: every stage of one prediction, from the raw text or series to the probabilities."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .shared import add_command, add_out, check_folder, load, own_format, print_json

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast trace model "I love this movie"
  seqcls-fast trace model "I love this movie" --picture trace.png
  seqcls-fast trace model "[[0.1, 2.0], [0.3, 1.5]]"   a model of series: its steps as JSON
"""


def add(commands: Any) -> None:
    purpose = "show every stage of one prediction, and how it forms token by token"
    parser = add_command(commands, "trace", purpose, EXAMPLES, _trace)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("example", help="the text, or a series as JSON; - reads it from stdin")
    add_out(parser, png="or .svg holds the picture, as that of --picture does", svg="too")
    parser.add_argument("--picture", metavar="FILE", help="the probabilities over tokens, as .png or .svg")


def _trace(arguments: argparse.Namespace) -> None:
    pictures = [path for path in (arguments.picture, own_format(arguments)) if path is not None]
    check_folder(*pictures)
    estimator, kind = load(arguments.model)
    text = sys.stdin.buffer.read().decode().removesuffix("\n") if arguments.example == "-" else arguments.example
    example: Any = text
    if kind == "series":
        try:
            example = json.loads(text)
        except ValueError:
            raise ValueError("example: expected a series as JSON, such as [[0.1, 2.0], [0.3, 1.5]]") from None
    found = estimator.trace(example)
    for path in pictures:
        from ..toolkit.evaluation import plots

        plots.save(found.figure(), Path(path))
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found)
