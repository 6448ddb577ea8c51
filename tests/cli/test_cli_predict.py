"""`predict`, `evaluate` and `trace`: the answers of a saved model about data."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqcls_fast import __main__
from seqcls_fast.cli import predict
from seqcls_fast.cli._without_torch import Predictor, open_runtime
from seqcls_fast.toolkit import estimators
from support.commands import ENVIRONMENT, RUN, misused, refused, reviews, stdin, told, write_csv


def expected_of(made: SimpleNamespace, texts: list[str]) -> tuple[list[str], np.ndarray]:
    model = estimators.TextClassifier.load(made.model)
    return model.predict(texts).tolist(), model.predict_proba(texts)


def test_evaluate(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "evaluate", made.model, made.test, *made.columns)
    assert "precision" in text
    page, pictures = tmp_path / "r.html", tmp_path / "pictures"
    answer = json.loads(
        told(
            capsys,
            "evaluate",
            made.model,
            made.test,
            *made.columns,
            "--json",
            "--html",
            str(page),
            "--pictures",
            str(pictures),
        )
    )
    assert answer["examples"] == 40
    model = estimators.TextClassifier.load(made.model)
    rows = reviews(40, 2)
    assert answer["accuracy"] == model.score([row[0] for row in rows], [row[1] for row in rows])
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert (pictures / "confusion.png").stat().st_size > 1000


def test_evaluate_finds_leaked_data(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def leaked(model: str, data: str, *arguments: str) -> list[str]:
        answer = json.loads(told(capsys, "evaluate", model, data, *arguments, "--json"))
        return [warning for warning in answer["warnings"] if "duplicates of" in warning]

    assert leaked(made.model, made.test, *made.columns) == []
    assert "120 of 120" in leaked(made.model, made.train, *made.columns)[0]  # which the model remembers
    assert "60 of 60" in leaked(made.series_model, made.series)[0]
    other = write_csv(tmp_path / "other.csv", ("review", "stars"), reviews(5, 2))
    assert "5 of 40" in leaked(made.model, made.test, *made.columns, "--train", other)[0]
    both = write_csv(tmp_path / "both.csv", ("review", "stars"), reviews(5, 1) + reviews(40, 2))
    assert "10 of 45" in leaked(made.model, both, *made.columns, "--train", other)[0]


def test_labels_may_be_text_where_the_model_learnt_numbers(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in Path(made.series).read_text().splitlines()]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(line | {"label": str(line["label"])}) + "\n" for line in lines))
    expected, found = (
        json.loads(told(capsys, "evaluate", made.series_model, name, "--json")) for name in (made.series, str(path))
    )
    assert expected.pop("about")["data"] == f"60 examples of {made.series}"
    assert found.pop("about")["data"] == f"60 examples of {path}"
    assert found == expected
    assert expected["labels"] == ["0", "1"]


def test_predict_csv(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.model, made.test, "--text", "review")
    header, *rows = csv.reader(io.StringIO(out))
    labels, shares = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert header == ["label", "probability_neg", "probability_pos"]
    assert [row[0] for row in rows] == labels
    np.testing.assert_allclose([[float(value) for value in row[1:]] for row in rows], shares, rtol=1e-5)
    path = tmp_path / "labels.csv"
    assert told(capsys, "predict", made.model, made.test, "--text", "review", "--out", str(path)) == ""
    assert path.read_text(encoding="utf-8") == out


def test_predict_jsonl(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.model, made.test, "--text", "review", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    labels, shares = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert [record["label"] for record in records] == labels
    assert [list(record["probabilities"].values()) for record in records] == shares.tolist()
    assert list(records[0]["probabilities"]) == ["neg", "pos"]


def test_predict_json_is_one_object(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", made.model, made.test, "--text", "review", "--json", "--batch", "7"]
    answer = json.loads(told(capsys, *arguments))
    labels, _ = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert [record["label"] for record in answer["predictions"]] == labels
    assert answer["summary"] == {"rows": 40, "labels": {name: labels.count(name) for name in ("neg", "pos")}}
    path = tmp_path / "labels.csv"
    summary = json.loads(told(capsys, *arguments, "--out", str(path)))
    assert summary == answer["summary"] | {"out": str(path)}
    assert len(path.read_text().splitlines()) == 41


def test_predict_beside_the_input(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a good film", '=1+"x"', "bad\r\nfilm", ""]
    path = tmp_path / "new.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "review"), *((f"n{k}", text) for k, text in enumerate(texts))])
    plainly = [line.split(",") for line in told(capsys, "predict", made.model, str(path), "--text", "review").split()]
    for option, name, expected in (
        (["--echo"], "input", [texts[0], "'" + texts[1], *texts[2:]]),
        (["--echo", "--raw"], "input", texts),
        (["--id", "id"], "id", ["n0", "n1", "n2", "n3"]),
    ):
        out = told(capsys, "predict", made.model, str(path), "--text", "review", "--batch", "3", *option)
        header, *rows = csv.reader(io.StringIO(out, newline=""))
        assert header == [name, *plainly[0]]
        assert [row[0] for row in rows] == expected
        assert [row[1:] for row in rows] == plainly[1:]
    more = ["--text", "review", "--format", "jsonl", "--echo"]
    found = [json.loads(line) for line in told(capsys, "predict", made.model, str(path), *more).splitlines()]
    assert [each["input"] for each in found] == texts
    answer = json.loads(told(capsys, "predict", made.model, str(path), "--text", "review", "--json", "--id", "id"))
    assert [each["id"] for each in answer["predictions"]] == ["n0", "n1", "n2", "n3"]
    wrong = refused(capsys, "predict", made.model, str(path), "--text", "review", "--id", "ids")
    assert wrong == "--id: expected a column of the data but row 0 has no 'ids'; did you mean 'id'?"
    assert "not allowed with" in misused(capsys, "predict", made.model, str(path), "--id", "id", "--echo")


def test_predict_beside_the_number_of_a_series(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = csv.reader(io.StringIO(told(capsys, "predict", made.series_model, made.series, "--echo")))
    assert header[:2] == ["input", "label"]
    assert [row[0] for row in rows] == [str(k) for k in range(60)]
    found = told(capsys, "predict", made.series_model, made.series, "--id", "label", "--format", "jsonl").splitlines()
    assert [json.loads(line)["id"] for line in found] == [k % 2 for k in range(60)]


def test_predict_numbers_keep_their_type(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.series_model, made.series, "--format", "jsonl")
    assert {json.loads(line)["label"] for line in out.splitlines()} == {0, 1}


def test_predict_lines_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, 'a good film\n\nan awful, "café" plot\r\nbad'.encode())
    rows = list(csv.reader(io.StringIO(told(capsys, "predict", made.model))))
    labels, _ = expected_of(made, ["a good film", "", 'an awful, "café" plot', "bad"])
    assert [row[0] for row in rows[1:]] == labels


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_predict_records_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    data = {"csv": b'id,review\n1,"good,\nfine"\n2,bad\n', "jsonl": b'{"review": "good,\\nfine"}\n{"review": "bad"}\n'}
    stdin(monkeypatch, data[format])
    out = told(capsys, "predict", made.model, "-", "--text", "review", "--input-format", format)
    labels, _ = expected_of(made, ["good,\nfine", "bad"])
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == labels


def test_predict_series_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b'{"series": [[-3, 0.5], [0, 0.5]]}\n{"series": [[3, 0.5], [4, 0.5], [3, 0.5]]}\n')
    out = told(capsys, "predict", made.series_model)
    assert [line[0] for line in out.splitlines()[1:]] == ["0", "1"]


def test_predict_of_nothing(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"")
    assert told(capsys, "predict", made.model) == "label,probability_neg,probability_pos\n"
    stdin(monkeypatch, b"")
    assert json.loads(told(capsys, "predict", made.model, "--json")) == {
        "predictions": [], "summary": {"rows": 0, "labels": {"neg": 0, "pos": 0}}
    }  # fmt: skip


def test_predict_streams(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch is asked for only when the one before has been written."""
    seen: list[int] = []
    original = Predictor.predict

    def predict(self: Any, X: list[str]) -> Any:
        seen.append(len(X))
        return original(self, X)

    monkeypatch.setattr(Predictor, "predict", predict)
    stdin(monkeypatch, b"good film\n" * 600)
    assert len(told(capsys, "predict", made.model).splitlines()) == 601
    assert seen == [256, 256, 88]


@pytest.mark.parametrize("kind", ["text", "series"])
@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "jsonl", "--echo"], ["--batch", "7"]])
def test_the_runtime_and_the_estimator_write_the_same(
    kind: str,
    options: list[str],
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [made.model, made.test, "--text", "review"] if kind == "text" else [made.series_model, made.series]
    with monkeypatch.context() as patch:
        patch.setattr(estimators, "TextClassifier", None)  # which the runtime does not need
        patch.setattr(estimators, "SeriesClassifier", None)
        found = told(capsys, "predict", *given, *options)
    monkeypatch.setattr(predict, "open_runtime", lambda folder: None)
    assert found == told(capsys, "predict", *given, *options)
    assert len(found) > 40


def test_what_the_runtime_refuses_is_the_estimators(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sentence about data, and models that the runtime does not run, such as those of a GPU."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"series": [[1, 2], [null, 0.5]]}\n')
    words = refused(capsys, "predict", made.series_model, str(data))
    assert words == (
        'series[0]: expected no missing value but got nan at step 1, feature 0, which missing="error" refuses'
    )
    assert open_runtime(made.model) is not None
    copy = tmp_path / "model"
    shutil.copytree(made.model, copy)
    config = json.loads((copy / "config.json").read_text())
    config["parameters"]["device"] = "cuda"
    (copy / "config.json").write_text(json.dumps(config))
    assert open_runtime(str(copy)) is None
    assert open_runtime(str(tmp_path / "none")) is None


def test_torch_is_not_imported(made: SimpleNamespace) -> None:
    program = (
        "import sys\n"
        "from seqcls_fast.__main__ import main\n"
        "main(sys.argv[1:])\n"
        "assert not {'torch', 'sklearn', 'tokenizers'} & set(sys.modules), sys.modules"
    )
    for given in ([made.model, made.test, "--text", "review"], [made.series_model, made.series]):
        done = subprocess.run(
            [*RUN[:1], "-c", program, "predict", *given], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done
        assert done.stdout.startswith("label,")


def test_without_torch(made: SimpleNamespace, tmp_path: Path) -> None:
    """What the runtime refuses is its own sentence then; the other commands say what they need."""
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom seqcls_fast.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    )
    data = tmp_path / "data.jsonl"
    data.write_text('{"series": [[1, 2], [null, 0.5]]}\n')
    missing = (
        'x: expected no missing value (NaN), which the model\'s missing="error" refuses, in row 0 at step 1, feature 0'
    )
    torch = " needs torch: pip install 'seqcls-fast[torch]' (seqcls_fast.runtime runs saved models without it)"
    for given, sentence in (
        (["predict", made.series_model, str(data)], missing),
        (["predict", str(tmp_path / "none")], f"{tmp_path / 'none/config.json'}: No such file or directory"),
        (["info"], "seqcls-fast info" + torch),
        (["train", made.train, *made.columns, "--out", str(tmp_path / "m")], "seqcls-fast train" + torch),
        (["export", made.model, "--out", str(tmp_path / "m.sfm")], "seqcls-fast export" + torch),
    ):
        command = [*RUN[:1], "-c", program, *given]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence + "\n")


def test_a_failed_prediction_leaves_the_file_before(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("before")
    stdin(monkeypatch, b"good\n" * 300 + b"\xff\n")
    err = refused(capsys, "predict", made.model, "--out", str(path))
    assert "line 301" in err
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_data_writes_nothing(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["predict", made.model, made.test, "--text", "txet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expected a column 'txet' but got 'review', 'stars'" in captured.err


def test_pipes_are_utf_8_whatever_the_locale(made: SimpleNamespace) -> None:
    command, environment = [*RUN, "trace", made.model, "-"], ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    text = "schöner Film\n".encode()
    result = subprocess.run(command, input=text, capture_output=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert "'schöner Film'" in result.stdout.decode()
    assert "█" in result.stdout.decode()


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_has_seen_enough(made: SimpleNamespace) -> None:
    process = subprocess.Popen(
        [*RUN, "predict", made.model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"good film\n" * 2000)
    process.stdin.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_trace(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "trace", made.model, "A good film", "--picture", str(tmp_path / "t.svg"))
    labels, shares = expected_of(made, ["A good film"])
    assert text.splitlines()[0].endswith("'A good film'")
    assert f"P({labels[0]})" in text
    assert (tmp_path / "t.svg").read_text(encoding="utf-8").count("<svg") == 1
    answer = json.loads(told(capsys, "trace", made.model, "A good film", "--json"))
    assert [stage["name"] for stage in answer["stages"]] == [
        "ids",
        "embedding",
        "hidden",
        "pooled",
        "wide",
        "logits",
        "softmax",
    ]
    assert len(answer["tokens"]) == 3
    np.testing.assert_allclose(answer["probabilities"][-1], shares[0], rtol=1e-6)
    stdin(monkeypatch, b"A good film")
    assert json.loads(told(capsys, "trace", made.model, "-", "--json"))["probabilities"] == answer["probabilities"]


def test_trace_of_a_series(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(told(capsys, "trace", made.series_model, "[[1, 2], [3, 4]]", "--json"))
    assert (answer["kind"], answer["raw"]) == ("series", [[1, 2], [3, 4]])
    model = estimators.SeriesClassifier.load(made.series_model)
    np.testing.assert_allclose(
        answer["probabilities"][-1], model.predict_proba([np.array([[1, 2], [3, 4]])])[0], rtol=1e-6
    )
    assert "expected a series as JSON" in refused(capsys, "trace", made.series_model, "no JSON")
