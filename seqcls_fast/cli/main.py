"""The command's parser and dispatch: from arguments to an exit code. The commands themselves are in commands/.

No library is imported here or at the top of a command's file, so that `--help` answers at once and anywhere.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from ..toolkit._terminal import MESSAGE, escaped
from . import bench, calibrate, export, reproduce, train
from . import predict as use
from .shared import UsageError, add_command

__all__ = ["Parser", "UsageError", "add_command", "add_commands", "run"]

UNEXPECTED = (LookupError, AttributeError, AssertionError, NameError)  # not written for people, hence a mistake of ours

IN_PARALLEL = ("train", "predict", "reproduce")  # under torchrun


class Parser(argparse.ArgumentParser):
    """Its complaints repeat arguments, which may be the names of somebody's files."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message, MESSAGE))


def add_commands(commands: Any) -> None:
    for module in (train, use, calibrate, reproduce, export, bench):
        module.add(commands)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses, runs, and turns whatever happens into an exit code and at most one sentence on stderr."""
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # data are UTF-8 wherever they go
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace")
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and arguments.command not in IN_PARALLEL:
            raise UsageError(f"expected a single process, as only {', '.join(IN_PARALLEL)} run in several")
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, arguments.debug)
            arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except UsageError as error:
        arguments.parser.print_usage(sys.stderr)
        print(f"{arguments.parser.prog}: error: {escaped(error, MESSAGE)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; what was saved before is untouched", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as in `predict ... | head`
        _drop_output()
        return 141
    except Exception as error:
        if arguments.debug:
            lines = traceback.format_exc().splitlines()
            print("\n".join(escaped(line, MESSAGE) for line in lines), file=sys.stderr)
        else:
            print(_sentence(error), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # which may be what failed before
            _drop_output()
        return 1


def _show_warning(debug: bool, message: Warning | str, kind: type[Warning], file: str, line: int, *_: Any) -> None:
    where = f" ({kind.__name__} at {file}:{line})" if debug else ""
    print(f"warning: {escaped(message, MESSAGE)}{where}", file=sys.stderr)


def _drop_output() -> None:
    """Or Python tries once more at the end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{escaped(error.filename)}: {error.strerror}" if error.filename else error.strerror
    message = escaped(" ".join(str(error).split()), MESSAGE) or type(error).__name__
    if isinstance(error, UNEXPECTED):
        return f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    return message
