"""The whole classifier against the same model over torch.nn: training, inference, one text, and what surrounds them.

    python benchmarks/bench_classifier.py [--threads 1,2] [--json NAME] [--quick]

Ragged texts: word counts are log-normal (median 30, at most 200), words Zipf-distributed over 10,000. torch.nn's side
gets the better of its two ways, packed and padded with the last states picked out. Both sides share weights, batches,
pooling, head and optimizer; the logits must agree before anything is timed. "sorted" is inference on batches of about
one length, as the estimators make them, where torch.nn pays least for raggedness. The last lines are of what does not
concern torch.nn: the share of tokenising, and the time of imports and of --help.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf
from seqcls_fast.toolkit.batches import by_length
from seqcls_fast.toolkit.ragged import Ragged
from seqcls_fast.toolkit.text import TextEncoder

ROOT = Path(__file__).resolve().parent.parent
B, E, H, V, CLASSES, BATCHES = 64, 50, 64, 10_000, 5, 8
BARS = {("training", "gru"): 3.0, ("training", "lstm"): 2.0, ("inference", "gru"): 6.0, ("inference", "lstm"): 3.0}
ONE_TEXT_BAR = 4.0  # torch.nn's latency over ours
AGREE = 1e-4  # logits of the two sides


def corpus(texts: int) -> list[str]:
    g = torch.Generator().manual_seed(1)
    counts = (30 * torch.randn(texts, generator=g).mul(0.6).exp()).round().clamp(1, 200).long()
    words = torch.multinomial(1 / torch.arange(1.0, V + 1), int(counts.sum()), replacement=True, generator=g)
    letters = "abcdefghijklmnopqrstuvwxyz"  # (a digit would begin another word)
    names = ["".join(letters[i // 26**k % 26] for k in (2, 1, 0)) for i in words.tolist()]
    ends = counts.cumsum(0).tolist()
    return [" ".join(names[end - count : end]) for end, count in zip(ends, counts.tolist(), strict=True)]


class TorchClassifier(nn.Module):
    """The same model on torch.nn's layers."""

    def __init__(self, model: sf.SequenceClassifier, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(model.vocab_size, model.input_size, model.padding_idx)
        self.encoder = {"gru": nn.GRU, "lstm": nn.LSTM}[model.cell](
            model.input_size, model.hidden_size, batch_first=True
        )
        self.head = nn.Linear(model.hidden_size, model.num_classes)
        self.load_state_dict(model.state_dict())

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.packed:
            final = self.encoder(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]
            return self.head((final[0] if isinstance(final, tuple) else final)[-1])
        return self.head(self.encoder(x)[0][torch.arange(len(ids)), lengths - 1])


@dataclass
class Row:
    what: str
    cell: str
    threads: int
    rival: str = ""
    torch_ms: float = 0.0
    ours_ms: float = 0.0
    ratio: float = 0.0
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    starred: bool = False
    error: float = 0.0


def sides_of(
    what: str, cell: str, batches: list[tuple[Tensor, Tensor]], vocabulary: int
) -> dict[str, Callable[[], Any]]:
    """Each goes through all batches once."""
    torch.manual_seed(0)
    ours = sf.SequenceClassifier(E, H, CLASSES, cell=cell, vocab_size=vocabulary)
    models: dict[str, nn.Module] = {
        "torch packed": TorchClassifier(ours, packed=True), "torch padded": TorchClassifier(ours, packed=False),
        "ours": ours,
    }  # fmt: skip
    targets = [torch.randint(CLASSES, (len(lengths),)) for _, lengths in batches]

    def train(model: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

        def run() -> None:
            for (ids, lengths), target in zip(batches, targets, strict=True):
                optimizer.zero_grad()
                cross_entropy(model(ids, lengths), target).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

        return run

    def infer(model: nn.Module) -> Callable[[], Any]:
        model.eval()
        if isinstance(model, sf.SequenceClassifier):
            model.prepare_inference()

        @torch.inference_mode()
        def run() -> list[Tensor]:
            return [model(ids, lengths) for ids, lengths in batches]

        return run

    return {name: (train if what == "training" else infer)(model) for name, model in models.items()}


def measure_row(
    what: str, cell: str, threads: int, guard: harness.Guard, data: Ragged, vocabulary: int, rounds: int
) -> Row:
    torch.set_num_threads(threads)
    count = 1 if what == "one text" else B
    order = by_length(data.lengths, count) if what == "sorted" else torch.arange(len(data)).split(count)
    batches = [data.pad(rows) for rows in order[: 32 if count == 1 else BATCHES]]
    logits = {name: torch.cat(run()) for name, run in sides_of("inference", cell, batches, vocabulary).items()}
    row = Row(what, cell, threads, bar=ONE_TEXT_BAR if what == "one text" else BARS.get((what, cell)))
    row.error = max(float((logits["ours"] - other).abs().max()) for other in logits.values())
    if not row.error <= AGREE:
        return row
    sides = sides_of(what, cell, batches, vocabulary)
    first = {name: harness.timed_once(run)[0] for name, run in sides.items()}
    times = harness.measure(sides, guard, first=first, min_time=0.02, max_rounds=rounds, allowance=60.0)
    row.rival = min((name for name in sides if name != "ours"), key=lambda name: times[name].seconds)
    ratio = harness.Ratio.of(times[row.rival], times["ours"])
    row.torch_ms, row.ours_ms = (1e3 * times[name].seconds / len(batches) for name in (row.rival, "ours"))
    row.ratio, row.low, row.high = ratio.value, ratio.low, ratio.high
    row.starred = times["ours"].starred or times[row.rival].starred
    return row


def tokenising(data: Ragged, texts: list[str], encoder: TextEncoder, rounds: int) -> dict[str, float]:
    """Its share of predicting texts, per cell, at one thread."""
    torch.set_num_threads(1)
    found = {}
    for cell in ("gru", "lstm"):
        torch.manual_seed(0)
        model = (
            sf.SequenceClassifier(E, H, CLASSES, cell=cell, vocab_size=encoder.vocab_size).eval().prepare_inference()
        )
        order = by_length(data.lengths, 256)

        @torch.inference_mode()
        def infer(model: nn.Module = model, order: list[Tensor] = order) -> None:
            for rows in order:
                model(*data.pad(rows))

        cuts, runs = [], []
        for _ in range(2 * rounds):
            cuts.append(harness.timed_once(lambda: encoder.encode(texts))[0])
            runs.append(harness.timed_once(infer)[0])
        found[cell] = median(cuts) / (median(cuts) + median(runs))
    return found


def startup(rounds: int) -> dict[str, float]:
    """Seconds of a process that imports torch, the package, or shows the command's help."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import of the layers": ["-c", "import torch, seqcls_fast; seqcls_fast.GRU"],
        "--help": ["-m", "seqcls_fast", "--help"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            found[name].append(time.perf_counter() - start)
    return {name: median(seconds) for name, seconds in found.items()}


def told(row: Row) -> str:
    if not row.ours_ms:
        return f"{row.what:<10} {row.cell:<5} {row.threads}  WRONG: logits differ by {row.error:.1e}"
    verdict = "" if row.bar is None else f"bar {row.bar:g}x: {'pass' if row.ratio >= row.bar else 'MISS'}"
    star = "*" if row.starred else ""  # disturbed: the least of what was seen
    quartiles = "" if row.low is None or row.high is None else f"({row.low:.2f} to {row.high:.2f})"
    return (
        f"{row.what:<10} {row.cell:<5} {row.threads}  {row.rival:<13} {row.torch_ms:9.3f} {row.ours_ms:9.3f}  "
        f"{row.ratio:5.2f}x{star} {quartiles}  {verdict}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The classifier, end to end, against the same model over torch.nn.")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--json", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--quick", action="store_true", help="one thread, few rounds")
    arguments = parser.parse_args(argv)
    rounds, threads = (3, arguments.threads[:1]) if arguments.quick else (9, arguments.threads)
    texts = corpus(2048)
    encoder = TextEncoder("word").fit(texts)
    data = encoder.encode(texts)
    print(
        f"{len(texts)} texts, {int(data.lengths.sum())} words, median {int(data.lengths.median())}, longest "
        f"{int(data.lengths.max())}; {encoder.vocab_size} ids; B = {B}, E = {E}, H = {H}; torch {torch.__version__}, "
        f"{harness.cpu_model()}, {os.cpu_count()} cores\n"
    )
    print("what       cell  thr  rival          torch ms   ours ms  ratio (quartiles)")
    rows, peak = [], harness.Peak()
    for count in threads:
        guard = harness.Guard(peak, count, f"{peak.widest()}-float32")
        for what in ("training", "inference", "sorted", "one text"):
            for cell in ("gru", "lstm"):
                rows.append(measure_row(what, cell, count, guard, data, encoder.vocab_size, rounds))
                print(told(rows[-1]), flush=True)
    shares, seconds = tokenising(data, texts, encoder, rounds), startup(3 if arguments.quick else 7)
    for cell, share in shares.items():
        verdict = "pass" if share <= 0.2 else "MISS"
        print(f"tokenising takes {share:.1%} of predicting texts with a {cell} (bar 20 %: {verdict})")
    more = seconds["import of the layers"] / seconds["import torch"]
    verdict = "pass" if more < 1.2 else "MISS"
    print(f"importing torch and our layers takes {more:.2f}x importing torch (bar 1.2x: {verdict})")
    print(f"--help takes {seconds['--help']:.2f} s (bar 1 s: {'pass' if seconds['--help'] < 1 else 'MISS'})")
    if losing := [row for row in rows if row.ratio < 1]:
        print("losing rows:\n" + "\n".join(map(told, losing)))
    if arguments.json:
        facts = {"torch": torch.__version__, "cpu": harness.cpu_model(), "cores": os.cpu_count(), "tokenising": shares}
        answer = facts | {"startup": seconds, "rows": [asdict(row) for row in rows]}
        file = ROOT / "benchmarks" / "results" / f"{arguments.json}.json"
        file.write_text(json.dumps(answer, indent=1) + "\n")
    return 1 if any(not row.ours_ms for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
