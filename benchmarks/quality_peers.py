"""The classifiers whose quality is compared: ours with its defaults, and what a person would use instead.

An engine makes a classifier from a seed; the classifier has fit(X, y), predict(X) or predict_proba(X), and classes_.
No setting of a peer was chosen on a test set either: where it is not the library's default, it was chosen on the parts
"dev" of quality_sets.CHOSEN_ON, or is as the library's guide has it. Those of torch are in quality_networks.py.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import quality_networks
from .quality_series import summaries

__all__ = ["ENGINES", "Engine", "of_kind", "padded"]


@dataclass(frozen=True)
class Engine:
    name: str
    kind: str  # of the sets it takes: "text" or "series"
    make: Callable[[int], Any]
    packages: tuple[str, ...] = ()
    seeds: int = 1  # how many it is asked for; those that draw nothing, or take long, for one
    words: str = ""  # its settings, for the page
    seconds: float = 1.0  # CPU seconds for 1,000 texts or 1,000 steps of training, roughly: for the forecast
    most: float = math.inf  # the largest set that it is asked about, in the same thousands

    @property
    def missing(self) -> str:
        """The first package that is not installed, or an empty string."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), "")


# -- text -------------------------------------------------------------------------------------------------------------


def our_text(seed: int) -> Any:
    from seqcls_fast import TextClassifier

    return TextClassifier(seed=seed)


def linear_svc(seed: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    return make_pipeline(TfidfVectorizer(), LinearSVC(random_state=seed))


def words_and_characters() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True))


def tuned_svc(seed: int) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    return make_pipeline(words_and_characters(), LinearSVC(C=0.5, random_state=seed))


def logistic(seed: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000, random_state=seed))


def tuned_logistic(seed: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, random_state=seed))


class FastText:
    """fastText takes a file with a text a line, and labels without spaces."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[str]) -> FastText:
        import fasttext

        self.classes_, ids = np.unique(y, return_inverse=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "texts")
            lines = (f"__label__{k} {' '.join(x.split())}\n" for x, k in zip(X, ids, strict=True))
            file.write_text("".join(lines), encoding="utf-8")
            self.model = fasttext.train_supervised(
                str(file), lr=0.5, epoch=25, wordNgrams=2, minn=2, maxn=5, dim=64, bucket=200_000, thread=1, verbose=0,
                seed=self.seed,
            )  # fmt: skip
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(X), len(self.classes_)))
        for row, x in zip(found, X, strict=True):
            for probability, label in self.model.f.predict(f"{' '.join(x.split())}\n", len(row), 0.0, "strict"):
                row[int(label.removeprefix("__label__"))] = probability
        return found / found.sum(1, keepdims=True)


class SpacyBow:
    """spaCy's bag of words, trained by its own loop."""

    def __init__(self, seed: int, epochs: int = 5) -> None:
        self.seed, self.epochs = seed, epochs

    def fit(self, X: Sequence[str], y: Sequence[str]) -> SpacyBow:
        import spacy
        from spacy.training import Example
        from spacy.util import compounding, fix_random_seed, minibatch

        fix_random_seed(self.seed)
        self.nlp = spacy.blank("xx")
        model = {
            "@architectures": "spacy.TextCatBOW.v3", "exclusive_classes": True, "ngram_size": 2, "length": 262144,
            "no_output_layer": False,
        }  # fmt: skip
        pipe = self.nlp.add_pipe("textcat", config={"model": model})
        self.classes_ = np.unique(y)
        rows = [
            Example.from_dict(self.nlp.make_doc(x), {"cats": {str(c): float(c == label) for c in self.classes_}})
            for x, label in zip(X, y, strict=True)
        ]
        optimizer = self.nlp.initialize(lambda: rows)
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            order = (rows[k] for k in rng.permutation(len(rows)))
            for batch in minibatch(order, size=compounding(16.0, 128.0, 1.01)):
                self.nlp.update(batch, sgd=optimizer)
        self.labels = [list(pipe.labels).index(str(c)) for c in self.classes_]
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        pipe = self.nlp.get_pipe("textcat")
        found = np.concatenate([pipe.predict(list(map(self.nlp.make_doc, part))) for part in parts(X, 256)])
        return found[:, self.labels] / found.sum(1, keepdims=True)


def parts(X: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [X[k : k + size] for k in range(0, len(X), size)]


# -- series -----------------------------------------------------------------------------------------------------------


def our_series(seed: int) -> Any:
    from seqcls_fast import SeriesClassifier

    return SeriesClassifier(seed=seed)


def padded(series: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """(n, channels, steps): zeros after the end of a shorter series; of a longer one the first steps."""
    found = np.zeros((len(series), series[0].shape[1], steps), np.float32)
    for row, x in zip(found, series, strict=True):
        row[:, : len(x)] = x[:steps].T
    return found


class Padded:
    """A classifier of arrays (n, channels, steps), given lists of series: as long as the longest in training."""

    def __init__(self, inner: Any, shortest: int = 9) -> None:
        self.inner, self.shortest = inner, shortest

    def fit(self, X: Sequence[np.ndarray], y: Sequence[str]) -> Padded:
        self.steps = max(self.shortest, *map(len, X))
        self.inner.fit(padded(X, self.steps), np.array(y))
        self.classes_ = self.inner.classes_
        return self

    def predict(self, X: Sequence[np.ndarray]) -> Any:
        return self.inner.predict(padded(X, self.steps))


class WithProbabilities(Padded):
    def predict_proba(self, X: Sequence[np.ndarray]) -> Any:
        return self.inner.predict_proba(padded(X, self.steps))


class Neighbour:
    """aeon's nearest neighbour by dynamic time warping, which takes series of unequal lengths as they are."""

    def fit(self, X: Sequence[np.ndarray], y: Sequence[str]) -> Neighbour:
        from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

        self.inner = KNeighborsTimeSeriesClassifier(distance="dtw", distance_params={"window": 0.1}, n_neighbors=1)
        self.inner.fit(self.given(X), np.array(y))
        self.classes_ = self.inner.classes_
        return self

    @staticmethod
    def given(X: Sequence[np.ndarray]) -> Any:
        series = [np.ascontiguousarray(x.T, np.float64) for x in X]
        return np.stack(series) if len({x.shape for x in series}) == 1 else series

    def predict(self, X: Sequence[np.ndarray]) -> Any:
        return self.inner.predict(self.given(X))


def minirocket(seed: int) -> Any:
    from aeon.classification.convolution_based import MiniRocketClassifier

    return Padded(MiniRocketClassifier(random_state=seed))


def lstm_fcn(seed: int) -> Any:
    from sktime.classification.deep_learning.lstmfcn import LSTMFCNClassifierTorch

    return WithProbabilities(LSTMFCNClassifierTorch(num_epochs=200, random_state=seed))


class Summaries:
    """A linear model on a few numbers that describe each series."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Sequence[np.ndarray], y: Sequence[str]) -> Summaries:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.inner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=self.seed))
        self.inner.fit(np.stack(list(summaries(X))), y)
        self.classes_ = self.inner.classes_
        return self

    def predict_proba(self, X: Sequence[np.ndarray]) -> Any:
        return self.inner.predict_proba(np.stack(list(summaries(X))))


# -- all of them ------------------------------------------------------------------------------------------------------

ENGINES = (
    Engine("ours", "text", our_text, seeds=3, words="`TextClassifier()`", seconds=2.0),
    Engine("LinearSVC", "text", linear_svc, ("sklearn",), words="`TfidfVectorizer()`, `LinearSVC()`", seconds=0.05),
    Engine(
        "LinearSVC tuned", "text", tuned_svc, ("sklearn",), seconds=0.3,
        words="TF-IDF of words 1-2 and of characters 2-5, sublinear; `LinearSVC(C=0.5)`",
    ),
    Engine(
        "LogisticRegression", "text", logistic, ("sklearn",), seconds=0.1,
        words="`TfidfVectorizer()`, `LogisticRegression(max_iter=1000)`",
    ),
    Engine(
        "LogisticRegression tuned", "text", tuned_logistic, ("sklearn",), seconds=0.5,
        words="TF-IDF of words 1-2, sublinear; `LogisticRegression(C=10, max_iter=1000)`",
    ),
    Engine(
        "fastText", "text", FastText, ("fasttext",), seeds=3, seconds=0.5,
        words="25 epochs, rate 0.5, words 1-2, characters 2-5, 64 dimensions",
    ),
    Engine(
        "skorch + nn.GRU", "text", quality_networks.skorch_text, ("skorch",), seconds=1.6,
        words="embedding and GRU of 64, both directions, the largest over the steps; 5 epochs of Adam",
    ),
    Engine(
        "Keras GRU", "text", quality_networks.KerasText, ("keras", "jax"), seconds=2.0,
        words="`Embedding(64)`, `Bidirectional(GRU(64))`, with jax; 5 epochs of Adam",
    ),
    Engine(
        "spaCy bow", "text", SpacyBow, ("spacy",), seconds=1.5, words="`spacy.TextCatBOW.v3`, words 1-2, 5 epochs",
    ),
    Engine("ours", "series", our_series, seeds=5, words="`SeriesClassifier()`", seconds=0.4),
    Engine(
        "MiniRocket", "series", minirocket, ("aeon",), seeds=5, seconds=0.1, words="aeon's `MiniRocketClassifier()`",
    ),
    Engine(
        "1-NN DTW", "series", lambda seed: Neighbour(), ("aeon",), seconds=0.3,
        words="aeon's nearest neighbour, with a window of a tenth of the length",
    ),
    Engine(
        "LSTM-FCN", "series", lstm_fcn, ("sktime",), seconds=2.5, most=12.0,
        words="sktime's `LSTMFCNClassifierTorch`, 200 epochs instead of 2,000",
    ),
    Engine(
        "skorch + nn.GRU", "series", quality_networks.skorch_series, ("skorch",), seconds=2.2, most=12.0,
        words="GRU of 64 on standardised channels, both directions, the largest over the steps; 100 epochs of Adam",
    ),
    Engine(
        "summaries", "series", Summaries, ("sklearn",), seconds=0.01,
        words="mean, deviation, ends and steps of each channel; `LogisticRegression()`",
    ),
)  # fmt: skip


def of_kind(kind: str) -> list[Engine]:
    return [engine for engine in ENGINES if engine.kind == kind]
