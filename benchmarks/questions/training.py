"""How fast a training is with a second process, with data read while they are used, and with checkpoints.

    python -m benchmarks.questions.training [--json NAME] [--quick]

Each is compared with the same training in one process, without checkpoints and with its data in memory: of a
bidirectional GRU on the ragged texts of classifier.py. Whole trainings are run in turns, and the figure is the median
of tokens per second over all epochs but the first. Every process has one thread. `python -m benchmarks` does not run
this question.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from seqcls_fast.toolkit.timing import turns

from ..rows import RESULTS, ROOT
from .classifier import corpus

BARS = {"two ranks": 1.7, "streaming": 1 / 1.1, "checkpoints": 1 / 1.02}
TEXTS, BATCH, EPOCHS, ROUNDS = 16_384, 128, 4, 5
QUICK = 1024, 128, 2, 1


def data(count: int) -> tuple[list[str], list[str]]:
    return corpus(count), [f"class {i % 5}" for i in range(count)]


def train(side: str, texts: int, batch: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Trains one side in this process, or this process's share of it if torchrun started several."""
    import seqcls_fast as sf
    from seqcls_fast.toolkit.data.stream import Stream
    from seqcls_fast.toolkit.ranks import join

    torch.set_num_threads(1)
    with join("cpu") as ranks:
        more = {"checkpoint_dir": tempfile.mkdtemp(dir=folder)} if side == "checkpoints" else {}
        classifier = sf.TextClassifier(batch_size=batch, epochs=epochs, verbose=False, device="cpu", **more)
        start = time.perf_counter()
        if side == "streaming":
            classifier.fit(Stream(folder / "texts"))
        else:
            classifier.fit(*data(texts))
        seconds = time.perf_counter() - start
        speeds = [record["tokens_per_second"] for record in classifier.history_[1:]]
        return {"speed": median(speeds), "seconds": seconds, "writer": ranks.writer}


def train_apart(side: str, settings: tuple[int, int, int, int], folder: Path) -> dict[str, Any]:
    """The result of train() in processes of their own."""
    sizes = ",".join(map(str, settings[:3]))
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if side == "two ranks" else []
    program = [*ranks, "-m", "benchmarks.questions.training", "--side", side, "--sizes", sizes]
    command = [sys.executable, *program, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(settings: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts").mkdir()
        X, y = data(settings[0])
        for number in range(4):
            with open(folder / "texts" / f"{number}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows(zip(X[number::4], y[number::4], strict=True))
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("alone", *BARS)}
        for _, side in turns(found, settings[3]):
            found[side].append(train_apart(side, settings, folder))
    alone = [result["speed"] for result in found["alone"]]
    answer = []
    for side, bar in BARS.items():
        speeds = [result["speed"] for result in found[side]]
        ratios = [a / b for a, b in zip(speeds, alone, strict=True)]
        totals = [a["seconds"] / b["seconds"] for a, b in zip(found["alone"], found[side], strict=True)]
        answer.append({
            "what": side, "tokens_per_second": median(speeds), "alone": median(alone), "ratio": median(ratios),
            "lowest": min(ratios), "highest": max(ratios), "with_preparation": median(totals), "bar": bar,
        })  # fmt: skip
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--quick", action="store_true", help="a single small round, to see that it runs")
    for name in ("side", "sizes", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        texts, batch, epochs = map(int, arguments.sizes.split(","))
        result = train(arguments.side, texts, batch, epochs, Path(arguments.folder))
        if result["writer"]:
            print(json.dumps(result))
        return 0
    settings = QUICK if arguments.quick else (TEXTS, BATCH, EPOCHS, ROUNDS)
    comparisons = measure(settings)
    for each in comparisons:
        verdict = "pass" if each["ratio"] >= each["bar"] else "MISS"
        spread = f"{each['lowest']:.2f} to {each['highest']:.2f}"
        print(
            f"{each['what']:<12} {each['tokens_per_second']:>9,.0f} tokens/s, {each['ratio']:.3f} of one process in "
            f"memory ({spread}; bar {each['bar']:.2f}: {verdict}), {each['with_preparation']:.2f} with reading and "
            "encoding"
        )
    if arguments.json:
        path = RESULTS / f"{arguments.json}.json"
        path.write_text(json.dumps({"settings": settings, "rows": comparisons}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
