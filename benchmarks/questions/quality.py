"""How good the classifiers are on real data, beside what a person would use instead: `python -m benchmarks quality`.

Every engine gets the same rows, in the same order, on one thread. A row of results is written as soon as it is known,
and what a file has already is not measured again. Times are CPU seconds, which others on the machine change little.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import machine, quality_peers, quality_rows, quality_series, quality_sets, rows
from ..guard import BUSY_SHARE
from ..quality_peers import Engine
from ..quality_rows import OURS, Score
from ..quality_tasks import BUILDERS, QUICK, Task, smaller

BINS, LEAST = 15, 1e-7  # of the calibration error; the probability that a log loss counts for a smaller one
SINGLE = 20  # rows that are asked for one at a time


# -- one measurement --------------------------------------------------------------------------------------------------


def measured(task: Task, engine: Engine, seed: int) -> Score:
    """Trains and asks one engine; a RuntimeError where what it answers cannot be right."""
    before = task.fingerprint()
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    classifier = engine.make(seed)
    classifier.fit(*task.train)
    fit = time.process_time() - cpu
    told = hasattr(classifier, "predict_proba")
    ask = classifier.predict_proba if told else classifier.predict
    start = time.process_time()
    answer = np.asarray(ask(task.test[0]))
    predict = time.process_time() - start
    start = time.process_time()
    for k in range(min(SINGLE, len(task.test[0]))):
        ask(task.test[0][k : k + 1])
    one = (time.process_time() - start) / min(SINGLE, len(task.test[0]))
    busy = time.process_time() - cpu < BUSY_SHARE * (time.perf_counter() - wall)
    classes = [str(label) for label in classifier.classes_]
    if task.fingerprint() != before:
        raise RuntimeError("it changed the rows that it was given")
    check_answer(answer, classes, task, told)
    found = figures(answer if told else None, answer if not told else None, classes, list(task.test[1]))
    return Score(
        task.name, task.kind, task.digest, len(task.train[1]), len(task.test[1]), len(classes), engine.name,
        version_of(engine), seed, *found, fit, predict, one, busy,
    )  # fmt: skip


def check_answer(answer: np.ndarray, classes: list[str], task: Task, told: bool) -> None:
    if sorted(classes) != sorted(set(task.train[1])):
        raise RuntimeError(f"it knows other classes than those of the training: {', '.join(classes):.80}")
    shape = (len(task.test[1]), len(classes)) if told else (len(task.test[1]),)
    if answer.shape != shape:
        raise RuntimeError(f"expected an answer of shape {shape} but got {answer.shape}")
    if told and not (np.all(answer >= 0) and np.allclose(answer.sum(1), 1, atol=1e-3)):
        raise RuntimeError("expected probabilities that add up to 1")


def figures(
    probabilities: np.ndarray | None, predictions: Any, classes: list[str], labels: list[str]
) -> tuple[float, float, float | None, float | None]:
    """Accuracy, macro F1, log loss and calibration error. The last two need probabilities."""
    place = {label: k for k, label in enumerate(classes)}
    truth = np.array([place[label] for label in labels])
    if probabilities is None:
        guess = np.array([place[str(label)] for label in predictions])
    else:
        guess = probabilities.argmax(1)
    scores = []
    for k in np.union1d(truth, guess):  # as scikit-learn's f1_score(average="macro")
        hits = np.sum((truth == k) & (guess == k))
        scores.append(2 * hits / (np.sum(truth == k) + np.sum(guess == k)))
    accuracy, f1 = float(np.mean(truth == guess)), float(np.mean(scores))
    if probabilities is None:
        return accuracy, f1, None, None
    loss = -np.log(np.clip(probabilities[np.arange(len(truth)), truth], LEAST, 1)).mean()
    sure, right = probabilities.max(1), truth == guess
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(np.sum(right[bins == k]) - np.sum(sure[bins == k])) for k in range(BINS)]
    return accuracy, f1, float(loss), float(np.sum(gaps) / len(truth))


# All metadata of the environment is read for it, which takes a second.
distributions = cache(importlib.metadata.packages_distributions)


def version_of(engine: Engine) -> str:
    if engine.name == OURS:
        return quality_rows.our_version()
    names = {distributions().get(name, [name])[0] for name in engine.packages}
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names)) + f"; {engine.words}"


# -- the run ----------------------------------------------------------------------------------------------------------

Planned = tuple[Task, Engine, int]


def plan(tasks: Iterable[Task], engines: Iterable[Engine], seeds: int, done: set[Any]) -> list[Planned]:
    """What is left to measure: of each set first ours, then the engines that are installed and take it."""
    engines = [engine for engine in engines if not engine.missing]
    versions = {(engine.name, engine.kind): version_of(engine) for engine in engines}
    return [
        (task, engine, seed)
        for task in tasks
        for engine in engines
        if engine.kind == task.kind and task.size <= engine.most
        for seed in range(min(seeds, engine.seeds))
        if (task.name, task.digest, engine.name, versions[engine.name, engine.kind], seed) not in done
    ]


def forecast(planned: Iterable[Planned], known: Iterable[Score]) -> float:
    """Seconds: as long as the last time, and where there is none by the size of the set."""
    last = {(score.set, score.engine): score.fit + score.predict for score in known}
    return sum(last.get((task.name, engine.name), engine.seconds * task.size) for task, engine, _ in planned)


def warm(task: Task, engine: Engine) -> None:
    """Fits a few rows, so that imports and the compiling of numba's functions are counted nowhere."""
    with contextlib.suppress(Exception):
        few = smaller(task, 24)
        classifier = engine.make(0).fit(*few.train)
        (classifier.predict_proba if hasattr(classifier, "predict_proba") else classifier.predict)(few.test[0])


def measure(tasks: Sequence[Task], planned: Sequence[Planned], known: Sequence[Score]) -> Iterator[Score | str]:
    """The rows as they are found. A str is the sentence about an engine that failed; it is not asked again."""
    warmed, failed = set(), set()
    left = forecast(planned, known)
    for place, (task, engine, seed) in enumerate(planned):
        if (task.name, engine.name) in failed:
            continue
        if (engine, task.form) not in warmed:
            warm(task, engine)
            warmed.add((engine, task.form))
        try:
            yield measured(task, engine, seed)
        except Exception as error:
            failed.add((task.name, engine.name))
            yield f"{task.name}: {engine.name} failed: {type(error).__name__}: {str(error).strip()[:120]}"
        left_now = forecast(planned[place + 1 :], known)
        if left - left_now > 60:
            print(f"-- about {left_now / 60:.0f} minutes left", flush=True)
            left = left_now


def described(score: Score) -> str:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return (
        f"{score.set}, {score.engine}, seed {score.seed}: accuracy {score.accuracy:.4f}, macro F1 {score.f1:.4f}, "
        f"log loss {figure(score.log_loss)}, calibration error {figure(score.calibration)}; fit {score.fit:.1f} s, "
        f"predict {score.predict:.2f} s, one row {1e3 * score.one:.2f} ms{' (busy)' if score.busy else ''}"
    )


def facts(absent: dict[str, str], engines: Iterable[Engine]) -> dict[str, Any]:
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.cpu_model(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "absent": absent,
        "engines": {f"{engine.kind}: {engine.name}": engine.words for engine in engines},
        "most": {f"{engine.kind}: {engine.name}": engine.most for engine in engines if engine.most < float("inf")},
        "sets": quality_sets.WORDS | quality_series.WORDS,
        "made": list(quality_series.MADE),
        "chosen_on": list(quality_sets.CHOSEN_ON),
    }


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks quality", description=__doc__, allow_abbrev=False)
    found.add_argument("--sets", metavar="NAME,...", help=f"any of {', '.join(BUILDERS)} (default: all)")
    found.add_argument("--engines", metavar="NAME,...", help="any of those of the page (default: all installed)")
    found.add_argument("--seeds", type=int, default=3, metavar="N", help="at most, of each engine (default: 3)")
    found.add_argument(
        "--quick", action="store_true", help=f"{QUICK} rows of each part and one seed; writes no results"
    )
    found.add_argument("--forecast", action="store_true", help="only say what would be measured, and for how long")
    found.add_argument("--json", type=Path, metavar="FILE", help="append to this file instead")
    return found


def chosen(asked: str | None, known: Iterable[str], option: str) -> list[str]:
    known = list(dict.fromkeys(known))
    names = asked.split(",") if asked else known
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{option}: expected names out of {', '.join(known)} but got {', '.join(unknown)}")
    return names


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sets = chosen(arguments.sets, BUILDERS, "--sets")
    names = chosen(arguments.engines, (engine.name for engine in quality_peers.ENGINES), "--engines")
    engines = [engine for engine in quality_peers.ENGINES if engine.name in names]
    absent = {f"{e.kind}: {e.name}": f"{e.missing} is not installed" for e in quality_peers.ENGINES if e.missing}
    tasks = []
    for name in sets:
        try:
            task = BUILDERS[name](name)
        except RuntimeError as error:
            absent[name] = str(error).removeprefix(f"{name}: ")
            continue
        tasks.append(smaller(task) if arguments.quick else task)
        print(f"{name}: {len(task.train[1])} rows of training, {len(task.test[1])} of test", flush=True)
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}")
    file = arguments.json or (Path(os.devnull) if arguments.quick else quality_rows.file_of(machine.cpu_model()))
    known = quality_rows.load(file).scores if file.is_file() else []
    planned = plan(tasks, engines, 1 if arguments.quick else arguments.seeds, {score.state for score in known})
    print(f"{len(planned)} rows to measure, about {forecast(planned, known) / 60:.0f} minutes", flush=True)
    if arguments.forecast:
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    with file.open("a", encoding="utf-8") as output:
        rows.write_run(facts(absent, quality_peers.ENGINES), output)
        for found in measure(tasks, planned, known):
            if isinstance(found, Score):
                quality_rows.write(found, output)
            failures += isinstance(found, str)
            print(described(found) if isinstance(found, Score) else found, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit("expected `python -m benchmarks quality`, which binds the process to one CPU first")
