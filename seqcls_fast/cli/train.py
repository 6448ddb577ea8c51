"""`train`: from a file of examples to a saved model, and what it takes to train the same model again.

read, learn, save and report follow each other. search.py learns several times in between; reproduce.py goes this way.
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
from typing import Any, NamedTuple

from ..toolkit._extras import need
from ..toolkit._terminal import escaped
from . import options, search
from .shared import (
    ESTIMATORS,
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

__all__ = ["Data", "add", "learn", "read", "save", "sha256"]

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


class Data(NamedTuple):
    """What is learnt from, what is measured on, and the digests of the files they came from."""

    x: Any  # a list, or a Stream, which has labels and weights of its own
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
    options.add_settings(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    result.add_argument("--overwrite", action="store_true", help="replace what --out holds, once training is done")
    result.add_argument("--report", metavar="FILE.html", help="the validation's report as a page")
    result.add_argument("--pictures", metavar="DIR", help="learning curves and, with a validation, its pictures")
    words = "go on with the training that was to end in --out and was interrupted, with the same data and options"
    result.add_argument("--resume", action="store_true", help=words)
    words = "train N times, first as asked, then with random values of what is not given; save the best by --metric"
    result.add_argument("--search", type=count, metavar="N", help=words)
    options.add_parameters(parser)


def _train(arguments: argparse.Namespace) -> None:
    settings, chosen = options.settings_of(arguments)
    validated = settings["validation"] is not None or settings["validation_share"] is not None
    for name in ("report", "search"):
        if getattr(arguments, name) and not validated:
            raise UsageError(f"--{name}: expected with --validation or --validation-share, which it is about")
    if arguments.search and (chosen["checkpoint_dir"] is not None or arguments.resume):
        raise UsageError("--search: expected without --checkpoint-dir and --resume, as trials keep no checkpoints")
    free = search.free(settings["kind"], options.given(arguments)) if arguments.search else []
    out = Path(arguments.out)
    if not arguments.overwrite:
        check_new(out, _OVERWRITE)
    check_folder(arguments.report)
    need("numpy", "seqcls-fast train")
    from ..toolkit import store
    from ..toolkit.ranks import join
    from ..toolkit.training.checkpoint import Checkpoints

    store.check_target(out)
    with join(chosen["device"]) as ranks, ExitStack() as stack:
        if ranks.writer:
            stack.enter_context(claimed(out, arguments.overwrite, _OVERWRITE))
        checkpoints = None if arguments.search else _checkpoints(arguments, chosen["checkpoint_dir"], ranks.writer)
        if chosen["seed"] is None:  # so that command.json can name it
            drawn = secrets.randbelow(1 << 31)
            chosen["seed"] = ranks.from_writer(_seed_of(checkpoints, drawn) if arguments.resume else drawn)
        data, table = read(settings, chosen), None
        start = time.perf_counter()
        if arguments.search:
            rows = data.x.survey().rows if data.streamed else len(data.x)
            estimator, chosen, table = search.run(partial(learn, settings, data), chosen, free, rows, arguments.search)
        else:
            try:
                estimator = learn(settings, data, chosen | {"checkpoint_dir": checkpoints}, resume=arguments.resume)
            except BaseException as error:
                if ranks.writer and checkpoints is not None:
                    if Checkpoints(checkpoints, 0) and isinstance(error, KeyboardInterrupt):
                        where = escaped(checkpoints)
                        print(f"{where} holds the newest checkpoint; --resume goes on from it", file=sys.stderr)
                    elif chosen["checkpoint_dir"] is None:
                        with suppress(OSError):  # unless it is empty, it is kept
                            Path(checkpoints).rmdir()
                raise
        seconds = time.perf_counter() - start
        if not ranks.writer:
            return
        extra = {} if table is None else {store.SEARCH: table}
        if not arguments.overwrite:
            check_new(out, _OVERWRITE)  # something else may have been put there meanwhile
        record = save(estimator, settings, data, chosen, arguments.out, extra, resumed=arguments.resume)
        if checkpoints is not None and chosen["checkpoint_dir"] is None:
            shutil.rmtree(checkpoints)
        _report(arguments, estimator, data, record, seconds, table)


def _checkpoints(arguments: argparse.Namespace, asked: str | None, writer: bool) -> str:
    """Where they are kept: in a folder beside --out, until that is written, if none was asked for."""
    from ..toolkit.training.checkpoint import Checkpoints

    if asked is not None:
        return asked
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
    """That of the training to go on with, if there is one."""
    from ..toolkit.training.checkpoint import Checkpoints
    from ..toolkit.training.resume import check_content

    found = Checkpoints(checkpoints, 0).newest(check_content) if checkpoints else None
    return int(found["about"]["seed"]) if found else drawn


def read(settings: dict[str, Any], chosen: dict[str, Any]) -> Data:
    columns = {name: settings[name] for name in ("kind", "text", "label", "weight", "delimiter")}
    columns["format"] = settings["input_format"]
    names = [settings["data"], *([settings["validation"]] if settings["validation"] else [])]
    digests = {str(name): sha256(name) for name in names}
    if settings["stream"]:
        return _stream(settings, columns, chosen["seed"], digests)
    x, y, weight = read_examples(settings["data"], **columns)
    validation = None
    if settings["validation"] is not None:
        validation = read_examples(settings["validation"], **columns | {"weight": None})[:2]
    elif settings["validation_share"] is not None:
        x, y, weight, validation = _split(x, y, weight, settings["validation_share"], chosen["seed"])
    return Data(x, y, weight, validation, digests)


def _stream(settings: dict[str, Any], columns: dict[str, Any], seed: int, digests: dict[str, str]) -> Data:
    from ..toolkit.data.stream import Stream

    x, held = Stream(settings["data"], **columns), None
    if settings["validation"] is not None:
        held = Stream(settings["validation"], **columns | {"weight": None})
    elif settings["validation_share"] is not None:
        x, held = x.split(settings["validation_share"], seed)
    return Data(x, None, None, None if held is None else (held, None), digests)


def learn(
    settings: dict[str, Any],
    data: Data,
    chosen: dict[str, Any],
    stop: Callable[[list[dict[str, Any]]], bool] | None = None,
    resume: bool = False,
) -> Any:
    from ..toolkit import estimators

    estimator = getattr(estimators, ESTIMATORS[settings["kind"]])(**chosen | _class_weight(chosen, data))
    validation = data.validation[0] if data.validation is not None and data.streamed else data.validation
    more = {"stop": stop, "resume": resume}
    return estimator.fit(data.x, data.y, validation=validation, sample_weight=data.weight, **more)


def save(
    estimator: Any, settings: dict[str, Any], data: Data, chosen: dict[str, Any], out: str, extra: dict[str, Any],
    resumed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Writes the model with command.json, whose contents are returned; `--config` and `reproduce` read them back."""
    import torch

    from ..toolkit import store
    from ..toolkit.card import versions

    device = next(estimator.model_.parameters()).device
    learnt_from, split = estimator.data_, None
    if learnt_from["validation"] is not None:
        by_share = {"share": settings["validation_share"], "seed": chosen["seed"]}
        split = by_share if settings["validation"] is None else {"file": str(settings["validation"])}
        split["rows"] = learnt_from["validation"]["rows"]
    ranks = learnt_from["ranks"]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    nodes = [f"--nnodes={ranks // here}"] if here < ranks else []
    program = ["seqcls-fast"] if ranks == 1 else ["torchrun", *nodes, f"--nproc-per-node={here}", "-m", "seqcls_fast"]
    record = {
        "command": shlex.join([*program, *options.command_line(settings, chosen, out)]),
        "settings": settings | chosen,
        "sha256": data.sha256, "rows": learnt_from["rows"], "split": split,
        "ranks": ranks, "threads": learnt_from["threads"], "resumed": resumed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, "versions": versions(),
    }  # fmt: skip
    estimator.fitted_parameters_ |= {"checkpoint_dir": chosen["checkpoint_dir"]}  # one of ours is gone
    estimator.extra_ = plain({store.COMMAND: record, **extra})
    estimator.save(out)
    return estimator.extra_[store.COMMAND]


def _report(
    arguments: argparse.Namespace, estimator: Any, data: Data, record: dict[str, Any], seconds: float, table: Any
) -> None:
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
    """Of a file; of a folder, that of the names and digests of what is read of it."""
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
    """What to learn from and what to hold back, as fit(validation=share) would, but in hand for the report."""
    from ..toolkit.data import labels

    kept, held = labels.stratified(labels.to_targets(y, labels.classes_of(y)), share, seed)
    train, test = kept.tolist(), held.tolist()
    left = None if weight is None else [weight[i] for i in train]
    return [x[i] for i in train], [y[i] for i in train], left, ([x[i] for i in test], [y[i] for i in test])


def _class_weight(chosen: dict[str, Any], data: Data) -> dict[str, Any]:
    """JSON has no keys but strings; the labels of a file may be numbers."""
    weights = chosen.get("class_weight")
    if not isinstance(weights, dict):
        return {}
    by_name = {str(label): label for label in (data.x.survey().labels if data.y is None else data.y)}
    return {"class_weight": {by_name.get(str(name), name): weight for name, weight in weights.items()}}
