"""``TextClassifier`` and ``SeriesClassifier``: raw data in, labels out, as scikit-learn's estimators.

A constructor stores its parameters, fit() learns, and what was learned has names that end in an underscore. All of it
is in ``fitted_``. The two classes differ in their constructors and in how raw data become sequences (inputs.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import store
from ._extras import need
from ._terminal import shown
from .attributes import Learned, suggests
from .card import model_card
from .data import labels
from .data.stream import Stream
from .evaluation.report import Report
from .fit import Shared, fit, partial_fit
from .fitted import Fitted
from .inputs import Inputs, SeriesInputs, TextInputs
from .parameter_checks import check_parameters, is_available, parameters_from_json
from .schema import check_annotated
from .training.prepare import FitData

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped]

    from .trace import Trace
else:
    _base = need("sklearn.base", "TextClassifier and SeriesClassifier")
    BaseEstimator, ClassifierMixin = _base.BaseEstimator, _base.ClassifierMixin

__all__ = ["SeriesClassifier", "TextClassifier"]


class _SequenceEstimator(ClassifierMixin, BaseEstimator):
    """fit, predict, evaluate, save and load. Subclasses say what their parameters are and what X may be."""

    _inputs: Inputs
    fitted_: Fitted

    encoder_, classes_, model_ = Learned("encoder"), Learned("classes"), Learned("model")
    history_, best_epoch_, seed_ = Learned("history"), Learned("best_epoch"), Learned("seed")
    temperature_, threshold_ = Learned("temperature"), Learned("threshold")
    seen_, data_, validation_report_ = Learned("seen"), Learned("data"), Learned("validation_report")
    baseline_ = Learned("baseline")
    fitted_parameters_, extra_ = Learned("parameters"), Learned("extra")

    def fit(
        self,
        X: Any,
        y: Any = None,
        *further: Any,
        validation: Any = None,
        sample_weight: Any = None,
        resume: bool = False,
        stop: Callable[[list[dict[str, Any]]], bool] | None = None,
    ) -> _SequenceEstimator:
        """Learns from labelled sequences. In a group of torch.distributed all processes call it together.

        Args:
            X: the sequences as a list, an array, a column or a frame with one column; the ``pathlib.Path`` of a file
                that holds them and their labels (see ``toolkit.data.readers``); or a
                :class:`~seqcls_fast.toolkit.data.stream.Stream` of more than fits in memory.
            y: their labels, of any hashable kind; None with a path or a Stream.
            validation: ``(X, y)``, a ``pathlib.Path`` or a Stream to measure after every epoch, or a share of X to hold
                out for that; the weights of the best epoch are kept.
            sample_weight: the weight of each sequence.
            resume: whether to go on from the newest checkpoint in ``checkpoint_dir``, if there is one.
            stop: a function that is called with the history after every epoch; training ends when it returns True.
        """
        if further:
            is_validation = isinstance(further[0], float | tuple | os.PathLike | Stream)
            name = "validation" if is_validation else "sample_weight"
            raise TypeError(
                "fit: expected validation= and sample_weight= by their names but got a third argument without one; "
                f"did you mean {name}={shown(further[0], 40)}?"
            )
        if stop is not None and not callable(stop):
            raise TypeError(f"stop: expected None or a function of the history but got {shown(stop, 40)}")
        self._fit(FitData(X, y, validation, sample_weight), resume, stop)
        return self

    def _fit(
        self, given: FitData, resume: bool, stop: Callable[[list[dict[str, Any]]], bool] | None,
        shared: Shared | None = None,
    ) -> None:  # fmt: skip
        """As :meth:`fit`; with ``shared`` for several trainings on the same data."""
        self._check_parameters()
        parameters = self.get_params(deep=False)
        start = vars(self).get("fitted_") if self.warm_start else None
        inputs = self._inputs.with_parameters(parameters)
        fit(inputs, parameters, given, resume=resume, stop=stop, keep=self._keep, start=start, shared=shared)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> _SequenceEstimator:
        """Trains on with a batch of labelled sequences, in one pass, without looking at what came before.

        The first call learns the vocabulary of texts, or the means and deviations of series, which stay as they are; so
        its batch should not be small. A fitted or loaded estimator is trained on, with the classes that it has. The
        learning rate stays the same (0.002 unless ``learning_rate`` says otherwise), nothing is held out, and there is
        no baseline. A temperature and a threshold are forgotten.

        Args:
            X, y: sequences and their labels, or the ``pathlib.Path`` of a file with both; not a Stream.
            classes: all labels that may ever come; needed in the first call alone.
            sample_weight: the weight of each sequence, relative to the others of this call; so is ``class_weight``.

        Example::

            >>> from seqcls_fast import TextClassifier
            >>> texts = ["good film", "great film", "bad film", "awful film"] * 20
            >>> clf = TextClassifier(hidden_size=8)
            >>> for _ in range(5):
            ...     clf = clf.partial_fit(texts, ["pos", "pos", "neg", "neg"] * 20, classes=["neg", "pos"])
            >>> clf.predict(["a great one", "awful"]).tolist()
            ['pos', 'neg']
        """
        self._check_parameters()
        parameters = self.get_params(deep=False)
        inputs, start = self._inputs.with_parameters(parameters), vars(self).get("fitted_")
        self.fitted_ = partial_fit(inputs, parameters, FitData(X, y, None, sample_weight), classes, start)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, ``(len(X), len(classes_))`` in the order of ``classes_``."""
        fitted = self._ready()
        return fitted.probabilities(fitted.logits(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sequence, or the decision of the threshold if one was chosen."""
        return self.decide(self.predict_proba(X))

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The labels that :meth:`predict` gives to sequences of these probabilities."""
        return self._ready().decide(probabilities)

    def calibrate(self, X: Any, y: Any = None) -> _SequenceEstimator:
        """Learns from held-out data the ``temperature_`` to divide logits by, so that probabilities match frequencies.

        The predicted classes stay the same. A threshold is forgotten, as it was chosen on other probabilities.

        Args:
            X, y: sequences and labels that the model was not trained on, or the ``pathlib.Path`` of a file with both.

        Example::

            >>> from seqcls_fast import TextClassifier
            >>> texts = ["good", "very good", "bad", "so bad"] * 5
            >>> clf = TextClassifier(hidden_size=8, epochs=20).fit(texts, ["pos", "pos", "neg", "neg"] * 5)
            >>> new, labels = ["a good film", "bad acting", "good and bad"], ["pos", "neg", "neg"]
            >>> clf = clf.calibrate(new * 4, (labels + labels[:2] + ["pos"]) * 2)
            >>> clf.temperature_ == 1  # which stands for the probabilities as they were
            False
        """
        self.fitted_ = self._ready().calibrated(X, y)
        return self

    def choose_threshold(
        self, X: Any, y: Any = None, *, label: Any, precision: float | None = None, recall: float | None = None
    ) -> _SequenceEstimator:
        """Learns from held-out data the ``threshold_``: the least probability for which a label is predicted.

        For a sequence whose probability of ``label`` is less, the most probable of the other labels is predicted.

        Args:
            X, y: sequences and labels that the model was not trained on, or the ``pathlib.Path`` of a file with both.
            label: one of ``classes_``.
            precision: the share of the sequences predicted as ``label`` that must be right; recall is then the
                largest possible.
            recall: or the share of the sequences of ``label`` that must be found; precision is then the largest
                possible.
        """
        self.fitted_ = self._ready().with_threshold(X, y, label, precision, recall)
        return self

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The share of sequences whose label is predicted."""
        fitted = self._ready()
        logits, y, _ = fitted.measured(X, y)
        predicted = fitted.decide(fitted.probabilities(logits)).tolist()
        right = np.array([a == b for a, b in zip(predicted, y, strict=True)], dtype=np.float64)
        weights = None if sample_weight is None else labels.sample_weights(sample_weight, len(right))
        return float(np.average(right, weights=weights))

    def evaluate(self, X: Any, y: Any = None) -> Report:
        """Metrics with intervals, and warnings about numbers that should not be trusted; ``print(report)`` shows them.

        For a model with a temperature or a threshold also the metrics without them, as ``report.before``.
        """
        return self._ready().evaluate(X, y)

    def trace(self, x: Any) -> Trace:
        """Every stage of one prediction, with shapes and values; ``print(trace)`` shows them."""
        from .trace import trace

        return trace(self._ready(), x)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder that :meth:`load` reads, whole or not at all. A model saved there before is replaced."""
        fitted = self._ready()
        fitted.save(folder, model_card(fitted, type(self)))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | None = None) -> Any:
        """Reads a folder that :meth:`save` wrote. No code in the folder is run.

        The model is put on ``device``, by default on its device of training if this machine has it.
        """
        with store.opened(folder) as saved, saved.refusals():
            kind = saved.config["kind"]
            if kind != cls._inputs.kind:
                raise saved.error(f"expected a model of {cls.__name__} but got kind {shown(kind)}")
            estimator = cls(**parameters_from_json(saved.config["parameters"]))
            if device is not None or not is_available(estimator.device):
                estimator.device = device or "auto"
            estimator._check_parameters()
            parameters = estimator.get_params(deep=False)
            check_annotated(parameters, cls)
            estimator.fitted_ = Fitted.load(saved, cls._inputs.with_parameters(parameters), parameters)
            return estimator

    def _keep(self, fitted: Fitted) -> None:
        self.fitted_ = fitted

    def _ready(self) -> Fitted:
        """``fitted_`` with the present ``amp`` and ``workers``, which set_params() may have changed since fit()."""
        need("sklearn.utils.validation", type(self).__name__).check_is_fitted(self, "fitted_")
        return replace(self.fitted_, amp=self.amp, workers=self.workers)

    def _check_parameters(self) -> None:
        for name, value in self.get_params(deep=False).items():
            if isinstance(value, np.generic):  # a number out of an array, as a grid search may pass it
                setattr(self, name, value.item())
        check_parameters(self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.non_deterministic = self.seed is None
        return tags


class TextClassifier(_SequenceEstimator):
    """Classifies texts: a tokenizer, an embedding, a recurrent encoder and a linear head; beside them hashed n-grams of
    words and characters, which go straight to the logits.

    Args:
        cell, hidden_size, num_layers, bidirectional, pooling, dropout, embedding_dropout: of
            :class:`seqcls_fast.SequenceClassifier`.
        embedding_dim: width of a token's embedding.
        word_dropout: the share of the tokens that training replaces by the unknown one, which is so trained.
        wide: whether there are hashed n-grams; False leaves the recurrent encoder alone.
        wide_dropout: the share of the n-grams that training leaves out of each text. Above 0 their table is trained
            with the network; at 0 it is a linear support vector machine, if there are not too many texts for one.
        tokenizer: ``"word"``, ``"char"`` or ``"bpe"`` (byte pairs, learned from the texts); or the path of a
            ``tokenizer.json`` as Hugging Face's tokenizers save it, which is kept with the model.
        vectors: the file of pretrained vectors that the embedding begins with, ``embedding_dim`` numbers for a word:
            text (``.vec`` or ``.txt``, as of word2vec, GloVe and fastText), or an array ``.npy`` beside the list of its
            words, a file of the same name that ends in ``.words``. Words that are not in it begin at random.
        lowercase, normalization: whether case is ignored; the Unicode form that texts are converted to, or None.
        max_length: the tokens that are read of a text; later ones are cut off.
        max_vocab, min_frequency: the most tokens of the vocabulary; how often a token must occur to be in it.
        epochs: the number of passes over the training data; None chooses by the number of texts.
        batch_size, learning_rate: None chooses by the number of texts.
        weight_decay, schedule, warmup: the decay of AdamW; ``"cosine"``, ``"one_cycle"`` or ``"constant"``; the share
            of the steps in which the learning rate rises.
        max_grad_norm: gradients of a larger norm are scaled down to it; None leaves them.
        label_smoothing: the share of each target that is spread over all classes, in training of the network.
        class_weight: None, ``"balanced"`` or a dict from label to weight.
        holdout: the share of the data that is held out to choose the best epoch and the network's share of the logits,
            where fit() gets no ``validation`` and there are 200 texts or more; None trains on all of them and keeps the
            last epoch.
        refit: whether the model is then trained again on all of the data, for as many epochs as were best; not for a
            Stream.
        patience: with validation, training ends after that many epochs without a better ``metric``; None trains all.
        metric: what makes an epoch the best in validation: ``"loss"``, ``"accuracy"``, ``"balanced_accuracy"`` or
            ``"macro_f1"``.
        amp: whether matrix products are computed in bfloat16.
        on_nan: the answer to a NaN or exploding loss: ``"raise"`` is an error, ``"restore"`` goes back an epoch and
            goes on at half the learning rate.
        device: ``"auto"`` or a torch device.
        seed: the seed of everything random; None draws one.
        verbose: None shows a bar in a terminal, True a line per epoch anywhere, False nothing.
        log_dir: folder for TensorBoard's logs, or None.
        checkpoint_dir: folder for checkpoints, from which ``fit(resume=True)`` goes on, or None.
        checkpoint_every: seconds between two checkpoints, or more if writing one takes long; 0 writes one every step.
        workers: processes that read and encode a Stream ahead; 0 does it in the training process.
        baseline: whether a linear model on simple features (n-grams of a text, summaries of a series) is fitted too, as
            ``baseline_``, with which reports compare the network.
        warm_start: whether fit() of an estimator that is fitted, or loaded, goes on from its weights, with its
            vocabulary and its classes, in place of new ones.

    Example::

        >>> from seqcls_fast import TextClassifier
        >>> texts = ["good film", "great film", "bad film", "awful film"] * 10
        >>> clf = TextClassifier(hidden_size=8, epochs=10).fit(texts, ["pos", "pos", "neg", "neg"] * 10)
        >>> clf.predict(["a great one", "awful"]).tolist()
        ['pos', 'neg']
    """

    _inputs = TextInputs()

    @suggests
    def __init__(
        self, *, cell: str = "gru", hidden_size: int = 96, embedding_dim: int = 96, num_layers: int = 1,
        bidirectional: bool = True, pooling: str = "max", dropout: float = 0.5, embedding_dropout: float = 0.3,
        word_dropout: float = 0.3, wide: bool = True, wide_dropout: float = 0.0,
        tokenizer: str | os.PathLike[str] = "word", vectors: str | os.PathLike[str] | None = None,
        lowercase: bool = True, normalization: str | None = "NFKC", max_length: int | None = 256,
        max_vocab: int = 20_000, min_frequency: int = 1, epochs: int | None = None, batch_size: int | None = None,
        learning_rate: float | None = None, weight_decay: float = 0.01, schedule: str = "cosine", warmup: float = 0.1,
        max_grad_norm: float | None = 1.0, label_smoothing: float = 0.0, class_weight: Any = None,
        holdout: float | None = 0.1, refit: bool = True, patience: int | None = None, metric: str = "loss",
        amp: bool = False, on_nan: str = "raise", device: str = "auto", seed: int | None = 0,
        verbose: bool | None = None, log_dir: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None, checkpoint_every: float = 60.0, workers: int = 1,
        baseline: bool = True, warm_start: bool = False,
    ) -> None:  # fmt: skip
        self.cell, self.hidden_size, self.embedding_dim, self.num_layers = cell, hidden_size, embedding_dim, num_layers
        self.bidirectional, self.pooling, self.dropout, self.tokenizer = bidirectional, pooling, dropout, tokenizer
        self.embedding_dropout, self.word_dropout, self.wide = embedding_dropout, word_dropout, wide
        self.wide_dropout, self.label_smoothing = wide_dropout, label_smoothing
        self.vectors, self.holdout, self.refit = vectors, holdout, refit
        self.lowercase, self.normalization, self.max_length = lowercase, normalization, max_length
        self.max_vocab, self.min_frequency, self.epochs, self.batch_size = max_vocab, min_frequency, epochs, batch_size
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule
        self.warmup, self.max_grad_norm, self.class_weight = warmup, max_grad_norm, class_weight
        self.patience, self.metric, self.amp, self.on_nan = patience, metric, amp, on_nan
        self.device, self.seed, self.verbose, self.log_dir = device, seed, verbose, log_dir
        self.checkpoint_dir, self.checkpoint_every, self.workers = checkpoint_dir, checkpoint_every, workers
        self.baseline, self.warm_start = baseline, warm_start


class SeriesClassifier(_SequenceEstimator):
    """Classifies numeric series of any lengths: a recurrent encoder over standardised features, and a linear head.

    Args:
        layout: the order of the axes of the arrays in X: ``"time_channels"``, or ``"channels_time"`` as in aeon and
            sktime. Files and Streams say themselves what is a step.
        standardize: whether each feature is scaled so that it has mean 0 and deviation 1.
        normalize: where it has them: ``"data"`` (in the training data), ``"series"`` (in each series), or ``"auto"``:
            whichever the wide part does better with on series that it was not fitted on; ``"data"`` for a Stream.
        differences, time: whether the changes from step to step, and the time, become further features of a step.
        missing: what replaces NaN: ``"error"`` (NaN is refused), ``"zero"``, ``"mean"``, ``"forward"`` (the value
            before) or ``"mask"`` (the mean, and one more feature that marks it).
        convolutions: about how many random convolutions (as MiniRocket's) the wide part has, a linear model beside the
            network that is fitted in closed form; 0 for no such part.
        holdout: the share of the data that is held out to choose the best epoch and the network's share of the logits,
            where fit() gets no ``validation`` and 20 series or more in memory; None trains on all.
        others: as in :class:`TextClassifier`.

    Example::

        >>> import numpy as np
        >>> from seqcls_fast import SeriesClassifier
        >>> rng = np.random.default_rng(0)
        >>> series = [rng.normal(size=(rng.integers(3, 9), 2)) + label for label in [0, 2] * 20]
        >>> clf = SeriesClassifier(hidden_size=8, epochs=10).fit(series, ["low", "high"] * 20)
        >>> clf.predict([np.zeros((4, 2)), np.full((4, 2), 2.0)]).tolist()
        ['low', 'high']
    """

    _inputs = SeriesInputs()

    @suggests
    def __init__(
        self, *, cell: str = "gru", hidden_size: int = 64, num_layers: int = 1, bidirectional: bool = True,
        pooling: str = "max", dropout: float = 0.2, layout: str = "time_channels", standardize: bool = True,
        missing: str = "error", normalize: str = "auto", differences: bool = True, time: bool = True,
        convolutions: int = 10_000, max_length: int | None = None, epochs: int = 20, batch_size: int | None = None,
        learning_rate: float | None = None, weight_decay: float = 0.01, schedule: str = "cosine", warmup: float = 0.1,
        max_grad_norm: float | None = 1.0, class_weight: Any = None, holdout: float | None = 0.2,
        patience: int | None = None, metric: str = "loss", amp: bool = False, on_nan: str = "raise",
        device: str = "auto", seed: int | None = 0, verbose: bool | None = None,
        log_dir: str | os.PathLike[str] | None = None, checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 60.0, workers: int = 1, baseline: bool = True,
        warm_start: bool = False,
    ) -> None:  # fmt: skip
        self.holdout = holdout
        self.cell, self.hidden_size, self.num_layers, self.bidirectional = cell, hidden_size, num_layers, bidirectional
        self.pooling, self.dropout, self.layout = pooling, dropout, layout
        self.standardize, self.missing = standardize, missing
        self.normalize, self.differences, self.time, self.convolutions = normalize, differences, time, convolutions
        self.max_length, self.epochs, self.batch_size = max_length, epochs, batch_size
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule
        self.warmup, self.max_grad_norm, self.class_weight = warmup, max_grad_norm, class_weight
        self.patience, self.metric, self.amp, self.on_nan = patience, metric, amp, on_nan
        self.device, self.seed, self.verbose, self.log_dir = device, seed, verbose, log_dir
        self.checkpoint_dir, self.checkpoint_every, self.workers = checkpoint_dir, checkpoint_every, workers
        self.baseline, self.warm_start = baseline, warm_start

    @property
    def n_features_in_(self) -> int:
        features: int = self._ready().encoder.features_in
        return features
