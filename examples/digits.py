"""Trains a SeriesClassifier on the handwritten digits that come with scikit-learn.

A picture of 8 x 8 pixels is read as a series of 8 steps, its rows from top to bottom, with 8 features each.

    python examples/digits.py          a few seconds
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

import seqcls_fast as sf
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
from seqcls_fast.toolkit.evaluation.report import Report


def run(seed: int = 0, epochs: int = 20, verbose: bool | None = False) -> Report:
    """Trains on three quarters of the pictures and reports on the rest."""
    digits = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=seed
    )
    classifier = sf.SeriesClassifier(epochs=epochs, device="cpu", seed=seed, verbose=verbose)
    classifier.fit(list(train), train_labels, validation=0.1)
    proba = classifier.predict_proba(list(test))
    return evaluate_predictions(
        test_labels, classifier.classes_[proba.argmax(1)], proba, labels=classifier.classes_,
        train_texts=train, test_texts=test, train_accuracy=classifier.score(list(train), train_labels),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report = run(arguments.seed, arguments.epochs, verbose=True)
    print(f"\n{report}")
    wrong = int(report.confusion.sum() - np.trace(report.confusion))
    print(f"\n{wrong} of {int(report.confusion.sum())} pictures that it had not seen were taken for another digit")


if __name__ == "__main__":
    main()
