"""`train`: from a file of examples to a saved model with command.json, from which the same model can be trained again.

Four functions run in turn: read, learn, save and _report. search.py calls learn several times; reproduce.py calls the
first three again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..toolkit._extras import need
from ..toolkit._terminal import escaped
from ..toolkit.parameter_table import ESTIMATORS
from . import options, search
from .options import TrainOptions
from .shared import (
    UsageError,
    add_command,
    check_folder,
    check_new,
    claimed,
    count,
    plain,
    print_json,
    read_examples,
    save_pictures,
    write_text,
)

if TYPE_CHECKING:
    from ..toolkit.fit import Shared

__all__ = ["TrainingData", "add", "learn", "read", "save", "sha256"]

EXAMPLES = """\
examples:
  seqcls-fast train reviews.csv --text review --label stars --validation-share 0.1 --out model
  seqcls-fast train sensors.ts --kind series --missing mean --cell lstm --epochs 50 --out model
  seqcls-fast train train.jsonl --validation dev.jsonl --patience 3 --report report.html --pictures pictures --out model
  seqcls-fast train train.jsonl --validation dev.jsonl --search 20 --out model    the best of 20 random settings
  seqcls-fast train --config model/command.json --out again    the same model once more
  seqcls-fast train reviews/ --out model    a folder of files, read while it is trained on
  seqcls-fast train reviews/ --out model --resume    the same, where it was interrupted
  torchrun --nproc-per-node=2 -m seqcls_fast train reviews/ --out model    in two processes
"""
_OVERWRITE = "--overwrite replaces a saved model"


class TrainingData(NamedTuple):
    """The examples to learn from and to validate on, and the digests of their files."""

    x: Any  # a list; or a Stream, which has labels and weights of its own
    y: list[Any] | None
    weight: list[float] | None
    validation: tuple[Any, list[Any] | None] | None
    sha256: dict[str, str]

    @property
    def streamed(self) -> bool:
        return self.y is None


def add(commands: Any) -> None:
    purpose = "learn a classifier from a file and save it as a directory"
    parser = add_command(commands, "train", purpose, EXAMPLES, _train)
    parser.usage = "%(prog)s DATA --out DIR [options]"
    options.add_data_options(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    result.add_argument("--overwrite", action="store_true", help="replace what --out holds, once training is done")
    result.add_argument("--report", metavar="FILE.html", help="the validation's report as a page")
    result.add_argument("--pictures", metavar="DIR", help="learning curves and, with a validation, its pictures")
    words = "go on with an interrupted training for the same --out, with the same data and options"
    result.add_argument("--resume", action="store_true", help=words)
    words = "train N times: as asked, then with random values of options not given; save the best by --metric"
    result.add_argument("--search", type=count, metavar="N", help=words)
    options.add_parameters(parser)


def _train(arguments: argparse.Namespace) -> None:
    asked = options.from_command_line(arguments)
    for name in ("report", "search"):
        if getattr(arguments, name) and not asked.validated:
            raise UsageError(f"--{name}: expected with --validation or --validation-share, which it is about")
    if arguments.search and (asked.parameters["checkpoint_dir"] is not None or arguments.resume):
        raise UsageError("--search: expected without --checkpoint-dir and --resume, as trials keep no checkpoints")
    searched = search.searched_parameters(asked) if arguments.search else []
    out = Path(arguments.out)
    if not arguments.overwrite:
        check_new(out, _OVERWRITE)
    check_folder(arguments.report)
    need("numpy", "seqcls-fast train")
    from ..toolkit import store
    from ..toolkit.fit import Shared
    from ..toolkit.ranks import join, restarted

    store.check_target(out)
    arguments.resume |= restarted() and not arguments.search
    with join(asked.parameters["device"]) as ranks, ExitStack() as stack:
        if ranks.writer:
            stack.enter_context(claimed(out, arguments.overwrite, _OVERWRITE))
        checkpoints = None if arguments.search else _checkpoints(arguments, asked, ranks.writer)
        if asked.parameters["seed"] is None:  # drawn here, so that command.json can name it
            drawn = secrets.randbelow(1 << 31)
            seed = ranks.from_writer(_seed_of(checkpoints, drawn) if arguments.resume else drawn)
            asked = asked.with_parameters(seed=seed)
        data, table = read(asked), None
        start = time.perf_counter()
        if arguments.search:
            rows = data.x.survey().rows if data.streamed else len(data.x)
            learn_trial = partial(learn, data, shared=Shared())
            estimator, asked, table = search.run(learn_trial, asked, searched, rows, arguments.search)
        else:
            estimator = _learn_with_checkpoints(data, asked, checkpoints, arguments.resume, ranks.writer)
        seconds = time.perf_counter() - start
        if not ranks.writer:
            return
        extra = {} if table is None else {store.SEARCH: table}
        if not arguments.overwrite:
            check_new(out, _OVERWRITE)  # another program may have written there during training
        record = save(estimator, data, asked, arguments.out, extra, resumed=arguments.resume)
        if checkpoints is not None and asked.parameters["checkpoint_dir"] is None:
            shutil.rmtree(checkpoints)
        _report(arguments, estimator, data, record, seconds, table)


def _learn_with_checkpoints(
    data: TrainingData, asked: TrainOptions, checkpoints: str | None, resume: bool, writer: bool
) -> Any:
    from ..toolkit.training.checkpoint import Checkpoints

    try:
        return learn(data, asked.with_parameters(checkpoint_dir=checkpoints), resume=resume)
    except BaseException as error:
        if writer and checkpoints is not None:
            if Checkpoints(checkpoints, 0) and isinstance(error, KeyboardInterrupt):
                where = escaped(checkpoints)
                print(f"{where} holds the newest checkpoint; --resume goes on from it", file=sys.stderr)
            elif asked.parameters["checkpoint_dir"] is None:
                with suppress(OSError):  # rmdir() refuses, and so keeps, a folder that holds checkpoints
                    Path(checkpoints).rmdir()
        raise


def _checkpoints(arguments: argparse.Namespace, asked: TrainOptions, writer: bool) -> str:
    """The folder for checkpoints. Without --checkpoint-dir it lies beside --out, and goes once the model is saved."""
    from ..toolkit.training.checkpoint import Checkpoints

    if asked.parameters["checkpoint_dir"] is not None:
        return str(asked.parameters["checkpoint_dir"])
    out = Path(arguments.out)
    folder = out.with_name(f".{out.name}.checkpoints")
    if writer and folder.exists() and not arguments.resume:
        if Checkpoints(folder, 0) and not arguments.overwrite:
            raise FileExistsError(
                f"{escaped(folder)}: expected --resume, to go on with the training that was interrupted, or "
                "--overwrite, to begin anew"
            )
        shutil.rmtree(folder)
    return str(folder)


def _seed_of(checkpoints: str | None, drawn: int) -> int:
    """The seed of the training to go on with; ``drawn`` if there is none."""
    from ..toolkit.training.checkpoint import Checkpoints
    from ..toolkit.training.resume import check_content

    found = Checkpoints(checkpoints, 0).newest(check_content) if checkpoints else None
    return int(found["about"]["seed"]) if found else drawn


def read(asked: TrainOptions) -> TrainingData:
    columns = {name: getattr(asked, name) for name in ("kind", "text", "label", "weight", "delimiter")}
    columns["format"] = asked.input_format
    digests = {str(name): sha256(name) for name in (asked.data, asked.validation, *asked.files) if name}
    seed = asked.parameters["seed"]
    if asked.stream:
        return _stream(asked, columns, seed, digests)
    x, y, weight = read_examples(asked.data, **columns)
    validation = None
    if asked.validation is not None:
        validation = read_examples(asked.validation, **columns | {"weight": None})[:2]
    elif asked.validation_share is not None:
        x, y, weight, validation = _split(x, y, weight, asked.validation_share, seed)
    return TrainingData(x, y, weight, validation, digests)


def _stream(asked: TrainOptions, columns: dict[str, Any], seed: int, digests: dict[str, str]) -> TrainingData:
    from ..toolkit.data.stream import Stream

    x, held = Stream(asked.data, **columns), None
    if asked.validation is not None:
        held = Stream(asked.validation, **columns | {"weight": None})
    elif asked.validation_share is not None:
        x, held = x.split(asked.validation_share, seed)
    return TrainingData(x, None, None, None if held is None else (held, None), digests)


def learn(
    data: TrainingData,
    asked: TrainOptions,
    stop: Callable[[list[dict[str, Any]]], bool] | None = None,
    resume: bool = False,
    shared: Shared | None = None,
) -> Any:
    """The estimator, fitted. What trainings on the same data have in common is kept in ``shared``."""
    from ..toolkit import estimators
    from ..toolkit.training.prepare import FitData

    estimator = getattr(estimators, ESTIMATORS[asked.kind])(**asked.parameters | _class_weight(asked, data))
    validation = data.validation[0] if data.validation is not None and data.streamed else data.validation
    estimator._fit(FitData(data.x, data.y, validation, data.weight), resume, stop, shared)
    return estimator


def save(
    estimator: Any, data: TrainingData, asked: TrainOptions, out: str, extra: dict[str, Any], resumed: bool = False
) -> dict[str, Any]:
    """Writes the model with command.json, which `train --config` and `reproduce` read; its contents are returned."""
    import torch

    from ..toolkit import store
    from ..toolkit.card import versions

    device = next(estimator.model_.parameters()).device
    learnt_from, split = estimator.data_, None
    if learnt_from["validation"] is not None:
        share = asked.validation_share or learnt_from["validation"].get("share")
        by_share = {"share": share, "seed": asked.parameters["seed"]}
        split = by_share if asked.validation is None else {"file": str(asked.validation)}
        split["rows"] = learnt_from["validation"]["rows"]
    ranks = learnt_from["ranks"]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    nodes = [f"--nnodes={ranks // here}"] if here < ranks else []
    program = ["seqcls-fast"] if ranks == 1 else ["torchrun", *nodes, f"--nproc-per-node={here}", "-m", "seqcls_fast"]
    record = {
        "command": shlex.join([*program, *asked.command_line(out)]),
        "settings": asked.to_json(),
        "sha256": data.sha256, "rows": learnt_from["rows"], "split": split,
        "ranks": ranks, "threads": learnt_from["threads"], "resumed": resumed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, "versions": versions(),
    }  # fmt: skip
    estimator.fitted_parameters_ |= {"checkpoint_dir": asked.parameters["checkpoint_dir"]}  # not our own
    estimator.extra_ = plain({store.COMMAND: record, **extra})
    estimator.save(out)
    return estimator.extra_[store.COMMAND]


def _report(
    arguments: argparse.Namespace,
    estimator: Any,
    data: TrainingData,
    record: dict[str, Any],
    seconds: float,
    table: dict[str, Any] | None,
) -> None:
    """Prints and draws the result; ``table`` is the one of a search."""
    report = None if data.validation is None else estimator.evaluate(*data.validation)
    rows, held = estimator.data_["rows"], estimator.data_["validation"]
    lengths = None
    if not data.streamed and (arguments.report or arguments.pictures):
        lengths = estimator.encoder_.encode(data.x).lengths
    if arguments.report and report is not None:
        write_text(arguments.report, report.to_html(history=estimator.history_, lengths=lengths))
    if arguments.pictures:
        save_pictures(Path(arguments.pictures), report, estimator, lengths)
    if arguments.json:
        print_json({
            "out": arguments.out, "classes": estimator.classes_, "rows": rows, "seconds": seconds,
            "validation_rows": 0 if held is None else held["rows"],
            "history": estimator.history_, "report": None if report is None else report.to_dict(),
            "command": record["command"], "search": table,
        })  # fmt: skip
        return
    if table is not None:
        print(search.shown(table) + "\n")
    kind = "series" if record["settings"]["kind"] == "series" else "texts"
    what = f"{rows} {kind}, {len(estimator.classes_)} classes"
    print(f"{what}, {len(estimator.history_)} epochs, {seconds:.1f} s: saved to {escaped(arguments.out)}")
    if report is not None:
        print(f"\nvalidation\n{report}")


def sha256(path: str | Path) -> str:
    """The digest of a file; of a folder, that of the names and digests of the files that are read from it."""
    digest = hashlib.sha256()
    if Path(path).is_dir():
        from ..toolkit.data.readers import files_below

        for file in map(Path, files_below(path) or files_below(path, None)):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _split(x: list[Any], y: list[Any], weight: list[float] | None, share: float, seed: int | None) -> tuple[Any, ...]:
    """Splits as fit(validation=share) would, but keeps both sides: the report needs the held-out examples."""
    from ..toolkit.data import labels

    kept, held = labels.stratified(labels.to_targets(y, labels.classes_of(y)), share, seed)
    train, test = kept.tolist(), held.tolist()
    left = None if weight is None else [weight[i] for i in train]
    return [x[i] for i in train], [y[i] for i in train], left, ([x[i] for i in test], [y[i] for i in test])


def _class_weight(asked: TrainOptions, data: TrainingData) -> dict[str, Any]:
    """Class weights by the labels of the data: the command line can name them by strings alone, as JSON's keys are."""
    weights = asked.parameters["class_weight"]
    if not isinstance(weights, dict):
        return {}
    by_name = {str(label): label for label in (data.x.survey().labels if data.y is None else data.y)}
    return {"class_weight": {by_name.get(str(name), name): weight for name, weight in weights.items()}}
