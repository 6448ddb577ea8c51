"""``Fitted``: everything that fit() learned. It predicts, evaluates and is calibrated, saved and loaded here, once.

A ``Fitted`` never changes: calibration returns another one. An estimator holds one in its ``fitted_`` and shows its
fields as attributes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._head import softmax
from .._version import __version__
from ..classifier import SequenceClassifier
from ..convolutions import ConvolutionScores, RandomConvolutions
from . import store
from ._terminal import shown
from .about import about_model
from .baseline import Baseline, features_for, tensors_for
from .data import labels
from .data.datasets import Data
from .data.errors import renumbered
from .data.leakage import Fingerprints, leaks, shared
from .data.ragged import Ragged
from .data.stream import Stream
from .evaluation import calibration
from .evaluation.decision import DecisionThreshold, decide
from .evaluation.evaluate import evaluate_predictions
from .evaluation.findings import FEW
from .evaluation.report import Report
from .inputs import Inputs
from .parameter_checks import device_of, parameters_to_json
from .ranks import Ranks
from .training.logits import logits_of
from .training.loop import seeded

__all__ = ["Fitted", "make_model"]

_ENCODED = 1 << 14  # sequences that are encoded at once
_AT_ONCE = 256  # sequences of a batch in prediction
_USER = 3  # the stack level of a warning for the caller of an estimator's method, seen from a method here


@dataclass(frozen=True, eq=False)
class Fitted:
    inputs: Inputs
    parameters: dict[str, Any]  # of the estimator, as they were when fit() was called
    encoder: Any
    classes: np.ndarray
    model: SequenceClassifier
    seen: Fingerprints  # of the training data
    history: list[dict[str, Any]]  # a record for each epoch
    best_epoch: int  # the epoch, counted from 1, whose weights were kept
    seed: int | None
    data: dict[str, Any] | None  # counts and digests of the data; None for models that were saved without them
    validation_report: dict[str, Any] | None = None
    temperature: float = 1.0  # by which logits are divided
    threshold: DecisionThreshold | None = None
    baseline: Baseline | None = None  # a linear model of the same data, to compare with
    extra: dict[str, Any] = field(default_factory=dict)  # what a command adds to the saved folder, by name of its file
    amp: bool = False  # whether prediction forms products in bfloat16
    workers: int = 1  # processes that read a Stream ahead

    # -- prediction ---------------------------------------------------------------------------------------------------

    def logits(self, X: Any) -> Tensor:
        """``(len(X), classes)`` float32 on the CPU, before they are divided by the temperature."""
        if isinstance(X, Stream):
            none = torch.zeros(0, len(self.classes))  # a Stream may have no rows
            pieces = X.pieces(self.encoder, workers=self.workers)
            return torch.cat([none, *(self._logits_of(piece.sequences) for piece in pieces)])
        X, _ = self.inputs.read(X, None, labelled=False)
        starts = range(0, len(X), _ENCODED) if len(X) > _ENCODED else (0,)
        return torch.cat([self._logits_of(self._encoded(X[k : k + _ENCODED], k)) for k in starts])

    def _encoded(self, X: list[Any], first: int) -> Ragged:
        """These sequences, which are numbered from ``first`` on in messages."""
        try:
            found: Ragged = self.encoder.encode(X)
        except ValueError as error:
            raise type(error)(renumbered(error, first)) from None
        return found

    def probabilities(self, logits: Tensor) -> np.ndarray:
        return _softmax(logits, self.temperature)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The labels that are predicted for rows of probabilities."""
        probabilities = np.asarray(probabilities)
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.classes):
            wanted = f"(N, {len(self.classes)})"
            raise ValueError(f"probabilities: expected shape {wanted} but got {tuple(probabilities.shape)}")
        found: np.ndarray = self.classes[decide(probabilities, self.classes.tolist(), self.threshold)]
        return found

    def measured(self, X: Any, y: Any) -> tuple[Tensor, list[Any], list[Any] | None]:
        """Logits, labels, and the inputs, which are None for a Stream."""
        if not isinstance(X, Stream):
            X, y = self.inputs.labelled(X, y)
            if not X:
                raise ValueError("X: expected at least one sequence but got none")
            return self.logits(X), y, self.inputs.plain(X)
        if y is not None or X.label is None:
            raise ValueError("y: expected None with a Stream, which has a column of labels, but got something else")
        logits, found, classes = [], [], self.classes.tolist()
        for piece in X.pieces(self.encoder, workers=self.workers, classes=self.classes):
            assert piece.targets is not None
            logits.append(self._logits_of(piece.sequences))
            found += [classes[target] for target in piece.targets.tolist()]
        return torch.cat(logits), found, None

    def _logits_of(self, sequences: Ragged) -> Tensor:
        device = next(self.model.parameters()).device
        return logits_of(self.model, sequences, _AT_ONCE, device, self.amp)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, X: Any, y: Any) -> Report:
        logits, y, inputs = self.measured(X, y)
        probabilities = self.probabilities(logits)
        changed = self.temperature != 1 or self.threshold is not None
        report = evaluate_predictions(
            y, self.decide(probabilities).tolist(), probabilities, labels=self.classes.tolist(),
            train_accuracy=self._train_accuracy, train_texts=None if inputs is None else self.seen, test_texts=inputs,
            uncalibrated=_softmax(logits, 1.0) if changed else None, rule=self.threshold,
            baseline=None if self.baseline is None else self.baseline.predict(X if inputs is None else inputs).tolist(),
        )  # fmt: skip
        report.warnings[:0] = shared(self.seen, X.survey().seen) if isinstance(X, Stream) else []
        where = f" of {X}" if isinstance(X, Stream) else f" of {os.fspath(X)}" if isinstance(X, os.PathLike) else ""
        report.about = self.about | {"data": f"{len(y):,} examples{where}"}
        return report

    def validated(self, held: Data | None, ranks: Ranks, baseline: np.ndarray | None) -> Fitted:
        """A copy with a report on the validation data; ``self`` if there are none or another process writes.

        ``baseline`` are the numbers of the classes that the baseline predicts, in the order of all ranks' pieces.
        """
        gathered = None
        if held is not None:
            gathered = ranks.gather([(self._logits_of(piece.sequences), piece.targets) for piece in held.pieces(ranks)])
        if gathered is None:
            return self
        pairs = zip(*(pair for each in gathered for pair in each), strict=True)
        logits, targets = (torch.cat(column) for column in pairs)
        probabilities = self.probabilities(logits)
        report = evaluate_predictions(
            self.classes[targets.numpy()].tolist(), self.decide(probabilities).tolist(), probabilities,
            labels=self.classes.tolist(), train_accuracy=self._train_accuracy,
            baseline=None if baseline is None else self.classes[baseline].tolist(),
        )  # fmt: skip
        found = report.to_dict()
        for name in ("most_confident_errors", "most_confused", "about"):  # a saved model holds no examples
            del found[name]
        return replace(self, validation_report=found)

    @property
    def about(self) -> dict[str, str]:
        """The model in a few lines, by name."""
        kind, epochs = self.inputs.kind, len(self.history)
        return about_model(kind, self.parameters, self.model, self.data, epochs, self.best_epoch)

    @property
    def _train_accuracy(self) -> float:
        accuracy: float = self.history[self.best_epoch - 1]["accuracy"]
        return accuracy

    # -- calibration --------------------------------------------------------------------------------------------------

    def calibrated(self, X: Any, y: Any) -> Fitted:
        """A copy with the temperature that suits these data, and without a threshold."""
        logits, y = self._unseen(X, y, "calibrate")
        targets = labels.to_targets(y, self.classes)
        temperature = calibration.temperature(logits.numpy(), targets.numpy())
        if self.threshold is not None:
            warnings.warn(
                f"calibrate: the threshold of {shown(self.threshold.label)} is forgotten, as it was chosen on other "
                "probabilities; choose_threshold() chooses it again",
                stacklevel=_USER,
            )
        return replace(self, temperature=temperature, threshold=None)

    def with_threshold(self, X: Any, y: Any, label: Any, precision: float | None, recall: float | None) -> Fitted:
        """A copy with the threshold for ``label`` that reaches the precision or the recall on these data."""
        logits, y = self._unseen(X, y, "choose_threshold")
        if label not in (classes := self.classes.tolist()):
            raise ValueError(f"label: expected one of the classes but got {shown(label)}")
        positive = np.array([each == label for each in y])
        if not positive.any():
            raise ValueError(f"y: expected sequences of the label {shown(label)} but got none")
        count, scores = int(positive.sum()), self.probabilities(logits)[:, classes.index(label)]
        if count < FEW:
            warnings.warn(
                f"choose_threshold: expected {FEW} sequences of {shown(label)} or more but got {count}: what is "
                "reached on them says little about others",
                stacklevel=_USER,
            )
        found = calibration.threshold(positive, scores, precision=precision, recall=recall)
        target, wanted = ("precision", precision) if precision is not None else ("recall", recall)
        assert wanted is not None  # or threshold() would have refused
        threshold = DecisionThreshold(
            classes[classes.index(label)], found.value, target, float(wanted), found.precision, found.recall, count
        )
        return replace(self, threshold=threshold)

    def _unseen(self, X: Any, y: Any, method: str) -> tuple[Tensor, list[Any]]:
        """Logits and labels of sequences, with a warning about those that were in the training data."""
        logits, y, inputs = self.measured(X, y)
        for found in leaks(self.seen, inputs) if inputs is not None else shared(self.seen, X.survey().seen):
            warnings.warn(f"{method}: expected data that training has not seen, but {found}", stacklevel=_USER + 1)
        return logits, y

    # -- saving and loading -------------------------------------------------------------------------------------------

    @property
    def network(self) -> SequenceClassifier:
        """The model, not what torch.compile() wraps around it."""
        found: SequenceClassifier = getattr(self.model, "_orig_mod", self.model)
        return found

    def config(self) -> dict[str, Any]:
        """What was learned beside the weights, in types of JSON."""
        return {
            "kind": self.inputs.kind, "version": __version__, "parameters": parameters_to_json(self.parameters),
            "classes": labels.to_json(self.classes), "encoder": self.encoder.to_json(),
            "history": self.history, "best_epoch": self.best_epoch, "seed": self.seed, "data": self.data,
            "validation_report": self.validation_report,
            "convolutions": None if self.network.convolutions is None else self.network.convolutions.convolutions.sizes,
            "temperature": calibration.checked_temperature(self.temperature),
            "threshold": None if self.threshold is None else self.threshold.to_json(),
        }  # fmt: skip

    def save(self, folder: str | os.PathLike[str], card: str) -> None:
        """Writes a folder that :meth:`load` reads, whole or not at all. ``card`` is the text of its model card."""
        config = self.config()
        tensors = {f"model.{name}": t.detach().float().cpu() for name, t in self.network.state_dict().items()}
        for name, values in vars(self.seen).items():
            tensors[f"seen.{name}"] = torch.tensor(sorted(values), dtype=torch.int64)
        if self.baseline is not None:
            tensors |= self.baseline.tensors()
        store.save_folder(folder, config, tensors, card, self.extra)

    @classmethod
    def load(cls, saved: store.Saved, inputs: Inputs, parameters: dict[str, Any]) -> Fitted:
        """Reads a saved folder. ``parameters`` are those of its configuration, after a check.

        The weights are read last, once their names and shapes in the file are known to be those of the model.
        """
        config = saved.config
        classes = labels.from_json(config["classes"])
        count = len(classes)
        if len(set(classes.tolist())) != count or count < 2:
            raise ValueError(f"classes: expected at least two different ones but got {count}")
        labels.class_factors(torch.ones(count), classes.tolist(), parameters["class_weight"])
        encoder = inputs.encoder_from_json(config["encoder"])
        history, best_epoch = config["history"], config["best_epoch"]
        if best_epoch > len(history):
            raise ValueError(f"best_epoch: expected one of {len(history)} but got {best_epoch}")
        # Models that were saved before there were temperatures have none.
        temperature = calibration.checked_temperature(config.get("temperature", 1.0))
        threshold = config.get("threshold")
        if threshold is not None:
            threshold = DecisionThreshold.from_json(threshold, classes.tolist())
        # A module of too many layers would take long to make, even without memory, and torch has no sentence for sizes
        # of more than 64 bits.
        largest = max((size for _, shape in saved.header.values() for size in shape), default=0)
        for name, most in {"num_layers": len(saved.header), "hidden_size": largest, "embedding_dim": largest}.items():
            if parameters.get(name, 0) > most:
                raise ValueError(f"{name}: expected at most {most} but got {shown(parameters[name])}")
        sizes = config.get("convolutions")
        if sizes is not None and sizes["channels"] != getattr(encoder, "features_own", None):
            wanted = "those of the encoder's features"
            raise ValueError(f"convolutions: expected {wanted} but got {sizes['channels']} channels")
        expected = make_model(inputs, parameters, encoder, count, device="meta", convolutions=sizes).state_dict()
        features = features_for(encoder, count)
        baseline_tensors = tensors_for(features, count)
        has_baseline = not baseline_tensors.keys().isdisjoint(saved.header)
        saved.check(
            {f"model.{name}": (tensor.dtype, tuple(tensor.shape)) for name, tensor in expected.items()}
            | dict.fromkeys((f"seen.{each.name}" for each in fields(Fingerprints)), (torch.int64, None))
            | (baseline_tensors if has_baseline else {})
        )
        tensors = saved.tensors()
        model = make_model(inputs, parameters, encoder, count, convolutions=sizes)
        model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
        seen = Fingerprints(*(frozenset(tensors[f"seen.{each.name}"].tolist()) for each in fields(Fingerprints)))
        return cls(
            inputs, parameters, encoder, classes, model.to(device_of(parameters["device"])).eval(), seen, history,
            best_epoch, seed=config.get("seed"), data=config.get("data"),
            validation_report=config.get("validation_report"), temperature=temperature, threshold=threshold,
            baseline=Baseline.from_tensors(tensors, inputs, features, classes) if has_baseline else None,
            extra=saved.extra,
        )  # fmt: skip


def make_model(
    inputs: Inputs, parameters: Mapping[str, Any], encoder: Any, classes: int, seed: int = 0, device: str = "cpu",
    convolutions: Mapping[str, Any] | None = None,
) -> SequenceClassifier:  # fmt: skip
    """A model with fresh weights, for the data that ``encoder`` makes and a number of classes.

    ``convolutions`` are the sizes of a wide part.
    """
    size, options = inputs.model_size(parameters, encoder)
    names = ("cell", "num_layers", "bidirectional", "pooling", "dropout", "embedding_dropout")
    options |= {name: parameters[name] for name in names if name in parameters}
    with seeded(seed, torch.device("cpu")):
        model = SequenceClassifier(size, parameters["hidden_size"], classes, device=device, **options)
    if convolutions is not None:
        with torch.device(device):
            model.convolutions = ConvolutionScores(RandomConvolutions(**convolutions), classes)
    return model


def _softmax(logits: Tensor, temperature: float) -> np.ndarray:
    found: np.ndarray = softmax(logits.double(), temperature).numpy()
    return found
