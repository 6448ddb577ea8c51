"""`reproduce`: trains a saved model again from its command.json, with the functions of train.py, and compares both.

The same machine and versions give equal weights. Elsewhere the new model counts as reproduced if it is as good: if
every metric of its validation lies within the interval that the first model had.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..toolkit._extras import need
from ..toolkit._terminal import MESSAGE, escaped
from . import options, train
from .options import TrainOptions
from .shared import add_command, claimed, load, print_json

__all__ = ["NotReproducedError", "add", "compare", "shown"]

EXAMPLES = """\
examples:
  seqcls-fast reproduce model                           where the data are still in the same place
  seqcls-fast reproduce model --data moved/reviews.csv --out again
"""
# Parameters that say what is shown and written during training. The weights do not depend on them.
QUIET = {"log_dir": None, "checkpoint_dir": None, "verbose": False}
SAME = ("classes", "encoder", "data")  # entries of config.json that must be equal
USED = ("device", "threads", "ranks")  # entries of command.json about the machine

Saved = tuple[dict[str, Any], dict[str, Any]]  # config.json and the tensors, as store.load_folder() reads them


class NotReproducedError(RuntimeError):
    """The model that was trained again is neither equal nor as good."""


def add(commands: Any) -> None:
    purpose = "train a saved model again and compare weights, metrics and versions"
    parser = add_command(commands, "reproduce", purpose, EXAMPLES, _reproduce)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("--data", metavar="FILE", help="where the data are now")
    parser.add_argument("--validation", metavar="FILE", help="where the file lies now that --validation named")
    words = "where to save what was trained (default: nowhere)"
    parser.add_argument("--out", "--keep", dest="keep", metavar="DIR", help=words)


def _reproduce(arguments: argparse.Namespace) -> None:
    need("numpy", "seqcls-fast reproduce")
    from ..toolkit.ranks import join

    with join() as ranks, ExitStack() as stack:
        if arguments.keep and ranks.writer:
            stack.enter_context(claimed(Path(arguments.keep), False, "--out replaces nothing"))
        _train_and_compare(arguments, ranks.writer)


def _train_and_compare(arguments: argparse.Namespace, writer: bool) -> None:
    import torch

    from ..toolkit import store

    folder = Path(arguments.model)
    load(arguments.model)  # refuses a folder that save() did not write
    old, record = store.load_folder(folder), store.load_extra(folder).get(store.COMMAND)
    if record is None:
        raise FileNotFoundError(
            f"{escaped(folder)}: expected {store.COMMAND}, as train writes it; a model of Python's has none"
        )
    for part, names in ((old[0], (*SAME, "history", "validation_report")), (record, (*USED, "versions", "sha256"))):
        for name in names:
            if name not in part:
                where = escaped(folder)
                raise store.StoreError(f"{where}: expected {name!r} to be saved, but the model is of an older version")
    asked = _recorded_options(folder / store.COMMAND, record, arguments)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(record["threads"])
        data = train.read(asked)
        estimator = train.learn(data, asked.with_parameters(**QUIET))
    finally:
        torch.set_num_threads(threads)
    if not writer:
        return
    with tempfile.TemporaryDirectory() as nowhere:
        out = arguments.keep or str(Path(nowhere, "model"))
        again = train.save(estimator, data, asked, out, {})
        answer = compare(old, record, store.load_folder(out), again)
    if store.SEARCH in store.load_extra(folder):
        answer["notes"].append(f"the model was chosen among others ({store.SEARCH}): its own training was repeated")
    if arguments.json:
        print_json({"model": arguments.model, "kept": arguments.keep} | answer)
    else:
        print(shown(answer))
    if not answer["reproduced"]:
        raise NotReproducedError(f"{escaped(folder)}: {answer['verdict']}")


def _recorded_options(path: Path, record: dict[str, Any], arguments: argparse.Namespace) -> TrainOptions:
    """The options that were recorded, with the files where they are now; their contents must be the same."""
    asked = options.from_file(path)
    for name in ("data", "validation"):
        recorded, option = getattr(asked, name), getattr(arguments, name)
        if recorded is None:
            if option is not None:
                raise ValueError(
                    f"--{name}: expected nothing, as the model was trained without, but got {escaped(option)}"
                )
            continue
        now = str(option or recorded)
        expected = record["sha256"][str(recorded)]
        if not Path(now).exists():
            raise FileNotFoundError(
                f"{escaped(now)}: expected the file that the model was trained with (--{name} names another)"
            )
        if (found := train.sha256(now)) != expected:
            raise ValueError(
                f"{escaped(now)}: expected the data that the model was trained with, of SHA-256 {escaped(expected)}, "
                f"but got {found} (--{name} names another file)"
            )
        asked = asked.replace(**{name: now})
    for file in asked.files:
        expected = record["sha256"].get(file)
        if expected is not None and (found := train.sha256(file)) != expected:
            raise ValueError(
                f"{escaped(file)}: expected the file that the model was trained with, of SHA-256 {escaped(expected)}, "
                f"but got {found}"
            )
    return asked


def compare(old: Saved, record: dict[str, Any], new: Saved, again: dict[str, Any]) -> dict[str, Any]:
    """Compares two saved models, each with the contents of its command.json."""
    (before, weights_before), (now, weights_now) = old, new
    weights = _weights(weights_before, weights_now)
    metrics = _metrics(before, now)
    other = [name for name in SAME if _lasting(before[name]) != _lasting(now[name])]
    reproduced, verdict = _verdict(weights, other, metrics)
    return {
        "reproduced": reproduced, "verdict": verdict, "weights": weights, "other": other, "metrics": metrics,
        "differences": _differences(record, again), "notes": _notes(before, record, again),
    }  # fmt: skip


def _verdict(weights: dict[str, Any], other: list[str], metrics: dict[str, dict[str, Any]]) -> tuple[bool, str]:
    if weights["equal"] and not other:
        return True, "weights are equal bit by bit"
    if "classes" in other:
        return False, "expected the same classes but got others"
    said, judged = weights["said"], {name: each for name, each in metrics.items() if each["within"] is not None}
    if not judged:
        return False, f"{said}, and there was no validation to tell whether the model is as good"
    for name, each in judged.items():
        if not each["within"]:
            low, high = each["interval"]
            return False, f"{said}; expected {name} from {low:.4f} to {high:.4f} but got {each['now']:.4f}"
    return True, f"{said}, and each metric lies within the interval that it had"


def _lasting(value: Any) -> Any:
    """Without the entries about the machine, which _differences() compares."""
    return {name: each for name, each in value.items() if name not in USED} if isinstance(value, dict) else value


def _weights(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    old, new = ({name: t for name, t in each.items() if name.startswith("model.")} for each in (old, new))
    if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
        return {"equal": False, "largest_difference": None, "said": "weights have other shapes"}
    furthest = max(old, key=lambda name: float((old[name] - new[name]).abs().max()))
    largest = float((old[furthest] - new[furthest]).abs().max())
    equal = all(old[name].equal(new[name]) for name in old)
    where = furthest.removeprefix("model.")
    said = "weights are equal" if equal else f"weights differ by at most {largest:.3g} ({where})"
    return {"equal": equal, "largest_difference": largest, "said": said}


def _metrics(before: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of the validation, and loss and accuracy of the best epoch of training, which have no interval."""
    from ..toolkit.card import metrics_of

    found = {}
    if before["validation_report"] is not None and now["validation_report"] is not None:
        values = metrics_of(now["validation_report"])
        methods = before["validation_report"].get("interval_methods", {})  # none of models that were saved earlier
        for name, (value, interval) in metrics_of(before["validation_report"]).items():
            new = values.get(name, (None, None))[0]
            within = None if interval is None else new is not None and interval[0] <= new <= interval[1]
            found[name] = {"before": value, "interval": interval, "now": new, "within": within}
            if interval is not None:
                found[name]["method"] = methods.get(name.replace(" ", "_"))
    records = [config["history"][config["best_epoch"] - 1] for config in (before, now)]
    for name in ("loss", "accuracy"):
        first, second = (record[name] for record in records)
        found[f"training {name}"] = {"before": first, "interval": None, "now": second, "within": None}
    return found


def _differences(record: dict[str, Any], again: dict[str, Any]) -> dict[str, list[Any]]:
    """Versions and the machine where they are not the same: by name, the values then and now."""
    then, now = (each["versions"] | {name: each[name] for name in USED} for each in (record, again))
    return {name: [then.get(name), now.get(name)] for name in {**then, **now} if then.get(name) != now.get(name)}


def _notes(before: dict[str, Any], record: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Reasons why the weights may differ although nothing is wrong."""
    notes = []
    if record["ranks"] != again["ranks"]:
        dropout = "" if record["settings"]["dropout"] == 0 else ", and dropout draws for each process of its own"
        notes.append(
            f"{record['ranks']} processes trained the model and {again['ranks']} trained it again: at best weights are "
            f"equal but for rounding{dropout}"
        )
    if any("accumulated" in epoch for epoch in before["history"]):
        notes.append("the first training was short of memory and took batches in pieces: other memory, other rounding")
    if before.get("temperature", 1.0) != 1 or before.get("threshold") is not None:
        notes.append("the model was calibrated afterwards, which is not repeated; its metrics are those from before")
    if record.get("resumed"):
        notes.append("the first training was resumed, which changes no bit where processes and threads stayed as many")
    return notes


def shown(answer: dict[str, Any]) -> str:
    lines = [f"{'':<20}{'before':>10}{'now':>10}   interval before"]
    for name, each in answer["metrics"].items():
        line = f"{name:<20}{each['before']:>10.4f}" + (
            f"{each['now']:>10.4f}" if each["now"] is not None else f"{'-':>10}"
        )
        if each["interval"] is not None:
            line += "   {:.4f} to {:.4f}".format(*each["interval"]) + ("" if each["within"] else " (outside)")
        lines.append(line)
    lines += ["", answer["verdict"]]
    lines += [f"{each}: not the same" for each in answer["other"]]
    lines += [f"{name}: {then} before, {now} now" for name, (then, now) in answer["differences"].items()]
    return "\n".join(escaped(line, MESSAGE) for line in lines + answer["notes"])
