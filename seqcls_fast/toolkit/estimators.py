"""``TextClassifier`` and ``SeriesClassifier``: raw data in, labels out, as scikit-learn's estimators.

The constructors store; fit() learns; what was learnt ends in an underscore. The two differ in how raw data become
sequences, and in nothing else.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..classifier import SequenceClassifier
from . import store
from ._extras import need
from ._terminal import escaped, kind_of, shown
from .card import model_card
from .data import labels
from .data.columns import items, missing
from .data.leakage import Fingerprints, leaks, shared
from .data.ragged import Ragged
from .data.series import SeriesEncoder, as_steps
from .data.stream import Stream
from .data.text import TextEncoder
from .evaluation import calibration
from .evaluation.evaluate import FEW
from .ranks import Ranks, current
from .schema import check_annotated
from .training.checkpoint import CheckpointError, Checkpoints
from .training.logits import logits_of
from .training.loop import seeded, train
from .training.options import METRICS, SCHEDULES, Options, best_epoch_of
from .training.prepare import Task, prepared
from .training.resume import check_content

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped]

    from .evaluation.evaluate import Report
    from .trace import Trace
else:
    _base = need("sklearn.base", "TextClassifier and SeriesClassifier")
    BaseEstimator, ClassifierMixin = _base.BaseEstimator, _base.ClassifierMixin

__all__ = ["SeriesClassifier", "TextClassifier"]

_AT_ONCE = 256  # sequences of a batch in prediction


class _SequenceEstimator(ClassifierMixin, BaseEstimator):
    """fit, predict, evaluate, save and load. Subclasses say what X is and how it becomes sequences."""

    _kind: str
    threshold_: calibration.Rule | None

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        sample_weight: Any = None,
        resume: bool = False,
        stop: Callable[[list[dict[str, Any]]], bool] | None = None,
    ) -> _SequenceEstimator:
        """Learns from labelled sequences; in all processes of a torch.distributed group together, where there is one.

        Args:
            X: the sequences as a list, an array, a column or a frame with one column; the ``pathlib.Path`` of a file
                that holds them and their labels (see ``toolkit.readers``); or a
                :class:`~seqcls_fast.toolkit.data.stream.Stream` of more than fits in memory.
            y: their labels, of any hashable kind; None with a path or a Stream.
            validation: ``(X, y)``, a ``pathlib.Path`` or a Stream to look at after every epoch, or a share of X to
                hold out; the weights of the best epoch are kept.
            sample_weight: what each sequence counts.
            resume: whether to go on from the newest checkpoint in ``checkpoint_dir``, if there is one.
            stop: is shown the history after every epoch; training ends where it returns True.
        """
        self._check_parameters()
        ranks = current()
        with self._claimed_checkpoints(ranks):
            return self._fit(X, y, validation, sample_weight, resume, stop, ranks)

    def _fit(
        self, X: Any, y: Any, validation: Any, sample_weight: Any, resume: bool, stop: Any, ranks: Ranks
    ) -> _SequenceEstimator:  # fmt: skip
        checkpoints, saved = self._open_checkpoints(resume, ranks)
        seed = self.seed
        if seed is None:
            seed = saved["about"]["seed"] if saved else ranks.from_writer(torch.Generator().seed() % 2**31)
        task = prepared(self, X, y, validation, sample_weight, seed)
        about = task.about | {"seed": seed, "parameters": self._lasting_parameters()}
        if any(other != about for other in ranks.all(about)):
            raise ValueError("fit: expected the same data and parameters in every process but got different ones")
        if checkpoints is not None:
            checkpoints.about = about
        if saved is not None:
            _check_same(saved["about"], about)

        device = self._device()
        batch_size = self.batch_size or batch_size_for(len(task.data))
        options = Options(
            epochs=self.epochs, batch_size=batch_size, weight_decay=self.weight_decay,
            learning_rate=self.learning_rate or learning_rate_for(task.data.steps(batch_size) * self.epochs),
            schedule=self.schedule, warmup=self.warmup, max_grad_norm=self.max_grad_norm, patience=self.patience,
            metric=self.metric, amp=self.amp, on_nan=self.on_nan, seed=seed, verbose=self.verbose,
            log_dir=None if self.log_dir is None else os.fspath(self.log_dir),
        )  # fmt: skip
        model = self._make_model(task.encoder, len(task.classes), seed).to(device)
        history: list[dict[str, Any]] = []

        def learnt() -> None:
            self.encoder_, self.classes_, self.model_, self.seen_ = task.encoder, task.classes, model, task.seen
            self.history_, self.best_epoch_ = history, best_epoch_of(history, self.metric)
            self.fitted_parameters_, self.seed_ = self.get_params(deep=False), seed
            self.temperature_, self.threshold_ = 1.0, None
            self.validation_report_: dict[str, Any] | None = None
            self.data_ = task.about | {"ranks": ranks.world, "threads": torch.get_num_threads()}
            self.extra_: dict[str, Any] = {}  # what a command adds to the saved folder

        try:
            state = None if saved is None else saved["state"]
            train(
                model, task.data, options, device, task.held, history, ranks=ranks, checkpoints=checkpoints,
                saved=state, stop=stop,
            )  # fmt: skip
        except KeyboardInterrupt:
            if history:  # what there is can be used and saved
                learnt()
            raise
        finally:
            task.close()
        learnt()
        self.validation_report_ = self._validated(task, ranks)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, ``(len(X), len(classes_))`` in the order of ``classes_``."""
        return self._probabilities(self._logits(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sequence, or what the threshold says where one was chosen."""
        return self.decide(self.predict_proba(X))

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The labels that :meth:`predict` gives to sequences of these probabilities."""
        self._check_fitted()
        probabilities = np.asarray(probabilities)
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.classes_):
            wanted = f"(N, {len(self.classes_)})"
            raise ValueError(f"probabilities: expected shape {wanted} but got {tuple(probabilities.shape)}")
        return self.classes_[calibration.decide(probabilities, self.classes_.tolist(), self.threshold_)]

    def calibrate(self, X: Any, y: Any = None) -> _SequenceEstimator:
        """Learns from held-out data how sure the model may be: the ``temperature_`` that its logits are divided by.

        What it predicts stays the same. A threshold is forgotten: it was chosen on other probabilities.

        Args:
            X, y: sequences and labels that the model was not trained on, or the ``pathlib.Path`` of a file with both.

        Example::

            >>> from seqcls_fast import TextClassifier
            >>> texts = ["good", "very good", "bad", "so bad"] * 5
            >>> clf = TextClassifier(hidden_size=8, epochs=20).fit(texts, ["pos", "pos", "neg", "neg"] * 5)
            >>> new, labels = ["a good film", "bad acting", "good and bad"], ["pos", "neg", "neg"]
            >>> clf = clf.calibrate(new * 4, (labels + labels[:2] + ["pos"]) * 2)
            >>> clf.temperature_ > 1  # not even the model can be sure of the last
            True
        """
        logits, y = self._unseen(X, y, "calibrate")
        targets = labels.to_targets(y, self.classes_)
        self.temperature_ = calibration.temperature(logits.numpy(), targets.numpy())
        if self.threshold_ is not None:
            warnings.warn(
                f"calibrate: the threshold of {shown(self.threshold_.label)} is forgotten, as it was chosen on other "
                "probabilities; choose_threshold() chooses it again",
                stacklevel=2,
            )
            self.threshold_ = None
        return self

    def choose_threshold(
        self, X: Any, y: Any = None, *, label: Any, precision: float | None = None, recall: float | None = None
    ) -> _SequenceEstimator:
        """Learns from held-out data from which probability on to predict a label: ``threshold_``.

        A sequence whose probability of ``label`` is less is predicted to be the most probable of the others.

        Args:
            X, y: sequences and labels that the model was not trained on, or the ``pathlib.Path`` of a file with both.
            label: one of ``classes_``.
            precision: what share of the sequences predicted to be ``label`` has to be; as many as can be are found.
            recall: or what share of those that are ``label`` has to be found; as few others as can be come with them.
        """
        logits, y = self._unseen(X, y, "choose_threshold")
        if label not in (classes := self.classes_.tolist()):
            raise ValueError(f"label: expected one of the classes but got {shown(label)}")
        positive = np.array([each == label for each in y])
        if not positive.any():
            raise ValueError(f"y: expected sequences of the label {shown(label)} but got none")
        count, scores = int(positive.sum()), self._probabilities(logits)[:, classes.index(label)]
        if count < FEW:
            warnings.warn(
                f"choose_threshold: expected {FEW} sequences of {shown(label)} or more but got {count}: what is "
                "reached on them says little about others",
                stacklevel=2,
            )
        found = calibration.threshold(positive, scores, precision=precision, recall=recall)
        target, wanted = ("precision", precision) if precision is not None else ("recall", recall)
        assert wanted is not None  # or threshold() would have refused
        self.threshold_ = calibration.Rule(
            classes[classes.index(label)], found.value, target, float(wanted), found.precision, found.recall, count
        )
        return self

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The share of sequences whose label is predicted."""
        logits, y, _ = self._measured(X, y)
        predicted = self.decide(self._probabilities(logits)).tolist()
        right = np.array([a == b for a, b in zip(predicted, y, strict=True)], dtype=np.float64)
        weights = None if sample_weight is None else labels.sample_weights(sample_weight, len(right))
        return float(np.average(right, weights=weights))

    def evaluate(self, X: Any, y: Any = None) -> Report:
        """Metrics with intervals, and warnings about what should not be trusted; ``print(report)`` shows them.

        Of a model with a temperature or a threshold also the metrics without them, as ``report.before``.
        """
        from .evaluation.evaluate import evaluate_predictions

        logits, y, inputs = self._measured(X, y)
        probabilities = self._probabilities(logits)
        changed = self.temperature_ != 1 or self.threshold_ is not None
        report = evaluate_predictions(
            y, self.decide(probabilities).tolist(), probabilities, labels=self.classes_.tolist(),
            train_accuracy=self.history_[self.best_epoch_ - 1]["accuracy"],
            train_texts=None if inputs is None else self.seen_, test_texts=inputs,
            uncalibrated=self._probabilities(logits, 1.0) if changed else None, rule=self.threshold_,
        )  # fmt: skip
        report.warnings[:0] = shared(self.seen_, X.survey().seen) if isinstance(X, Stream) else []
        return report

    def trace(self, x: Any) -> Trace:
        """Every stage of one prediction, with shapes and values; ``print(trace)`` shows them."""
        from .trace import trace

        self._check_fitted()
        return trace(self, x)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder that :meth:`load` reads, whole or not at all. A model saved there before is replaced."""
        self._check_fitted()
        config = {
            "kind": self._kind, "version": __version__, "parameters": parameters_to_json(self.fitted_parameters_),
            "classes": labels.to_json(self.classes_), "encoder": self.encoder_.to_json(),
            "history": self.history_, "best_epoch": self.best_epoch_, "seed": self.seed_, "data": self.data_,
            "validation_report": self.validation_report_,
            "temperature": calibration.checked_temperature(self.temperature_),
            "threshold": None if self.threshold_ is None else self.threshold_.to_json(),
        }  # fmt: skip
        tensors = {f"model.{name}": t.detach().float().cpu() for name, t in _eager(self.model_).state_dict().items()}
        for name, values in vars(self.seen_).items():
            tensors[f"seen.{name}"] = torch.tensor(sorted(values), dtype=torch.int64)
        store.save_folder(folder, config, tensors, model_card(self), self.extra_)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | None = None) -> Any:
        """What :meth:`save` wrote, on its device where there is one, or on ``device``. No code in the folder is run."""
        with store.opened(folder) as saved:
            kind = saved.config["kind"]
            if kind != cls._kind:
                where = escaped(saved.where)
                raise store.StoreError(f"{where}: expected a model of {cls.__name__} but got kind {shown(kind)}")
            try:
                return cls._from(saved, device)
            except store.StoreError:
                raise
            except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
                said = (str(error) or type(error).__name__).partition("\n")[0]
                raise store.StoreError(
                    f"{escaped(saved.where)}: expected what save() writes but got {escaped(said, 1000)}"
                ) from None

    @classmethod
    def _from(cls, saved: store.Saved, device: str | None) -> Any:
        """Weights come last, once all that is said of them is known to be true of the file."""
        config = saved.config
        estimator = cls(**parameters_from_json(config["parameters"]))
        if device is not None or not _is_there(estimator.device):
            estimator.device = device or "auto"
        estimator._check_parameters()
        check_annotated(estimator.get_params(deep=False), cls)
        estimator.classes_ = labels.from_json(config["classes"])
        classes = estimator.classes_.tolist()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"classes: expected at least two different ones but got {len(classes)}")
        labels.class_factors(torch.ones(len(classes)), classes, estimator.class_weight)
        estimator.encoder_ = estimator._encoder_type.from_json(config["encoder"])
        estimator.history_, estimator.best_epoch_ = config["history"], config["best_epoch"]
        if estimator.best_epoch_ > len(estimator.history_):
            raise ValueError(f"best_epoch: expected one of {len(estimator.history_)} but got {estimator.best_epoch_}")
        for name in ("seed", "data", "validation_report"):
            setattr(estimator, f"{name}_", config.get(name))
        # models that were saved before there were temperatures have none
        estimator.temperature_ = calibration.checked_temperature(config.get("temperature", 1.0))
        rule = config.get("threshold")
        estimator.threshold_ = None if rule is None else calibration.Rule.from_json(rule, classes)
        estimator.fitted_parameters_ = estimator.get_params(deep=False)
        estimator.extra_ = saved.extra
        if estimator.num_layers > len(saved.header):  # before a module of so many is made, if without memory
            raise ValueError(f"num_layers: expected at most {len(saved.header)} but got {shown(estimator.num_layers)}")
        expected = estimator._make_model(estimator.encoder_, len(classes), device="meta").state_dict()
        saved.check(
            {f"model.{name}": (tensor.dtype, tuple(tensor.shape)) for name, tensor in expected.items()}
            | {f"seen.{field.name}": (torch.int64, None) for field in fields(Fingerprints)}
        )
        tensors = saved.tensors()
        model = estimator._make_model(estimator.encoder_, len(classes))
        model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
        estimator.seen_ = Fingerprints(
            *(frozenset(tensors[f"seen.{field.name}"].tolist()) for field in fields(Fingerprints))
        )
        estimator.model_ = model.to(estimator._device()).eval()
        return estimator

    # -- what fit and predict share -----------------------------------------------------------------------------------

    def _logits(self, X: Any) -> Tensor:
        self._check_fitted()
        if isinstance(X, Stream):
            pieces = X.pieces(self.encoder_, workers=self.workers)
            return torch.cat([torch.zeros(0, len(self.classes_)), *(self._of(piece.sequences) for piece in pieces)])
        X, _ = self._read(X, None, labelled=False)
        return self._of(self.encoder_.encode(X))

    def _of(self, sequences: Ragged) -> Tensor:
        device = next(self.model_.parameters()).device
        return logits_of(self.model_, sequences, _AT_ONCE, device, self.amp)

    def _measured(self, X: Any, y: Any) -> tuple[Tensor, list[Any], list[Any] | None]:
        """Logits, labels, and the inputs where they are in memory."""
        self._check_fitted()
        if not isinstance(X, Stream):
            X, y = self._labelled(X, y)
            if not X:
                raise ValueError("X: expected at least one sequence but got none")
            return self._logits(X), y, self._plain(X)
        if y is not None or X.label is None:
            raise ValueError("y: expected None with a Stream, which has a column of labels, but got something else")
        logits, found, classes = [], [], self.classes_.tolist()
        for piece in X.pieces(self.encoder_, workers=self.workers, classes=self.classes_):
            assert piece.targets is not None
            logits.append(self._of(piece.sequences))
            found += [classes[target] for target in piece.targets.tolist()]
        return torch.cat(logits), found, None

    def _probabilities(self, logits: Tensor, temperature: float | None = None) -> np.ndarray:
        return (logits.double() / (temperature or self.temperature_)).softmax(1).numpy()

    def _unseen(self, X: Any, y: Any, method: str) -> tuple[Tensor, list[Any]]:
        """Logits and labels of sequences that should not be those of training."""
        logits, y, inputs = self._measured(X, y)
        for found in leaks(self.seen_, inputs) if inputs is not None else shared(self.seen_, X.survey().seen):
            warnings.warn(f"{method}: expected data that training has not seen, but {found}", stacklevel=3)
        return logits, y

    def _check_fitted(self) -> None:
        need("sklearn.utils.validation", type(self).__name__).check_is_fitted(self, "model_")

    def _read(self, X: Any, y: Any, labelled: bool = True) -> tuple[list[Any], Any]:
        """The sequences, and the labels as they are given; both are read where X is a path.

        A string is never taken for a path: behind a service it is somebody else's, and may name any file there is.
        """
        if not isinstance(X, os.PathLike):
            X = self._sequences(X)
            if labelled and y is None:
                raise ValueError("y: expected labels but got None")
            return X, y
        from .data.readers import read

        if y is not None:
            raise ValueError("y: expected None with the path of a file, which holds the labels")
        table = read(X, kind=self._kind, label="label" if labelled else None)
        return table.texts_or_series, table.labels

    def _labelled(self, X: Any, y: Any) -> tuple[list[Any], list[Any]]:
        """Sequences and as many labels, out of a file or as they are."""
        X, y = self._read(X, y)
        return X, labels.as_list(y, len(X))

    def _claimed_checkpoints(self, ranks: Ranks) -> AbstractContextManager[None]:
        """The writer keeps other trainings out of ``checkpoint_dir``."""
        if self.checkpoint_dir is None or not ranks.writer:
            return nullcontext()
        return Checkpoints(self.checkpoint_dir, self.checkpoint_every).claimed()

    def _open_checkpoints(self, resume: bool, ranks: Ranks) -> tuple[Checkpoints | None, Any]:
        """Those of ``checkpoint_dir``, and the newest one where it is to be gone on from."""
        if self.checkpoint_dir is None:
            if resume:
                raise ValueError("resume: expected a checkpoint_dir to resume from but got None")
            return None, None
        checkpoints = Checkpoints(self.checkpoint_dir, self.checkpoint_every)
        if ranks.writer and checkpoints and not resume:
            raise FileExistsError(
                "checkpoint_dir: expected resume=True or a folder without checkpoints but got "
                f"{escaped(self.checkpoint_dir)}, which has some"
            )
        return checkpoints, ranks.from_writer(checkpoints.newest(check_content) if resume and ranks.writer else None)

    def _lasting_parameters(self) -> dict[str, Any]:
        """Those that a resumed training must share."""
        passing = ("device", "verbose", "log_dir", "checkpoint_dir", "checkpoint_every", "workers")
        return {name: repr(value) for name, value in self.get_params(deep=False).items() if name not in passing}

    def _validated(self, task: Task, ranks: Ranks) -> dict[str, Any] | None:
        """What the report says of the validation data; None without any, and in processes that do not write."""
        if task.held is None:
            return None
        gathered = ranks.gather([(self._of(piece.sequences), piece.targets) for piece in task.held.pieces(ranks)])
        if gathered is None:
            return None
        from .evaluation.evaluate import evaluate_predictions

        pairs = zip(*(pair for each in gathered for pair in each), strict=True)
        logits, targets = (torch.cat(column) for column in pairs)
        probabilities = self._probabilities(logits)
        report = evaluate_predictions(
            self.classes_[targets.numpy()].tolist(), self.decide(probabilities).tolist(), probabilities,
            labels=self.classes_.tolist(), train_accuracy=self.history_[self.best_epoch_ - 1]["accuracy"],
        )  # fmt: skip
        return report.to_dict()

    def _device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _plain(self, X: list[Any]) -> list[Any]:
        """The raw data as strings or arrays."""
        return X

    def _check_parameters(self) -> None:
        for name, value in self.get_params(deep=False).items():
            if isinstance(value, np.generic):  # from a grid of numpy's
                setattr(self, name, value.item())
        if not _is_there(self.device):
            raise ValueError(f"device: expected auto or a device that this machine has but got {shown(self.device)}")
        for name, least in {"epochs": 1, "hidden_size": 1, "num_layers": 1}.items():
            _require_int(name, getattr(self, name), least)
        _require_int("workers", self.workers, 0)
        every = self.checkpoint_every
        if isinstance(every, bool) or not isinstance(every, int | float) or not 0 <= every < math.inf:
            raise ValueError(f"checkpoint_every: expected seconds, at least 0, but got {shown(self.checkpoint_every)}")
        for name in ("batch_size", "patience", "max_length"):
            if getattr(self, name) is not None:
                _require_int(name, getattr(self, name), 1)
        for name, choices in {"schedule": SCHEDULES, "metric": METRICS, "on_nan": ("raise", "restore")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)} but got {shown(getattr(self, name))}")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{name}: expected None or a number above 0 but got {shown(value)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected a number of at least 0 but got {shown(self.weight_decay)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a share of the steps, from 0 to below 1, but got {shown(self.warmup)}")

    def _make_model(self, encoder: Any, classes: int, seed: int = 0, device: str = "cpu") -> SequenceClassifier:
        size, options = self._input_of(encoder)
        with seeded(seed, torch.device("cpu")):
            return SequenceClassifier(
                size, self.hidden_size, classes, cell=self.cell, num_layers=self.num_layers,
                bidirectional=self.bidirectional, pooling=self.pooling, dropout=self.dropout, device=device, **options,
            )  # fmt: skip

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.non_deterministic = self.seed is None
        return tags


class TextClassifier(_SequenceEstimator):
    """Classifies texts: tokens, an embedding, a recurrent encoder, a head; one call each to train, predict, evaluate.

    Args:
        cell, hidden_size, num_layers, bidirectional, pooling, dropout: of :class:`seqcls_fast.SequenceClassifier`.
        embedding_dim: width of a token's embedding.
        tokenizer: ``"word"``, ``"char"`` or ``"bpe"`` (byte pairs, learnt from the texts).
        lowercase, normalization: whether case is ignored; the Unicode form texts are brought to, or None.
        max_length: tokens beyond that many are cut off.
        max_vocab, min_frequency: how many tokens are known at most, and how often each must occur.
        epochs: how often the training data are gone through.
        batch_size, learning_rate: None picks what suits the number of texts.
        weight_decay, schedule, warmup: AdamW's decay; ``"cosine"``, ``"one_cycle"`` or ``"constant"``; the share of
            steps in which the rate rises.
        max_grad_norm: longer gradients are scaled down to it; None leaves them.
        class_weight: None, ``"balanced"`` or a dict from label to weight.
        patience: with validation, how many epochs to go on without a better ``metric``; None trains all epochs.
        metric: of the validation set: ``"loss"``, ``"accuracy"``, ``"balanced_accuracy"`` or ``"macro_f1"``.
        amp: whether products are formed in bfloat16.
        on_nan: what a NaN or exploding loss does: ``"raise"`` says so, ``"restore"`` goes back an epoch and goes on at
            half the rate.
        device: ``"auto"`` or a torch device.
        seed: of everything random; None draws one.
        verbose: None shows a bar in a terminal, True a line per epoch anywhere, False nothing.
        log_dir: folder for TensorBoard's logs, or None.
        checkpoint_dir: folder for checkpoints, which ``fit(resume=True)`` goes on from, or None.
        checkpoint_every: seconds between two checkpoints, or more where writing them takes long; 0 writes one a step.
        workers: processes that read and encode a Stream ahead; 0 does so in between.

    Example::

        >>> from seqcls_fast import TextClassifier
        >>> texts = ["good film", "great film", "bad film", "awful film"] * 10
        >>> clf = TextClassifier(hidden_size=8, epochs=10).fit(texts, ["pos", "pos", "neg", "neg"] * 10)
        >>> clf.predict(["a great one", "awful"]).tolist()
        ['pos', 'neg']
    """

    _kind = "text"
    _encoder_type = TextEncoder

    def __init__(
        self, *, cell: str = "gru", hidden_size: int = 64, embedding_dim: int = 64, num_layers: int = 1,
        bidirectional: bool = True, pooling: str = "max", dropout: float = 0.2, tokenizer: str = "word",
        lowercase: bool = True, normalization: str | None = "NFKC", max_length: int | None = 256,
        max_vocab: int = 20_000, min_frequency: int = 1, epochs: int = 20, batch_size: int | None = None,
        learning_rate: float | None = None, weight_decay: float = 0.01, schedule: str = "cosine", warmup: float = 0.1,
        max_grad_norm: float | None = 1.0, class_weight: Any = None, patience: int | None = None, metric: str = "loss",
        amp: bool = False, on_nan: str = "raise", device: str = "auto", seed: int | None = 0,
        verbose: bool | None = None, log_dir: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None, checkpoint_every: float = 60.0, workers: int = 1,
    ) -> None:  # fmt: skip
        self.cell, self.hidden_size, self.embedding_dim, self.num_layers = cell, hidden_size, embedding_dim, num_layers
        self.bidirectional, self.pooling, self.dropout, self.tokenizer = bidirectional, pooling, dropout, tokenizer
        self.lowercase, self.normalization, self.max_length = lowercase, normalization, max_length
        self.max_vocab, self.min_frequency, self.epochs, self.batch_size = max_vocab, min_frequency, epochs, batch_size
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule
        self.warmup, self.max_grad_norm, self.class_weight = warmup, max_grad_norm, class_weight
        self.patience, self.metric, self.amp, self.on_nan = patience, metric, amp, on_nan
        self.device, self.seed, self.verbose, self.log_dir = device, seed, verbose, log_dir
        self.checkpoint_dir, self.checkpoint_every, self.workers = checkpoint_dir, checkpoint_every, workers

    def _make_encoder(self) -> TextEncoder:
        return TextEncoder(
            self.tokenizer, lowercase=self.lowercase, normalization=self.normalization, max_length=self.max_length,
            max_vocab=self.max_vocab, min_frequency=self.min_frequency,
        )  # fmt: skip

    def _input_of(self, encoder: TextEncoder) -> tuple[int, dict[str, Any]]:
        return self.embedding_dim, {"vocab_size": encoder.vocab_size}

    def _sequences(self, X: Any) -> list[str]:
        hint = "; for one text pass predict([text]), for a file pathlib.Path(name)"
        texts = list(items(X, "X", "a list of texts", hint))
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                got = shown(text) if missing(text) else kind_of(text)
                raise TypeError(f"X: expected strings but got {got} at {index}")
        return texts


class SeriesClassifier(_SequenceEstimator):
    """Classifies numeric series of any lengths: a recurrent encoder over standardised features, and a head.

    Args:
        standardize: whether each feature is brought to mean 0 and deviation 1, as learnt from the training data.
        missing: what NaN means: ``"error"``, ``"zero"``, ``"mean"``, ``"forward"`` (the value before) or ``"mask"``
            (the mean, and a feature more that says so).
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

    _kind = "series"
    _encoder_type = SeriesEncoder

    def __init__(
        self, *, cell: str = "gru", hidden_size: int = 64, num_layers: int = 1, bidirectional: bool = True,
        pooling: str = "max", dropout: float = 0.2, standardize: bool = True, missing: str = "error",
        max_length: int | None = None, epochs: int = 20, batch_size: int | None = None,
        learning_rate: float | None = None, weight_decay: float = 0.01, schedule: str = "cosine", warmup: float = 0.1,
        max_grad_norm: float | None = 1.0, class_weight: Any = None, patience: int | None = None, metric: str = "loss",
        amp: bool = False, on_nan: str = "raise", device: str = "auto", seed: int | None = 0,
        verbose: bool | None = None, log_dir: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None, checkpoint_every: float = 60.0, workers: int = 1,
    ) -> None:  # fmt: skip
        self.cell, self.hidden_size, self.num_layers, self.bidirectional = cell, hidden_size, num_layers, bidirectional
        self.pooling, self.dropout, self.standardize, self.missing = pooling, dropout, standardize, missing
        self.max_length, self.epochs, self.batch_size = max_length, epochs, batch_size
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule
        self.warmup, self.max_grad_norm, self.class_weight = warmup, max_grad_norm, class_weight
        self.patience, self.metric, self.amp, self.on_nan = patience, metric, amp, on_nan
        self.device, self.seed, self.verbose, self.log_dir = device, seed, verbose, log_dir
        self.checkpoint_dir, self.checkpoint_every, self.workers = checkpoint_dir, checkpoint_every, workers

    @property
    def n_features_in_(self) -> int:
        self._check_fitted()
        return self.encoder_.features_in

    def _make_encoder(self) -> SeriesEncoder:
        return SeriesEncoder(standardize=self.standardize, missing=self.missing, max_length=self.max_length)

    def _plain(self, X: list[Any]) -> list[Any]:
        return [as_steps(series, f"X[{index}]") for index, series in enumerate(X)]

    def _input_of(self, encoder: SeriesEncoder) -> tuple[int, dict[str, Any]]:
        return encoder.features_out, {}

    def _sequences(self, X: Any) -> list[Any]:
        hint = "; for a file pass pathlib.Path(name)"
        return list(items(X, "X", "a list of series (T, features)", hint))


def batch_size_for(count: int) -> int:
    """A power of two near the root of the number of sequences: some steps an epoch for few, full kernels for many."""
    return 2 ** min(8, max(2, int(math.log2(max(count, 1)) / 2)))


def learning_rate_for(steps: int) -> float:
    """The fewer steps there are, the larger: 1e-2 for 100, 2e-3 from 2,500 on."""
    return min(1e-2, max(2e-3, 0.1 / math.sqrt(max(steps, 1))))


def _eager(model: Any) -> Any:
    """Under a torch.compile()."""
    return getattr(model, "_orig_mod", model)


def _is_there(device: Any) -> bool:
    if device == "auto":
        return True
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        return False
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < count)


def _require_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int but got {kind_of(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least} but got {shown(value)}")


def _check_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A training can only go on with what it began with."""
    saved, now = ({**about, **about["parameters"]} for about in (saved, now))
    for name in now:
        if name != "parameters" and saved.get(name) != now[name]:
            what = "the data" if name in ("rows", "digest") else name
            before, after = escaped(saved.get(name)), escaped(now[name])
            raise CheckpointError(f"resume: expected {what} as in the checkpoint, {before}, but got {after}")


def parameters_to_json(parameters: dict[str, Any]) -> dict[str, Any]:
    """JSON has no keys but strings, no paths and no devices."""
    plain = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in parameters.items()}
    plain["device"] = str(plain["device"])
    if isinstance(plain["class_weight"], dict):
        weights = plain["class_weight"]
        keys = labels.to_json(labels.as_array(list(weights)))
        plain["class_weight"] = {"labels": keys, "weights": [float(weight) for weight in weights.values()]}
    return plain


def parameters_from_json(parameters: dict[str, Any]) -> dict[str, Any]:
    weights = parameters.get("class_weight")
    if isinstance(weights, dict):
        if not all(isinstance(weights.get(name), list) for name in ("labels", "weights")):
            raise ValueError(f"class_weight: expected lists of labels and weights but got {shown(weights)}")
        weights = dict(zip(labels.from_json(weights["labels"]).tolist(), weights["weights"], strict=True))
    return parameters | {"class_weight": weights}
