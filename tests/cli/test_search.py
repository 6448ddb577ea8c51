"""Choosing hyper-parameters: scikit-learn's searches over ragged data, and `train --search`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import seqcls_fast as sf
from seqcls_fast import __main__
from seqcls_fast.cli import search
from seqcls_fast.cli.options import TrainOptions
from seqcls_fast.toolkit import fit
from seqcls_fast.toolkit.training import options, wide
from seqcls_fast.toolkit.training.loop import TrainingError
from seqcls_fast.toolkit.training.options import best_epoch_of
from seqcls_fast.toolkit.training.prepare import FitData
from support.corpora import sentences, waves

QUICK: dict[str, Any] = {"hidden_size": 8, "epochs": 3, "verbose": False}

# -- scikit-learn's ---------------------------------------------------------------------------------------------------


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def pandas_series(values: list[Any]) -> Any:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.Series(values, index=range(100, 100 + len(values)))  # by whose index nothing may be looked up


HOLDERS: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "objects": objects, "pandas": pandas_series}


@pytest.fixture(params=["text", "series"], scope="module")
def kind(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Lists of sequences, and what searches over them find."""
    torch.set_num_threads(1)
    make: Callable[[], Any]
    if request.param == "text":
        (X, y), make = sentences(count=40), lambda: sf.TextClassifier(embedding_dim=8, **QUICK)
    else:
        (X, y), make = waves(count=40), lambda: sf.SeriesClassifier(**QUICK)
    return SimpleNamespace(X=X, y=y, make=make, found=searches(make, X, y))


def searches(make: Callable[[], Any], X: Any, y: Any) -> dict[str, Any]:
    """By each of scikit-learn's ways: the scores, the choice, and what the chosen model predicts."""
    options: dict[str, Any] = {"cv": 2, "error_score": "raise"}
    grid, draw = {"hidden_size": [4, 8]}, options | {"random_state": 0}
    wide = grid | {"cell": ["gru", "lstm"]}
    epochs = {"resource": "epochs", "min_resources": 1, "max_resources": 4, "factor": 2}
    pipeline = Pipeline([("same", FunctionTransformer(lambda values: values)), ("classify", make())])
    found = {
        "grid": GridSearchCV(make(), grid, scoring="roc_auc", **options),
        "random": RandomizedSearchCV(make(), {"dropout": [0.0, 0.1, 0.5]}, n_iter=2, **draw),
        "halving": HalvingRandomSearchCV(make(), wide, **epochs, **draw),
        "pipeline": GridSearchCV(pipeline, {"classify__hidden_size": [4, 8]}, **options),
    }
    answer: dict[str, Any] = {"cross": cross_val_score(make(), X, y, **options).tolist()}
    answer["probabilities"] = cross_val_predict(make(), X, y, cv=2, method="predict_proba").tolist()
    for name, each in found.items():
        each.fit(X, y)
        answer[name] = each.best_params_, each.cv_results_["mean_test_score"].tolist(), each.predict(X).tolist()
    assert found["halving"].n_resources_ == [1, 2, 4]
    assert len(found["halving"].best_estimator_.history_) == 4
    return answer


@pytest.mark.parametrize("holder", HOLDERS)
def test_searches_over_ragged_data(kind: SimpleNamespace, holder: str) -> None:
    """The same whatever holds the sequences."""
    hold = HOLDERS[holder]
    y = np.array(kind.y) if holder == "objects" else hold(kind.y)
    assert searches(kind.make, hold(kind.X), y) == kind.found


def test_searches_in_processes(kind: SimpleNamespace) -> None:
    alone, together = (
        GridSearchCV(kind.make(), {"hidden_size": [4, 8]}, cv=2, n_jobs=jobs, error_score="raise").fit(kind.X, kind.y)
        for jobs in (1, 2)
    )
    assert together.cv_results_["mean_test_score"].tolist() == alone.cv_results_["mean_test_score"].tolist()
    assert np.array_equal(together.predict_proba(kind.X), alone.predict_proba(kind.X))


def test_a_search_passes_on_what_fit_takes(kind: SimpleNamespace) -> None:
    model = kind.make().set_params(patience=1, epochs=30, metric="accuracy")
    found = GridSearchCV(model, {"learning_rate": [0.01, 0.03]}, cv=2, error_score="raise")
    found.fit(kind.X, kind.y, sample_weight=np.ones(40), validation=0.25)
    assert len(found.best_estimator_.history_) < 30


# -- what `train --search` tries --------------------------------------------------------------------------------------

CHOSEN: dict[str, Any] = {
    "hidden_size": 64, "num_layers": 1, "cell": "gru", "dropout": 0.2, "pooling": "max", "weight_decay": 0.01,
    "embedding_dim": 64, "learning_rate": None, "batch_size": None, "epochs": 6, "metric": "loss", "seed": 0,
    "verbose": False, "log_dir": None,
}  # fmt: skip
SEARCHED = ["learning_rate", *search.SPACE]


def asked(kind: str = "text", given: frozenset[str] = frozenset(), **changes: Any) -> TrainOptions:
    names = [name for name in CHOSEN if kind == "text" or name != "embedding_dim"]
    chosen = {name: CHOSEN[name] for name in names} | changes
    return TrainOptions(data="data.csv", kind=kind, stream=False, parameters=chosen, given=given)


def test_trials_differ_and_stay_in_the_space() -> None:
    trials = search.changes_of_trials(asked(), SEARCHED, 1000, 40)
    assert trials[0] == {}
    assert len({repr(changes) for changes in trials}) == len(trials) == 40
    for name, values in search.SPACE.items():
        assert {changes.get(name, CHOSEN[name]) for changes in trials} == set(values)
        assert all(changes.get(name) != CHOSEN[name] for changes in trials)
    sizes = {(changes.get("hidden_size", 64), changes.get("embedding_dim", 64)) for changes in trials}
    assert len(sizes) == 9  # what one is says nothing about the other
    rates = [changes["learning_rate"] for changes in trials[1:]]
    default = options.learning_rate_for(-(-1000 // options.batch_size_for(1000)) * 6)
    assert default / 4.01 < min(rates) < default / 2.5
    assert default * 2.5 < max(rates) < default * 4.01
    assert sum(rate < default for rate in rates) in range(10, 30)  # log-uniform: as many below as above


def test_a_longer_search_begins_like_a_shorter_one() -> None:
    trials = search.changes_of_trials(asked(), SEARCHED, 100, 12)
    assert search.changes_of_trials(asked(), SEARCHED, 100, 5) == trials[:5]
    assert search.changes_of_trials(asked(seed=1), SEARCHED, 100, 5)[1:] != trials[1:5]
    fixed = search.changes_of_trials(asked(), [name for name in SEARCHED if name != "cell"], 100, 12)
    assert fixed == [{name: value for name, value in each.items() if name != "cell"} for each in trials]


def test_few_settings_are_not_tried_twice() -> None:
    assert search.changes_of_trials(asked(), ["num_layers"], 100, 5) == [{}, {"num_layers": 2}]


def test_what_is_given_is_not_searched() -> None:
    assert search.searched_parameters(asked("text", frozenset({"cell", "seed"}))) == [
        name for name in SEARCHED if name != "cell"
    ]
    assert search.searched_parameters(asked("series")) == [name for name in SEARCHED if name != "embedding_dim"]


# -- when a trial is given up -----------------------------------------------------------------------------------------


def history(values: list[float], name: str = "val_loss") -> list[dict[str, Any]]:
    return [{"epoch": epoch, name: value} for epoch, value in enumerate(values, 1)]


def test_the_median_rule() -> None:
    rule = search.MedianRule("loss", 6)
    rule.curves = [rule.curve(history(values)) for values in ([5.0, 4.0, 9.0], [6.0, 3.0, 2.0], [1.0, 5.0])]
    assert rule.curves == [[5, 4, 4], [6, 3, 2], [1, 1]]
    assert not rule.stops(history([9.0]))  # a sixth of the epochs tells nothing
    assert rule.stops(history([9.0, 3.1]))  # of 4, 3 and 1
    assert not rule.stops(history([9.0, 3.0]))
    assert not rule.stops(history([2.9, 8.0]))  # the best so far counts
    assert not rule.stops(history([9.0, 9.0, 9.0]))  # two got that far: too few
    rule.curves.append([3.0] * 6)
    assert rule.stops(history([9.0, 9.0, 3.1]))
    assert not rule.stops(history([9.0, 9.0, 3.0]))
    rule.curves = [[1.0] * 6] * 3
    assert rule.stops(history([9.0] * 5))
    assert not rule.stops(history([9.0] * 6))  # it is done anyway


def test_the_median_rule_of_shares() -> None:
    rule = search.MedianRule("macro_f1", 3)
    rule.curves = [rule.curve(history([share], "val_macro_f1")) for share in (0.5, 0.7, 0.9)]
    assert rule.stops(history([0.6], "val_macro_f1"))
    assert not rule.stops(history([0.8], "val_macro_f1"))


class Script:
    """Stands in for training: for each trial the values of its validation, epoch by epoch, or an error."""

    def __init__(self, *curves: list[float] | Exception) -> None:
        self.curves, self.asked = list(curves), []

    def __call__(self, options: TrainOptions, stop: Callable[[list[dict[str, Any]]], bool]) -> Any:
        chosen = options.parameters
        self.asked.append(chosen)
        curve = self.curves[len(self.asked) - 1]
        if isinstance(curve, Exception):
            raise curve
        done: list[dict[str, Any]] = []
        for record in history(curve, f"val_{chosen['metric']}"):
            done.append(record)
            if stop(done):
                break
        best = done[best_epoch_of(done, chosen["metric"]) - 1][f"val_{chosen['metric']}"]
        report = {"log_loss": best, "macro": {"f1": best}, "accuracy": best}
        return SimpleNamespace(history_=done, validation_report_=report, number=len(self.asked))


def test_the_best_trial_is_kept_and_rule_are_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(
        [5.0] * 6,
        [4.0] * 6,
        [6.0, 6, 6, 6, 6, 1],
        TrainingError("the loss is nan"),
        [9.0] * 6,
        [4.0, 2.0, 3.0],
        [1.0] * 6,
    )
    best, chosen, table = search.run(script, asked(verbose=None, log_dir="logs"), SEARCHED, 100, 7)
    rows = [(row["trial"], row["val_loss"], row["epochs"], row["ended"]) for row in table["trials"]]
    assert rows == [
        (3, 1.0, 6, "complete"), (7, 1.0, 6, "complete"), (6, 2.0, 3, "patience"), (2, 4.0, 6, "complete"),
        (1, 5.0, 6, "complete"), (5, 9.0, 2, "stopped"), (4, None, 0, "diverged"),
    ]  # fmt: skip
    assert (best.number, table["saved"], table["metric"], table["seed"]) == (3, 3, "val_loss", 0)
    changes = next(row["settings"] for row in table["trials"] if row["trial"] == 3)
    assert changes
    assert chosen.parameters == CHOSEN | {"verbose": None, "log_dir": "logs"} | changes
    assert [each["log_dir"] for each in script.asked] == [str(Path("logs", f"trial-{k}")) for k in range(1, 8)]
    assert {each["verbose"] for each in script.asked} == {False}  # no bars between the lines
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "trial 1 of 7: val_loss 5.0000 after 6 epochs (as asked)"
    assert err[3].startswith("trial 4 of 7: diverged (learning_rate=")
    assert err[4].startswith("trial 5 of 7: val_loss 9.0000 after 2 epochs, stopped (")
    assert len(err) == 7
    shown = search.shown(table).splitlines()
    assert shown[0].split() == ["trial", "val_loss", "epochs", "ended", "settings"]
    assert shown[1].split()[:4] == ["3", "1.0000", "6", "complete"]
    assert shown[5].split()[-2:] == ["as", "asked"]
    assert shown[7].split()[:4] == ["4", "-", "0", "diverged"]


def test_a_stopped_trial_never_wins() -> None:
    script = Script([5.0] * 6, [4.0] * 6, [3.0] * 6, [9.0] * 6)

    def learn(options: TrainOptions, stop: Callable[[list[dict[str, Any]]], bool]) -> Any:
        found = script(options, stop)
        if found.number == 4:  # a wide part made the stopped trial's whole model the best one
            found.validation_report_["log_loss"] = 0.5
        return found

    best, _, table = search.run(learn, asked(), SEARCHED, 100, 4)
    assert [(row["trial"], row["ended"]) for row in table["trials"]] == [
        (3, "complete"), (2, "complete"), (1, "complete"), (4, "stopped"),
    ]  # fmt: skip
    assert best.number == table["saved"] == 3


def test_vectors_fix_the_width_of_the_embedding() -> None:
    assert "embedding_dim" in search.searched_parameters(asked())
    assert "embedding_dim" not in search.searched_parameters(asked(vectors="some.vec"))


def test_larger_shares_are_better() -> None:
    script = Script([0.5] * 6, [0.9] * 6, [0.7] * 6)
    best, _, table = search.run(script, asked(metric="accuracy"), SEARCHED, 100, 3)
    assert best.number == 2
    assert [row["trial"] for row in table["trials"]] == [2, 3, 1]


def test_a_search_in_which_all_diverge() -> None:
    with pytest.raises(TrainingError, match="first"):
        search.run(Script(TrainingError("first"), TrainingError("second")), asked(), SEARCHED, 100, 2)


# -- the command ------------------------------------------------------------------------------------------------------

SMALL = ["--hidden-size", "8", "--embedding-dim", "8", "--num-layers", "1", "--epochs", "6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("search") / "data.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*sentences(count=80), strict=True)])
    return str(path)


@pytest.fixture(scope="module")
def searched(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("searched") / "model"
    assert run(data, "--search", "5", "--out", str(out)) == 0
    return out


def run(data: str, *arguments: str) -> int:
    return __main__.main(["train", data, "--validation-share", "0.25", *SMALL, *arguments])


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(["train", *arguments])
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_the_best_is_saved_as_if_trained_alone(data: str, searched: Path, tmp_path: Path) -> None:
    table = json.loads((searched / "search.json").read_text())
    assert sorted(row["trial"] for row in table["trials"]) == [1, 2, 3, 4, 5]
    assert table["saved"] == table["trials"][0]["trial"]
    complete = [row["val_loss"] for row in table["trials"] if row["ended"] != "stopped"]
    assert complete == sorted(complete)
    stopped = [row["ended"] == "stopped" for row in table["trials"]]
    assert stopped == sorted(stopped)
    assert not any({"hidden_size", "embedding_dim", "num_layers"} & set(row["settings"]) for row in table["trials"])
    model = sf.TextClassifier.load(searched)
    assert model.validation_report_["log_loss"] == complete[0]
    record = json.loads((searched / "command.json").read_text())
    assert "--search" not in record["command"]
    assert record["settings"].items() >= table["trials"][0]["settings"].items()
    assert __main__.main(["train", "--config", str(searched / "command.json"), "--out", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (searched / "model.safetensors").read_bytes()
    assert not (tmp_path / "alone" / "search.json").exists()
    card = (searched / "README.md").read_text()
    assert f"Trial {table['saved']} of 5 of a random search" in card


def test_a_search_is_repeated_by_its_seed(
    data: str, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run(data, "--search", "5", "--json", "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert captured.err.count("trial ") == 5
    table = json.loads((searched / "search.json").read_text())
    assert json.loads(captured.out)["search"] == table
    assert (out / "model.safetensors").read_bytes() == (searched / "model.safetensors").read_bytes()
    assert run(data, "--search", "1", "--no-verbose", "--seed", "none", "--overwrite", "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[1].endswith("as asked")
    other = json.loads((out / "search.json").read_text())
    assert isinstance(other["seed"], int)  # the one that was drawn
    assert json.loads((out / "command.json").read_text())["settings"]["seed"] == other["seed"]
    assert run(data, "--overwrite", "--out", str(out)) == 0
    assert not (out / "search.json").exists()


def test_a_search_that_cannot_be(data: str, searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [data, "--search", "3", "--out", "model"]
    assert "--search: expected with --validation or --validation-share" in misused(capsys, *words)
    everything = [*words, "--config", str(searched / "command.json")]
    assert "--search: expected a parameter left to choose" in misused(capsys, *everything)
    checkpoints = [*words, "--validation-share", "0.5", "--checkpoint-dir", "c"]
    assert "--search: expected without --checkpoint-dir" in misused(capsys, *checkpoints)
    assert "expected a number of at least 1 but got '0'" in misused(capsys, data, "--search", "0", "--out", "model")


# -- series -----------------------------------------------------------------------------------------------------------


def test_series_are_ranked_by_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wide part and the baseline are fitted once, and the model that is saved is as if it was trained alone."""
    calls: list[str] = []
    for module, name in ((fit, "fit_baseline"), (wide, "fit_wide")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real, name=name: calls.append(name) or real(*given))
    X, y = waves(count=40)
    rows = [json.dumps({"series": series.tolist(), "label": label}) for series, label in zip(X, y, strict=True)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    words = [str(tmp_path / "data.jsonl"), "--kind", "series", "--validation-share", "0.5", "--epochs", "2"]
    words += ["--hidden-size", "4", "--convolutions", "84", "--normalize", "data"]
    assert __main__.main(["train", *words, "--search", "3", "--out", str(tmp_path / "model")]) == 0
    assert sorted(calls) == ["fit_baseline", "fit_wide"]
    model = sf.SeriesClassifier.load(tmp_path / "model")
    table = json.loads((tmp_path / "model" / "search.json").read_text())
    assert table["trials"][0]["val_loss"] == model.validation_report_["log_loss"]
    assert model.history_[model.best_epoch_ - 1]["val_loss"] != pytest.approx(model.validation_report_["log_loss"])
    assert len({row["val_loss"] for row in table["trials"]}) == 3
    config = str(tmp_path / "model" / "command.json")
    assert __main__.main(["train", "--config", config, "--out", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()


def test_trials_do_not_change_each_other() -> None:
    X, y = waves(count=80)
    shared, given = fit.Shared(), FitData(X, y, 0.5)
    small: dict[str, Any] = {"verbose": False, "convolutions": 84, "normalize": "data"}
    one, other = sf.SeriesClassifier(epochs=1, **small), sf.SeriesClassifier(epochs=9, learning_rate=0.03, **small)
    one._fit(given, False, None, shared)
    before = one.predict_proba(X)
    other._fit(given, False, None, shared)
    assert float(one.model_.convolutions.weight) != float(other.model_.convolutions.weight)
    assert np.array_equal(one.predict_proba(X), before)
    assert one.baseline_ is other.baseline_
