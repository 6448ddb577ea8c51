"""Trains a TextClassifier to tell the language of a few lines of code, on files that every machine with torch has.

The model reads characters in one direction, because torch.nn can then be compared at its best: its layer of one
direction computes the same from packed rows and from padded ones. All sides of that comparison start from the same
weights and drop out the same values, and nothing is timed unless their first losses agree. snippets.py says where the
data come from.

    python examples/demo.py            half a minute; pictures, report and model in build/demo
    python examples/demo.py --small    fewer snippets, for tests
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import snippets  # beside this file
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast.toolkit.data.batches import bucketed
from seqcls_fast.toolkit.evaluation import plots
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
from seqcls_fast.toolkit.evaluation.report import Report
from seqcls_fast.toolkit.timing import timed, turns
from seqcls_fast.toolkit.twin import TorchTwin


@dataclass(frozen=True)
class Settings:
    snippets: int = 3000  # of a language, at most
    files: int = 400  # of a language, at most
    hidden: int = 64
    epochs: int = 10
    rounds: int = 40  # training steps of each model that are timed


SMALL = Settings(snippets=500, files=100, epochs=8, rounds=12)


# -- learning ---------------------------------------------------------------------------------------------------------


def learn(data: snippets.Snippets, settings: Settings, seed: int, verbose: bool | None = False) -> sf.TextClassifier:
    classifier = sf.TextClassifier(
        tokenizer="char", lowercase=False, embedding_dim=32, hidden_size=settings.hidden, bidirectional=False,
        epochs=settings.epochs, device="cpu", seed=seed, verbose=verbose,
    )  # fmt: skip
    return classifier.fit(*columns(data.train), validation=columns(data.validation))


def assess(classifier: sf.TextClassifier, data: snippets.Snippets) -> Report:
    """As ``classifier.evaluate``, and also looks for snippets of the test set in the training set."""
    texts, languages = columns(data.test)
    proba = classifier.predict_proba(texts)
    known = classifier.classes_
    return evaluate_predictions(
        languages, known[proba.argmax(1)], proba, labels=known, train_texts=columns(data.train)[0], test_texts=texts,
        train_accuracy=classifier.score(*columns(data.train)),
    )  # fmt: skip


def columns(part: list[snippets.Snippet]) -> tuple[list[str], list[str]]:
    return [snippet.text for snippet in part], [snippet.language for snippet in part]


def draw(classifier: sf.TextClassifier, report: Report, lengths: Tensor, folder: Path) -> None:
    plots.save(plots.learning_curves(classifier.history_), folder / "learning_curves.png")
    plots.save(plots.confusion(report), folder / "confusion.png")
    plots.save(plots.reliability(report), folder / "reliability.png")
    plots.save(plots.length_histogram(lengths), folder / "lengths.png")
    (folder / "report.html").write_text(report.to_html(history=classifier.history_, lengths=lengths), encoding="utf-8")


# -- beside torch.nn --------------------------------------------------------------------------------------------------


class Trainer:
    """Makes the training steps that ``fit`` makes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model.train(), torch.optim.AdamW(model.parameters(), lr=2e-3)

    def step(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> float:
        loss = nn.functional.cross_entropy(self.model(ids, lengths), targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def batches(classifier: sf.TextClassifier, data: snippets.Snippets, count: int) -> Iterator[tuple[Tensor, ...]]:
    """Ids, lengths and targets. The first batch mixes all lengths, so that reading the padding would change its loss.

    The others hold rows of similar length, as the batches of ``fit`` do.
    """
    texts, languages = columns(data.train)
    ids = classifier.encoder_.encode(texts)
    index = {language: k for k, language in enumerate(classifier.classes_.tolist())}
    targets = torch.tensor([index[language] for language in languages])
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randperm(len(ids), generator=generator)[:64]
    for rows in [mixed, *bucketed(ids.lengths, 64, generator)][:count]:
        yield *ids.pad(rows), targets[rows]


def compare(classifier: sf.TextClassifier, data: snippets.Snippets, rounds: int) -> None:
    """Times training steps of three models on the same batches."""
    trained = classifier.model_
    torch.manual_seed(0)
    fresh = sf.SequenceClassifier(
        trained.input_size, trained.hidden_size, trained.num_classes, vocab_size=trained.vocab_size,
        pooling=trained.pooling, dropout=trained.dropout,
    )  # fmt: skip
    models = {
        "seqcls_fast": fresh,
        "torch.nn packed": TorchTwin(fresh),
        "torch.nn padded": TorchTwin(fresh, packed=False),
    }
    trainers = {name: Trainer(model) for name, model in models.items()}
    first, *rest = batches(classifier, data, rounds + 1)
    losses = {}
    for name, trainer in trainers.items():
        torch.manual_seed(0)  # every model drops out the same values
        losses[name] = trainer.step(*first)
    print("first loss: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    if max(losses.values()) - min(losses.values()) > 1e-5:
        sys.exit("the first losses differ: the steps are not the same computation, so no timing is shown")
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for number, name in turns(trainers, len(rest)):
        torch.manual_seed(1 + number)
        seconds[name].append(timed(partial(trainers[name].step, *rest[number]))[0])
    print("training step: " + ", ".join(f"{name} {1e3 * median(times):.1f} ms" for name, times in seconds.items()))
    own, *others = trainers
    best = min(others, key=lambda name: median(seconds[name]))
    low, middle, high = quantiles((b / a for a, b in zip(seconds[own], seconds[best], strict=True)), n=4)
    print(f"speed: {middle:.2f}x that of {best} (half of the steps lie in {low:.2f}x to {high:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer snippets and a smaller model, for tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "build" / "demo", metavar="FOLDER")
    arguments = parser.parse_args()
    settings = SMALL if arguments.small else Settings()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        f"seqcls_fast {sf.__version__} ({', '.join(sf.available_impls())}), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )

    data = snippets.build(arguments.seed, settings.snippets, settings.files)
    print(f"{data}\nNo file is in two of the parts, and no six words in a row are in two snippets.\n")
    classifier = learn(data, settings, arguments.seed, verbose=True)
    report = assess(classifier, data)
    print(f"\nThe test set, from files that no training snippet comes from:\n\n{report}\n")
    if not report.warnings:
        print("warnings: none\n")

    texts = columns(data.test)[0]
    draw(classifier, report, classifier.encoder_.encode(texts).lengths, arguments.out)
    trace = classifier.trace(min((text for text in texts if "\n" in text), key=len))
    plots.save(trace.figure(), arguments.out / "trace.png")
    print(f"One snippet's way through the model:\n\n{trace}\n")
    classifier.save(arguments.out / "model")
    print(f"pictures, report.html and the model are in {arguments.out}\n")

    compare(classifier, data, settings.rounds)


if __name__ == "__main__":
    main()
