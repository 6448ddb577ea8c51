"""``evaluate_predictions``: every number of a classification report, and sentences about what the numbers hide.

All metrics of hard predictions are functions of the confusion matrix. A bootstrap sample of the examples is therefore
one multinomial draw over its cells, so that a thousand of them cost a few milliseconds and no loop over examples.
scikit-learn's definitions hold throughout; it is what the tests compare with, and not needed to run this.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .._extras import need

need("numpy", "evaluate_predictions")
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from .._terminal import escaped, kind_of, shown  # noqa: E402
from ..data.columns import items, missing  # noqa: E402
from ..data.leakage import Fingerprints, fingerprints, leaks  # noqa: E402

if TYPE_CHECKING:
    from .calibration import Rule

__all__ = ["Bins", "ClassScores", "Report", "Scores", "evaluate_predictions", "operating_points"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

BINS = 15  # of the expected calibration error
FEW = 30  # examples of a class below which its share of an interval is not to be trusted
FAR = 0.2  # how far below accuracy a minority class's recall is called out
MOST = 4096  # classes, whose confusion matrix is dense
GAP = 0.1  # how far above test accuracy train accuracy is called overfitting


@dataclass(frozen=True)
class Scores:
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores(Scores):
    support: int


class Bins(NamedTuple):
    """Examples by their top probability: how many, how sure on average, how often right (0 where a bin is empty)."""

    counts: _Ints
    confidence: _Floats
    accuracy: _Floats

    @property
    def error(self) -> float:
        return float(np.sum(self.counts * np.abs(self.confidence - self.accuracy)) / self.counts.sum())


@dataclass
class Report:
    """What :func:`evaluate_predictions` found. ``print(report)`` is a table, :meth:`to_html` a page with pictures.

    ``names`` are the labels as strings, the keys of ``to_dict()["per_class"]``. ``confusion[i, j]`` counts the examples
    of class i that were predicted as class j. What needs probabilities, and was given none or a single class, is None.
    ``before`` has the numbers of :meth:`summary` as they were without calibration and threshold, and is None where the
    model has neither; ``rule`` is its threshold.
    """

    labels: list[Any]
    names: list[str]
    confusion: _Ints = field(repr=False)
    per_class: dict[Any, ClassScores]
    macro: Scores
    micro: Scores
    weighted: Scores
    accuracy: float
    balanced_accuracy: float
    roc_auc: float | None = None
    pr_auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    expected_calibration_error: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float = 0.95
    warnings: list[str] = field(default_factory=list)
    before: dict[str, float] | None = None
    before_bins: Bins | None = field(default=None, repr=False)
    rule: Rule | None = None
    true_ids: _Ints = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    proba: _Floats | None = field(default=None, repr=False)

    @property
    def support(self) -> _Ints:
        return self.confusion.sum(1)

    def one_vs_rest(self) -> Iterator[tuple[str, NDArray[np.bool_], _Floats]]:
        """Name, which examples are positive, and their scores: of the second class of two, or of each of more.

        Classes without examples, or without any but their own, have no curve and are left out.
        """
        proba = self._needs_proba()
        for k in range(1, 2) if len(self.labels) == 2 else range(len(self.labels)):
            positive = self.true_ids == k
            if positive.any() and not positive.all():
                yield self.names[k], positive, proba[:, k]

    def bins(self) -> Bins:
        """The examples in 15 bins (lower, upper] of equal width by the probability of the likeliest class."""
        proba = self._needs_proba()
        top = proba.max(1)
        hit = proba.argmax(1) == self.true_ids
        bin_of = np.clip(np.ceil(top * BINS).astype(np.int64) - 1, 0, BINS - 1)
        counts = np.bincount(bin_of, minlength=BINS)
        return Bins(
            counts,
            _ratio(np.bincount(bin_of, weights=top, minlength=BINS), counts),
            _ratio(np.bincount(bin_of, weights=hit, minlength=BINS), counts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the examples themselves, in types that ``json.dumps`` takes."""
        scores = zip(self.names, self.per_class.values(), strict=True)
        return {
            "examples": int(self.confusion.sum()),
            "labels": list(self.names),
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro": asdict(self.macro),
            "micro": asdict(self.micro),
            "weighted": asdict(self.weighted),
            "per_class": {name: asdict(score) for name, score in scores},
            "confusion_matrix": self.confusion.tolist(),
            "roc_auc": self.roc_auc,
            "pr_auc": self.pr_auc,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "expected_calibration_error": self.expected_calibration_error,
            "confidence": self.confidence,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "before_calibration": self.before,
            "threshold": None if self.rule is None else self.rule.to_json(),
            "warnings": list(self.warnings),
        }

    def summary(self) -> list[tuple[str, float, tuple[float, float] | None]]:
        """The numbers about all classes together that are defined here: name, value, interval."""
        values = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "macro f1": self.macro.f1,
            "roc auc": self.roc_auc,
            "pr auc": self.pr_auc,
            "log loss": self.log_loss,
            "brier": self.brier,
            "calibration error": self.expected_calibration_error,
        }
        return [
            (name, value, self.intervals.get(name.replace(" ", "_")))
            for name, value in values.items()
            if value is not None
        ]

    def rows(self) -> list[tuple[str, Scores, int]]:
        """The table of scores: each class, then the averages over them."""
        count = int(self.confusion.sum())
        averages = [("macro", self.macro, count), ("micro", self.micro, count), ("weighted", self.weighted, count)]
        return [
            (printable(name), score, score.support)
            for name, score in zip(self.names, self.per_class.values(), strict=True)
        ] + averages

    def to_html(self, *, history: Sequence[dict[str, Any]] | None = None, lengths: Any = None) -> str:
        """One page with every number and picture, which loads nothing from elsewhere.

        ``history`` (an estimator's ``history_``) adds learning curves, ``lengths`` a histogram of sequence lengths.
        """
        from .html import page

        return page(self, history, lengths)

    def __str__(self) -> str:
        wide = max(len("balanced accuracy"), *(columns(name) for name, _, _ in self.rows()))
        lines = [f"{'':{wide}}  precision  recall      f1  support"]
        for k, (name, score, support) in enumerate(self.rows()):
            if k == len(self.names):
                lines.append("")
            numbers = f"{score.precision:9.3f}  {score.recall:6.3f}  {score.f1:6.3f}  {support:7}"
            lines.append(f"{name}{' ' * (wide - columns(name))}  {numbers}")
        lines.append("")
        if self.before is not None:
            lines.append(f"{'calibration':{wide}}  {'before':>9}  {'after':>9}")
        for name, value, interval in self.summary():
            between = (
                "" if interval is None else f"  {interval[0]:.3f} to {interval[1]:.3f} ({100 * self.confidence:g} %)"
            )
            before = "" if self.before is None else f"  {self.before[name]:9.3f}"
            lines.append(f"{name:{wide}}{before}  {value:9.3f}{between}")
        if self.rule is not None:
            lines += ["", f"threshold: {self.rule}"]
        if len(self.names) <= 12:
            cell = max(6, *(len(str(count)) for count in self.confusion.flat))
            lines += ["", "rows: true class, columns: predicted, in the order above"]
            for (name, _, _), counts in zip(self.rows(), self.confusion, strict=False):
                lines.append(f"{name}{' ' * (wide - columns(name))}" + "".join(f"  {count:{cell}}" for count in counts))
        if self.warnings:
            lines += ["", *(f"warning: {warning}" for warning in self.warnings)]
        return "\n".join(lines)

    def _needs_proba(self) -> _Floats:
        if self.proba is None:
            raise ValueError("report: expected one made with proba but got one made from predictions alone")
        return self.proba


def evaluate_predictions(
    y_true: Iterable[Hashable],
    y_pred: Iterable[Hashable],
    proba: Any = None,
    *,
    labels: Iterable[Hashable] | None = None,
    train_accuracy: float | None = None,
    train_texts: Sequence[Any] | Fingerprints | None = None,
    test_texts: Sequence[Any] | None = None,
    uncalibrated: Any = None,
    rule: Rule | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Report:
    r"""Scores predictions, and says in ``report.warnings`` where a good number hides a bad model.

    Args:
        y_true, y_pred: true and predicted labels of any hashable kind.
        proba: :math:`(N, K)` probabilities, columns in the order of ``labels``. Default: ``None``, and no ROC-AUC,
            PR-AUC, log loss, Brier score or calibration error.
        labels: the classes the model knows. Default: those in ``y_true`` and ``y_pred``, sorted. Others in ``y_true``
            are classes of their own that were never predicted, with probability 0.
        train_accuracy: accuracy on the training data, to warn of overfitting.
        train_texts, test_texts: the inputs (strings, or arrays for series), to warn of test data seen in training;
            of the training data their ``fingerprints`` do.
        uncalibrated: what ``proba`` was before calibration; their numbers are ``report.before``.
        rule: the threshold that ``y_pred`` was decided by in the place of the likeliest class.
        bootstrap: how many resamples the intervals of accuracy, balanced accuracy and macro F1 come from; 0 for none.
        confidence: what share of the resamples an interval holds.
        seed: of the resampling.

    Precision, recall and F1 are 0 where undefined. Macro averages leave out classes that are neither in ``y_true`` nor
    in ``y_pred``. With two classes the second is the positive one, with more the AUCs are one-vs-rest averages over the
    classes in ``y_true``. The Brier score of two classes lies within [0, 1], that of more within [0, 2].

    Examples::

        >>> from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
        >>> report = evaluate_predictions(["ham"] * 980 + ["spam"] * 20, ["ham"] * 997 + ["spam"] * 3)
        >>> report.accuracy, report.per_class["spam"].recall
        (0.983, 0.15)
        >>> print(report.warnings[0])
        accuracy is 98.3 % but recall is far lower on a minority class: 'spam' 15.0 % (3 of 20 found)
    """
    true, pred = _as_list(y_true, "y_true"), _as_list(y_pred, "y_pred")
    if not true:
        raise ValueError("y_true: expected at least one label but got none")
    if len(true) != len(pred):
        raise ValueError(f"y_pred: expected {len(true)} labels, as many as y_true, but got {len(pred)}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap: expected 0 or more resamples but got {shown(bootstrap)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1 but got {shown(confidence)}")
    if train_accuracy is not None and not 0 <= train_accuracy <= 1:
        raise ValueError(f"train_accuracy: expected a number from 0 to 1 but got {shown(train_accuracy)}")
    if (train_texts is None) != (test_texts is None):
        raise ValueError("train_texts, test_texts: expected both or neither but got one of them")
    if test_texts is not None:
        test_texts = list(items(test_texts, "test_texts", "a list of texts or series"))
        if len(test_texts) != len(true):
            raise ValueError(f"test_texts: expected {len(true)} inputs, as many as y_true, but got {len(test_texts)}")

    if uncalibrated is not None and proba is None:
        raise ValueError("uncalibrated: expected with proba but got it alone")

    known = _sorted(true + pred) if labels is None else _as_list(labels, "labels")
    twice = [label for label, times in Counter(known).items() if times > 1]
    if twice:
        raise ValueError(f"labels: expected each label once but got {shown(twice[0])} again")
    strange = set(pred).difference(known)
    if strange:
        raise ValueError(f"y_pred: expected one of the {len(known)} labels but got {shown(_sorted(strange)[0])}")
    probabilities = None if proba is None else _check_proba(proba, len(true), len(known))
    raw = None if uncalibrated is None else _check_proba(uncalibrated, len(true), len(known), "uncalibrated")
    classes = known + _sorted(set(true).difference(known))
    K = len(classes)
    if K > MOST:
        raise ValueError(f"y_true, y_pred: expected at most {MOST} classes but got {K}; are they numbers, not classes?")
    index = {label: k for k, label in enumerate(classes)}
    true_ids = np.array([index[label] for label in true], np.int64)
    pred_ids = np.array([index[label] for label in pred], np.int64)
    if probabilities is not None:
        probabilities = np.pad(probabilities, ((0, 0), (0, len(classes) - len(known))))

    confusion = np.bincount(true_ids * K + pred_ids, minlength=K * K).reshape(K, K)
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    precision, recall, f1 = _scores(hits, support, predicted)
    overall = averages(hits, support, predicted)
    per_class = [ClassScores(float(precision[k]), float(recall[k]), float(f1[k]), int(support[k])) for k in range(K)]
    report = Report(
        labels=classes,
        names=_names(classes),
        confusion=confusion,
        per_class=dict(zip(classes, per_class, strict=True)),
        macro=Scores(
            *(float(score.sum() / np.count_nonzero(support + predicted)) for score in (precision, recall, f1))
        ),
        micro=Scores(*[float(overall["accuracy"])] * 3),  # one label each: what one class wins another loses
        weighted=Scores(*(float((score * support).sum() / len(true)) for score in (precision, recall, f1))),
        accuracy=float(overall["accuracy"]),
        balanced_accuracy=float(overall["balanced_accuracy"]),
        confidence=confidence,
        rule=rule,
        true_ids=true_ids,
        proba=probabilities,
    )
    if bootstrap:
        report.intervals = _intervals(confusion, bootstrap, confidence, seed)
    if probabilities is not None:
        _score_proba(report, probabilities)
    if raw is not None:
        before = evaluate_predictions(true, [known[k] for k in raw.argmax(1)], raw, labels=known, bootstrap=0)
        report.before = {name: value for name, value, _ in before.summary()}
        report.before_bins = before.bins()
    if train_texts is not None and test_texts is not None:
        if not isinstance(train_texts, Fingerprints):
            train_texts = fingerprints(train_texts, "train_texts")
        report.warnings += leaks(train_texts, test_texts)
    report.warnings += _warnings(report, len(known), train_accuracy, pred_ids)
    return report


def operating_points(positive: NDArray[np.bool_], scores: _Floats) -> tuple[_Ints, _Ints]:
    """True and false positives at every distinct threshold, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(positive[order])[ends]
    return true, ends + 1 - true


def printable(label: Any) -> str:
    """A label for people: escapes for what cannot be seen, an empty one in quotes, a long one cut."""
    name = str(label)
    return escaped(name, 40) if name.strip() else shown(name, 40)


def roc_auc(true: _Ints, false: _Ints) -> float:
    """The area under the curve through :func:`operating_points`."""
    true, false = np.append(0, true), np.append(0, false)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2) / (true[-1] * false[-1]))


def average_precision(true: _Ints, false: _Ints) -> float:
    """Precision at :func:`operating_points`, weighted by what each adds to recall."""
    return float(np.sum(np.diff(true, prepend=0) * true / (true + false)) / true[-1])


def _ratio(part: Any, whole: Any) -> _Floats:
    """part / whole, and 0 where whole is."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _scores(hits: _Ints, support: _Ints, predicted: _Ints) -> tuple[_Floats, _Floats, _Floats]:
    return _ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted)


def averages(hits: _Ints, support: _Ints, predicted: _Ints) -> dict[str, _Floats]:
    """What intervals are given for, over the last dimension (classes) of counts: one report's, or each resample's."""
    _, recall, f1 = _scores(hits, support, predicted)
    return {
        "accuracy": hits.sum(-1) / support.sum(-1),
        "balanced_accuracy": recall.sum(-1) / np.count_nonzero(support, axis=-1),
        "macro_f1": f1.sum(-1) / np.count_nonzero(support + predicted, axis=-1),
    }


def _intervals(confusion: _Ints, resamples: int, confidence: float, seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    true, pred = np.nonzero(confusion)
    counts = confusion[true, pred]
    diagonal = np.flatnonzero(true == pred)
    total, K = int(counts.sum()), len(confusion)

    def by_class(draws: _Ints, classes: _Ints) -> _Ints:
        order = np.argsort(classes, kind="stable")
        present, starts = np.unique(classes[order], return_index=True)
        sums = np.zeros((len(draws), K), np.int64)
        if len(present):
            sums[:, present] = np.add.reduceat(draws[:, order], starts, axis=1)
        return sums

    parts = []
    block = max(1, 2_000_000 // len(counts))  # resamples at a time: many classes must not fill the memory
    for start in range(0, resamples, block):
        draws = rng.multinomial(total, counts / total, size=min(block, resamples - start))
        hits = by_class(draws[:, diagonal], true[diagonal])
        parts.append(averages(hits, by_class(draws, true), by_class(draws, pred)))
    tail = (1 - confidence) / 2
    ends = {name: np.quantile(np.concatenate([p[name] for p in parts]), [tail, 1 - tail]) for name in parts[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _score_proba(report: Report, proba: _Floats) -> None:
    points = (operating_points(positive, scores) for _, positive, scores in report.one_vs_rest())
    areas = [(roc_auc(true, false), average_precision(true, false)) for true, false in points]
    if areas:
        report.roc_auc, report.pr_auc = (float(area) for area in np.mean(areas, axis=0))
    of_true = proba[np.arange(len(proba)), report.true_ids]
    report.log_loss = float(-np.mean(np.log(np.clip(of_true, np.finfo(np.float64).eps, 1))))
    squares = (proba**2).sum(1) - of_true**2 + (1 - of_true) ** 2
    report.brier = float(np.mean(squares) / (2 if len(report.labels) == 2 else 1))
    report.expected_calibration_error = report.bins().error


def _warnings(report: Report, known: int, train_accuracy: float | None, pred_ids: _Ints) -> list[str]:
    support, predicted = report.support, report.confusion.sum(0)
    hits, count = report.confusion.diagonal(), int(report.support.sum())
    present = np.flatnonzero(support)
    quoted = [f"'{printable(name)}'" for name in report.names]
    recall = _ratio(hits, support)
    accuracy = report.accuracy
    low, high = report.intervals.get("accuracy", (accuracy, accuracy))
    found = []

    if len(present) == 1:
        found.append(
            f"y_true holds a single class, {quoted[present[0]]}: roc_auc and pr_auc are undefined, and "
            "accuracy does not show whether classes are told apart"
        )
    fair = count / len(present)
    missed = [k for k in present if support[k] < fair and recall[k] < accuracy - FAR]
    if missed:
        listed = _listed(f"{quoted[k]} {_percent(recall[k])} ({hits[k]} of {support[k]} found)" for k in missed)
        which = "a minority class" if len(missed) == 1 else "minority classes"
        found.append(f"accuracy is {_percent(accuracy)} but recall is far lower on {which}: {listed}")
    base = int(support.argmax())
    if len(present) > 1 and low <= support[base] / count:
        clearly = "not clearly" if accuracy > support[base] / count else "no"
        found.append(
            f"accuracy of {_percent(accuracy)} is {clearly} better than the majority class: "
            f"always answering {quoted[base]} gives {_percent(support[base] / count)}"
        )
    if train_accuracy is not None and train_accuracy > max(high, accuracy + GAP):
        found.append(
            f"accuracy is {_percent(train_accuracy)} on the training data but {_percent(accuracy)} here: overfitting"
        )
    never = [k for k in present if not predicted[k] and k < known]
    if never:
        found.append(
            f"never predicted: {_listed(quoted[k] for k in never)}, so recall is 0, precision undefined (counted as 0)"
        )
    unknown = [k for k in present if k >= known]
    if unknown:
        found.append(
            f"in y_true but not among the labels: {_listed(f'{quoted[k]} ({support[k]} examples)' for k in unknown)}; "
            "the model cannot predict them, and accuracy and recall count each as an error"
        )
    absent = np.flatnonzero((support == 0) & (predicted > 0))
    if len(absent):
        found.append(f"recall is undefined (counted as 0) without an example of {_listed(quoted[k] for k in absent)}")
    few = [k for k in present if support[k] < FEW]
    if few:
        listed = _listed(f"{quoted[k]} ({support[k]})" for k in few)
        found.append(
            f"too few examples, less than {FEW}, for recall and the interval of accuracy to be trusted: {listed}"
        )
    rule = report.rule
    if rule is not None and rule.positives < FEW:
        found.append(
            f"the threshold of '{printable(rule.label)}' was chosen on {rule.positives} examples of it, less than "
            f"{FEW}: too few for its {rule.target} of {rule.wanted:g} to be trusted"
        )
    if report.proba is not None and rule is None:  # which may well choose another than the likeliest
        top = report.proba.max(1)
        apart = np.mean(report.proba[np.arange(count), pred_ids] < top)
        if apart > 0.1:
            found.append(
                f"y_pred is not the likeliest class of proba in {_percent(apart)} of the examples: "
                "roc_auc and log_loss are wrong if the columns of proba are not in the order of the labels"
            )
    alike = [name for name, label in zip(report.names, report.labels, strict=True) if name != str(label)]
    if alike:
        listed = _listed(map(printable, alike))
        found.append(f"accuracy counts labels of different types as different classes: {listed}")
    return found


def _as_list(values: Any, name: str) -> list[Any]:
    """Labels as Python objects: numpy's and torch's numbers hash as what they equal."""
    values = items(values, name, "a list of labels")
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    for k, label in enumerate(found):
        if type(label) is str:
            continue
        try:
            hash(label)
        except TypeError:
            raise TypeError(f"{name}: expected hashable labels but got {kind_of(label)} at index {k}") from None
        if label is not None and missing(label):
            raise ValueError(f"{name}: expected labels but got {shown(label)} at index {k}")
    return found


def _sorted(labels: Iterable[Any]) -> list[Any]:
    unique = list(dict.fromkeys(labels))
    try:
        return sorted(unique)
    except TypeError:  # of kinds that do not compare
        return sorted(unique, key=lambda label: (type(label).__name__, str(label)))


def _names(labels: Sequence[Any]) -> list[str]:
    """str of each label, and repr where two labels would share it: 1 and '1'."""
    times = Counter(str(label) for label in labels)
    return [str(label) if times[str(label)] == 1 else repr(label) for label in labels]


def _check_proba(proba: Any, count: int, columns: int, name: str = "proba") -> _Floats:
    if hasattr(proba, "detach"):
        proba = proba.detach().cpu().double()
    try:
        values = np.asarray(proba, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers of shape ({count}, {columns}) but got {kind_of(proba)}") from None
    if values.ndim == 2 and values.shape[0] == count and values.shape[1] != columns:
        raise ValueError(
            f"{name}: expected {columns} columns, one per label, but got {values.shape[1]}; "
            "labels= names those that are in neither y_true nor y_pred"
        )
    if values.shape != (count, columns):
        raise ValueError(f"{name}: expected shape ({count}, {columns}) but got {values.shape}")
    for wrong, what in (
        (~np.isfinite(values).all(1), "finite numbers"),
        ((values < 0).any(1), "no negative number"),
        (np.abs(values.sum(1) - 1) > 1e-3, "rows that sum to 1"),
    ):
        if wrong.any():
            k = int(wrong.argmax())
            row = np.array2string(values[k], precision=4, threshold=6)
            raise ValueError(f"{name}: expected {what} but got {row} (sum {values[k].sum():.4g}) in row {k}")
    return values


def _percent(share: float) -> str:
    """With one decimal, cut rather than rounded where rounding would claim perfection."""
    return f"{math.floor(share * 1000) / 10 if 0.9995 <= share < 1 else share * 100:.1f} %"


def _listed(items: Iterable[str]) -> str:
    every = list(items)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")


def columns(text: str) -> int:
    """Of a terminal, that a text takes: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
