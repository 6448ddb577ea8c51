"""What surrounds a training step: a second process, data that are read while they are used, and checkpoints.

    python benchmarks/questions/training.py [--json NAME] [--quick]

Each comparison alternates between its two sides, whole trainings of a bidirectional GRU on ragged texts (those of
bench_classifier.py), and compares the medians of tokens per second over epochs, the first left out; processes have one
thread. Both sides of a pair see the same texts, batch size and number of steps.
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

ROOT = Path(__file__).resolve().parents[2]
BARS = {"two ranks": 1.7, "streaming": 1 / 1.1, "checkpoints": 1 / 1.02}
TEXTS, BATCH, EPOCHS, ROUNDS = 16_384, 128, 4, 5
QUICK = 1024, 128, 2, 1


def data(count: int) -> tuple[list[str], list[str]]:
    from .classifier import corpus

    return corpus(count), [f"class {i % 5}" for i in range(count)]


def train(side: str, texts: int, batch: int, epochs: int, folder: Path) -> dict[str, Any]:
    """One side in this process, or its share in a process of torchrun's."""
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


def run(side: str, settings: tuple[int, int, int, int], folder: Path) -> dict[str, Any]:
    texts, batch, epochs, _ = settings
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if side == "two ranks" else []
    words = [
        sys.executable,
        *ranks,
        "-m",
        "benchmarks.questions.training",
        "--side",
        side,
        "--sizes",
        f"{texts},{batch},{epochs}",
        "--folder",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(settings: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts").mkdir()
        X, y = data(settings[0])
        for part in range(4):
            with open(folder / "texts" / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["text", "label"])
                rows.writerows(zip(X[part::4], y[part::4], strict=True))
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("alone", *BARS)}
        for _ in range(settings[3]):
            for side, results in found.items():
                results.append(run(side, settings, folder))
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
    parser.add_argument("--quick", action="store_true", help="small and once, to see that it runs")
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
    rows = measure(settings)
    for row in rows:
        verdict = "pass" if row["ratio"] >= row["bar"] else "MISS"
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        print(
            f"{row['what']:<12} {row['tokens_per_second']:>9,.0f} tokens/s, {row['ratio']:.3f} of one process in memory"
            f" ({spread}; bar {row['bar']:.2f}: {verdict}), {row['with_preparation']:.2f} with reading and encoding"
        )
    if arguments.json:
        path = ROOT / "benchmarks" / "results" / f"{arguments.json}.json"
        path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
