"""Data and models that the tests of several commands share. No test may change them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqcls_fast import __main__
from support.commands import SMALL, reviews, write_csv


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Data, and a model of texts and one of series, trained by the command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    draw = random.Random(0)
    series = [
        {"series": [[draw.gauss(k % 2 * 3, 1), 0.5] for _ in range(3 + k % 5)], "label": k % 2} for k in range(60)
    ]
    found = SimpleNamespace(
        folder=folder,
        train=write_csv(folder / "train.csv", ("review", "stars"), reviews(120, 1)),
        test=write_csv(folder / "test.csv", ("review", "stars"), reviews(40, 2)),
        series=str(folder / "series.jsonl"),
        model=str(folder / "model"),
        series_model=str(folder / "series_model"),
        columns=["--text", "review", "--label", "stars"],
    )
    Path(found.series).write_text("".join(json.dumps(line) + "\n" for line in series))
    assert __main__.main(["train", found.train, *found.columns, *SMALL, "--out", found.model]) == 0
    arguments = ["--kind", "series", "--hidden-size", "8", "--epochs", "4", "--out", found.series_model]
    assert __main__.main(["train", found.series, *arguments]) == 0
    return found
