"""A trace: its stages are those of the prediction, its prefixes those of the text cut there, whatever the model.

The model is real and the encoder a stand-in, so that ids and lengths can be chosen. The last tests use the estimators'
own encoders.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast import SequenceClassifier, SeriesClassifier, TextClassifier
from seqcls_fast.classifier import CELLS, POOLINGS
from seqcls_fast.toolkit import trace as tracing
from seqcls_fast.toolkit._terminal import beginning, columns, visible
from seqcls_fast.toolkit.data.leakage import Fingerprints
from seqcls_fast.toolkit.data.ragged import Ragged
from seqcls_fast.toolkit.fitted import Fitted
from seqcls_fast.toolkit.inputs import SeriesInputs, TextInputs
from seqcls_fast.toolkit.trace import Trace, trace

FEATURES, VOCAB = 3, 30


class Words:
    """Splits at spaces; a word's id is its length and 2."""

    def tokens(self, text: str) -> list[str]:
        return text.split()

    def encode(self, texts: list[str]) -> Ragged:
        return Ragged.of([[len(word) + 2 for word in text.split()] for text in texts])


class Plain:
    def encode(self, series: list[Any]) -> Ragged:
        return Ragged.of([torch.as_tensor(np.asarray(each, dtype=np.float32)).reshape(-1, FEATURES) for each in series])

    def prefixes(self, series: Any, counts: Any) -> list[Any]:
        return [np.asarray(series)[:count] for count in counts]


def fitted(text: bool = True, classes: Any = ("neg", "pos"), **options: Any) -> Any:
    size = {"vocab_size": VOCAB} if text else {}
    model = SequenceClassifier(FEATURES, 4, len(classes), **size, **options).eval()
    inputs, encoder = (TextInputs(), Words()) if text else (SeriesInputs(), Plain())
    seen = Fingerprints(frozenset(), frozenset())
    return Fitted(inputs, {}, encoder, np.array(classes), model, seen, [], 1, seed=0, data=None)


def stage(found: Trace, name: str) -> torch.Tensor:
    return next(each.values for each in found.stages if each.name == name)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_stages_end_in_the_prediction(cell: str, pooling: str, bidirectional: bool) -> None:
    clf = fitted(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=2, dropout=0.5)
    found = trace(clf, "I love this movie")
    ids = clf.encoder.encode(["I love this movie"]).values
    with torch.no_grad():
        expected = clf.model(ids[None])
    torch.testing.assert_close(stage(found, "logits"), expected)
    torch.testing.assert_close(stage(found, "softmax"), expected.double().softmax(1))
    torch.testing.assert_close(found.probabilities[-1], stage(found, "softmax")[0])
    assert found.predicted == clf.classes[expected.argmax()]


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prefix_is_the_example_cut_there(pooling: str, text: bool) -> None:
    clf = fitted(text, pooling=pooling, bidirectional=True)
    words = ["a", "bb", "ccc", "dddd", "eeeee"]
    series = torch.randn(5, FEATURES).tolist()
    found = trace(clf, " ".join(words) if text else series)
    assert found.steps == [0, 1, 2, 3, 4, 5]
    for step in found.steps[1:]:
        alone = trace(clf, " ".join(words[:step]) if text else series[:step])
        torch.testing.assert_close(found.probabilities[step], stage(alone, "softmax")[0])
    assert (found.probabilities.diff(dim=0).abs().amax(1) > 0).all()


def test_stages_have_their_shapes_and_values() -> None:
    clf = fitted(bidirectional=True, pooling="max")
    found = trace(clf, "I love this movie")
    shapes = {each.name: each.shape for each in found.stages}
    assert shapes == {
        "ids": (1, 8), "embedding": (1, 8, FEATURES), "hidden": (1, 8, 8), "pooled": (1, 8),
        "logits": (1, 2), "softmax": (1, 2),
    }  # fmt: skip
    assert found.tokens == ["I", "love", "this", "movie"]
    assert stage(found, "ids").tolist() == [[3, 6, 6, 7, 0, 0, 0, 0]]
    torch.testing.assert_close(stage(found, "embedding")[0, 0], clf.model.embedding.weight[3])
    assert not stage(found, "hidden")[0, 4:].any()
    torch.testing.assert_close(stage(found, "pooled")[0], stage(found, "hidden")[0, :4].amax(0))


def test_padding_is_shown_even_when_the_length_is_a_multiple() -> None:
    found = trace(fitted(), "a b c d e f g h")
    assert stage(found, "ids").shape == (1, 16)
    assert "the last 8 are padding" in str(found)


def test_a_series() -> None:
    clf = fitted(False)
    series = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    found = trace(clf, series)
    assert found.kind == "series"
    assert found.tokens == ["1.00 2.00 3.00", "4.00 5.00 6.00"]
    assert stage(found, "features").tolist() == [series]
    assert found.to_dict()["raw"] == series
    assert "4.00 5.00 6.00" in str(found)


@pytest.mark.parametrize("text", [True, False])
def test_an_empty_example(text: bool) -> None:
    found = trace(fitted(text), "" if text else [])
    assert (found.tokens, found.steps, found.probabilities.shape) == ([], [0], (1, 2))
    assert "(nothing yet)" in str(found)
    found.figure().savefig(io.BytesIO())


def test_the_model_is_left_as_it_was() -> None:
    clf = fitted(dropout=0.5)
    for training in (True, False):
        clf.model.train(training)
        first, second = trace(clf, "a bb"), trace(clf, "a bb")
        assert torch.equal(first.probabilities, second.probabilities)  # no dropout
        assert clf.model.training is training
    assert all(p.grad is None for p in clf.model.parameters())


def test_long_series_are_sampled_and_run_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = fitted(False)
    series = torch.randn(50, FEATURES).tolist()
    every = trace(clf, series)
    monkeypatch.setattr(tracing, "BATCH_STEPS", 120)
    torch.testing.assert_close(trace(clf, series).probabilities, every.probabilities)
    monkeypatch.setattr(tracing, "PREFIXES", 7)
    few = trace(clf, series)
    assert few.steps == [0, 7, 14, 21, 29, 36, 43, 50]
    torch.testing.assert_close(few.probabilities, every.probabilities[few.steps])


def test_json() -> None:
    found = trace(fitted(classes=[1, 2, 3]), "I love this")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["raw"] == "I love this"
    assert told["tokens"] == ["I", "love", "this"]
    assert told["classes"] == [1, 2, 3]
    assert told["predicted"] == found.predicted
    assert told["steps"] == [0, 1, 2, 3]
    assert np.allclose(np.sum(told["probabilities"], 1), 1)
    for each in told["stages"]:
        assert list(np.shape(each["values"])) == each["shape"], each["name"]


def test_missing_values_of_a_series_are_shown() -> None:
    clf = fitted(False)
    clf.encoder.encode = lambda series: Ragged.of([torch.zeros(min(len(each), 2), FEATURES) for each in series])
    found = trace(clf, [[1.0, None, 3.0], [4.0, 5.0, 6.0]])
    assert found.tokens[0] == "1.00 nan 3.00"


def test_text_has_a_line_and_a_bar_per_token() -> None:
    clf = fitted()
    with torch.no_grad():
        clf.model.head.weight.zero_()
        clf.model.head.bias.copy_(torch.tensor([0.0, 3.0]).log1p())  # probabilities 1/5 and 4/5
    lines = str(trace(clf, "I love this movie")).splitlines()
    assert lines[0] == "text       'I love this movie'"
    assert lines[1] == "tokens     4: I love this movie"
    assert lines[2] == "ids        (1, 8)          3 6 6 7 0 0 0 0  the last 4 are padding"
    assert "softmax    (1, 2)          neg 0.200  pos 0.800" in lines
    table = lines[lines.index("") + 1 :]
    assert table[0].split()[-1] == "P(pos)"
    assert [line.split()[:2] for line in table[2:]] == [["1", "I"], ["2", "love"], ["3", "this"], ["4", "movie"]]
    assert all(line.endswith("0.800 " + "█" * 19 + "▎") for line in table[1:])  # 0.8 * 24 = 19.2


def test_another_class_in_front_is_named() -> None:
    clf = fitted(classes=["a", "b", "c"])
    found = trace(clf, "x yy zzz")
    fake = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    changed = Trace(found.kind, found.raw, found.tokens, found.stages, found.classes, found.steps, fake, 2)
    table = str(changed).splitlines()[-4:]
    assert table[0].endswith("  b leads")
    assert table[1].endswith("  a leads")
    assert not table[3].endswith("leads")


def test_a_long_text_is_shortened() -> None:
    found = str(trace(fitted(), " ".join("w" * (k % 9 + 1) for k in range(200))))
    assert "... 153 more ..." in found  # 201 lines but for 48
    assert len(found.splitlines()) < 65
    assert all(len(line) < 200 for line in found.splitlines())
    assert found.splitlines()[-1].startswith("200  ")


@pytest.mark.parametrize(
    ("token", "shown"),
    [("a", "a"), ("\n", "\\n"), (" ", "' '"), ("a\tb", "a\\tb"), ("\x1b[2J", "\\x1b[2J"), ("", "''")],
)
def test_what_cannot_be_seen_is_written_out(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_wide_characters_keep_the_columns() -> None:
    clf = fitted()
    table = str(trace(clf, "这部 电影 é fine")).splitlines()[-5:]
    assert len({columns(line[: line.index("█")]) for line in table}) == 1


@pytest.mark.parametrize(
    ("text", "most", "cut"), [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc..."), ("这部电影", 7, "这部...")]
)
def test_cut(text: str, most: int, cut: str) -> None:
    assert beginning(text, most) == cut


def test_figure_has_a_curve_per_class() -> None:
    clf = fitted(classes=["_neg", "$pos^$"])
    found = trace(clf, "I $x^$ love_ this")
    figure = found.figure()
    (axes,) = figure.axes
    curves = {tuple(line.get_ydata()) for line in axes.lines}
    assert curves == {tuple(found.probabilities[:, k].tolist()) for k in range(2)}
    assert sorted(text.get_text() for text in axes.get_legend().get_texts()) == ["$pos^$", "_neg"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["(nothing yet)", "I", "$x^$", "love_", "this"]
    figure.savefig(io.BytesIO(), format="svg")  # no token is taken for a formula


def test_many_classes_are_drawn_together() -> None:
    found = trace(fitted(classes=list(range(30))), "a bb ccc")
    (axes,) = found.figure().axes
    assert len(axes.lines) == 7
    assert axes.get_legend().get_texts()[-1].get_text() == "the other 24"
    total = np.sum([line.get_ydata() for line in axes.lines], 0)
    assert np.allclose(total, 1)


def test_not_a_text() -> None:
    with pytest.raises(TypeError, match="x: expected one text, a str, but got list"):
        trace(fitted(), ["a", "b"])


@pytest.mark.parametrize("tokenizer", ["word", "char", "bpe"])
def test_of_texts(tokenizer: str) -> None:
    texts = ["good film, great plot", "bad film", "awful plot", "a great one"] * 5
    clf = TextClassifier(hidden_size=4, embedding_dim=4, epochs=1, tokenizer=tokenizer, max_length=9)
    clf.fit(texts, ["pos", "neg", "neg", "pos"] * 5)
    for text in ("Great film", "", "unseen ünïcødé 电影", "one two three four five six seven eight nine ten eleven"):
        found = clf.trace(text)
        ids = clf.encoder_.encode([text])
        assert len(found.tokens) == int(ids.lengths[0]) == found.steps[-1]
        assert stage(found, "ids")[0, : len(found.tokens)].tolist() == ids.values.tolist()
        np.testing.assert_allclose(found.probabilities[-1].numpy(), clf.predict_proba([text])[0], rtol=1e-6)
        assert found.predicted == clf.predict([text])[0]
        assert str(found)


def test_of_series_with_gaps() -> None:
    series = [[[k % 2, 1.0], [None, 2.0], [k % 3, float("nan")]] for k in range(12)]
    clf = SeriesClassifier(hidden_size=4, epochs=1, missing="mask").fit(series, [k % 2 for k in range(12)])
    found = clf.trace(series[0])
    assert found.tokens == ["0.00 1.00", "nan 2.00", "0.00 nan"]
    assert stage(found, "features").shape == (1, 3, 7)  # values, marks, changes, time
    np.testing.assert_allclose(found.probabilities[-1].numpy(), clf.predict_proba(series[:1])[0], rtol=1e-6)
