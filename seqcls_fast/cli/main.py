"""The parser with all commands, and main(), which turns arguments into an exit code.

`--version` and `--help` need the standard library alone: they answer in milliseconds, also on a machine where torch
itself is broken.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from .._needs import without_torch
from .._version import __version__
from ..toolkit._terminal import MESSAGE, did_you_mean, escaped
from .shared import UsageError, result_file, written_to

__all__ = ["main", "make_parser"]

EXAMPLES = """\
examples:
  seqcls-fast train reviews.csv --text review --label stars --validation-share 0.1 --out model
  seqcls-fast predict model new.csv --text review > labels.csv
  seqcls-fast info

seqcls-fast COMMAND --help has examples of each. `python -m seqcls_fast` is the same program.
"""
# Modules of this folder, as --help lists them.
COMMANDS = ("train", "evaluate", "predict", "trace", "calibrate", "reproduce", "export", "bench", "info", "plan")
# Errors whose messages are not written for users: they show a mistake in this package.
UNEXPECTED = (LookupError, AttributeError, AssertionError, NameError)
IN_PARALLEL = ("train", "predict", "reproduce")  # commands that may run in several processes, under torchrun


class Parser(argparse.ArgumentParser):
    """Escapes the arguments that an error message repeats, as they may be names of files from anywhere, and names the
    option or choice that is nearest to an unknown one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        for word in (word.partition("=")[0] for word in self._words if word.startswith("--")):
            if word not in known and (near := did_you_mean(word, known)):
                message += f"; {word}: {near.removeprefix('; ')}" if "required" in message else near
                break
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            message += did_you_mean(choice[1], [name.strip("'") for name in choice[2].split(", ")])
        super().error(escaped(message, MESSAGE))


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser with all commands, or with this one alone, if there is such a one: importing the others takes time."""
    parser = Parser(
        prog="seqcls-fast",
        allow_abbrev=False,
        description="Sequence classification on fused recurrent layers for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seqcls_fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in [command] if command in COMMANDS else COMMANDS:
        import_module(f".{name}", __package__).add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. A failure prints one sentence to stderr; the result is the exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments, unknown = make_parser(words[0] if words else None).parse_known_args(words)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, io.TextIOWrapper):  # files and pipes get UTF-8 whatever the locale
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace")
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and arguments.command not in IN_PARALLEL:
            raise UsageError(f"expected a single process, as only {', '.join(IN_PARALLEL)} run in several")
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, arguments.debug)
            with written_to(result_file(arguments)):
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
    except BrokenPipeError:  # the reader of our output has closed it, as in `predict ... | head`
        _discard_output()
        return 141
    except Exception as error:
        if arguments.debug:
            lines = traceback.format_exc().splitlines()
            print("\n".join(escaped(line, MESSAGE) for line in lines), file=sys.stderr)
        else:
            print(_sentence(error, arguments.command), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # the disk may be full, which may also be the error just shown
            _discard_output()
        return 1


def _show_warning(debug: bool, message: Warning | str, kind: type[Warning], file: str, line: int, *_: Any) -> None:
    where = f" ({kind.__name__} at {file}:{line})" if debug else ""
    print(f"warning: {escaped(message, MESSAGE)}{where}", file=sys.stderr)


def _discard_output() -> None:
    """Without this, Python tries to write the rest of stdout when it ends, and prints another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _sentence(error: Exception, command: str) -> str:
    if isinstance(error, ImportError) and error.name == "torch":
        return without_torch(f"seqcls-fast {command}")
    if isinstance(error, OSError) and error.strerror:
        return f"{escaped(error.filename)}: {error.strerror}" if error.filename else error.strerror
    message = escaped(" ".join(str(error).split()), MESSAGE) or type(error).__name__
    if isinstance(error, UNEXPECTED):
        return f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    return message
