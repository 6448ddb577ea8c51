"""Runs files of :func:`seqcls_fast.export.to_runtime`, and folders of ``save()``, with numpy alone: neither torch nor
scikit-learn is imported.

It is the face of libseqcls (csrc/runtime), whose functions are in the extension ``_runtime``. Results have the bits of
the module that was written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the package reads numpy.typing at no other time, as it is no small part of the start
    from numpy.typing import ArrayLike, NDArray

try:
    from . import _runtime
except ImportError as error:
    sentence = (
        f"seqcls_fast.runtime needs its compiled module, which is missing ({error}): install with a C++17 compiler"
    )
    raise ImportError(sentence, name=error.name) from error
from . import _labels, _texts
from ._runtime_arguments import array, integers, numbers, whole
from ._runtime_folder import file_of
from ._runtime_format import tensor_of

__all__ = ["Model", "Stream"]

_AT_ONCE, _CELLS = 64, 1 << 15  # of a batch in prediction: most sequences; most steps of them together
_STEPS = 64  # steps of a piece, for which a stream has memory


class Model:
    """A model in a file. It never changes: any number of threads may use it at a time.

    Args:
        path: a file that :func:`seqcls_fast.export.to_runtime` wrote, or a folder that a classifier's ``save()`` wrote.
        isa: the kernels, ``"auto"`` for the fastest that this CPU has, else one of ``"base"``, ``"avx2"``,
            ``"avx512"``, ``"avx512_bf16"``.

    Attributes: ``features`` of a step (0 where it is an id), ``vocabulary`` (0 where it is not), ``outputs`` (how many
    classes, or the width of a step of the output), ``classes`` (the labels of a classifier, or None),
    ``is_classifier``, ``is_streamable``, ``cell``, ``dtype``, ``isa``, ``layers``, ``directions``, ``hidden``,
    ``projection``.

    Example::

        >>> import tempfile, numpy as np, seqcls_fast as sf
        >>> from seqcls_fast.export import to_runtime
        >>> folder = tempfile.TemporaryDirectory()
        >>> to_runtime(sf.SequenceClassifier(3, 8, 2), folder.name + "/model.sfm")
        >>> from seqcls_fast.runtime import Model
        >>> model = Model.open(folder.name + "/model.sfm")
        >>> model.predict_proba([np.zeros((5, 3)), np.zeros((2, 3))]).shape
        (2, 2)
        >>> stream = model.stream()
        >>> stream.step(np.zeros(3)).shape, stream.push(np.zeros((10, 3))).shape
        ((2,), (2,))
    """

    features: int
    vocabulary: int
    outputs: int
    is_classifier: bool
    is_streamable: bool
    cell: str
    dtype: str
    isa: str
    layers: int
    directions: int
    hidden: int
    projection: int

    def __init__(self, path: str | os.PathLike[str], isa: str = "auto") -> None:
        saved = None
        if os.path.isdir(path):
            content, saved = file_of(path)
            self._model = _runtime.open_bytes(content, isa)
        else:
            self._model = _runtime.open(path, isa)
        found = _runtime.describe(self._model)
        self.about: dict[str, Any] = json.loads(found.pop("about"))
        vars(self).update(found)
        labels = self.about.get("labels")
        if labels is None and self.is_classifier:
            labels = list(range(self.outputs))
        self.classes = None if labels is None else _labels.from_json(labels)
        self._series, self._text = self.about.get("series"), self.about.get("text")
        self._byte_pairs: _texts.BytePairs | None = None
        if self._text is not None and self._text["tokenizer"] == "bpe":
            encoder = tensor_of(path, "text.encoder") if saved is None else saved["encoder"]
            try:
                content = json.loads(encoder)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"text.encoder: expected JSON but got other bytes ({error!s:.80})") from None
            self._byte_pairs = _texts.BytePairs(content)

    @classmethod
    def open(cls, path: str | os.PathLike[str], isa: str = "auto") -> Model:
        """The same as the constructor."""
        return cls(path, isa)

    def __repr__(self) -> str:
        return f"Model({self.cell!r}, layers={self.layers}, hidden={self.hidden}, outputs={self.outputs})"

    def predict_proba(self, X: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """The probabilities of the classes, ``(len(X), classes)``.

        Args:
            X: texts, for a model that was trained on them; else sequences of any lengths: arrays ``(T, features)``, or
                ids ``(T,)``. A series of one feature may be ``(T,)``, and None or NaN in it is a missing value. As the
                estimator does, series are checked whole, and cut at its ``max_length`` then.
        """
        return self._predicted(X)[0]

    def predict(self, X: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        """The labels that are predicted, by the threshold where the model has one."""
        return self.predict_both(X)[0]

    def predict_both(self, X: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """What :meth:`predict` and :meth:`predict_proba` return, computed once."""
        probabilities, columns = self._predicted(X)
        assert self.classes is not None
        return self.classes[columns], probabilities

    def run(
        self, x: ArrayLike, lengths: ArrayLike | None = None, resets: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """The output of layers without a head, as the module gives it with ``batch_first=True``.

        Args:
            x: ``(B, T, features)``.
            lengths: ``(B,)``, how many steps each row has; the output beyond is zero. None: all of them.
            resets: booleans ``(B, T)``, where a row begins anew before the step.
        """
        if self.is_classifier:
            raise TypeError("run: expected layers without a head but got a classifier, which has predict_proba()")
        values = numbers(x, "x", np.float32)
        if values.ndim != 3 or values.shape[2] != self.features:
            raise ValueError(f"x: expected (B, T, {self.features}) but got {values.shape}")
        if not len(values):
            return np.zeros((0, values.shape[1], self.outputs), np.float32)
        stream = self.stream(len(values), max(values.shape[1], 1) if not self.is_streamable else _STEPS)
        return stream._run(values, lengths, resets)["out"]

    def stream(self, rows: int = 1, steps: int = _STEPS) -> Stream:
        """Follows ``rows`` sequences side by side; each may begin anew at any time.

        Args:
            rows: how many sequences.
            steps: how many steps of each the stream has memory for. Longer chunks are cut into pieces of so many; a
                model that needs whole sequences (``is_streamable`` is False) takes no longer ones.
        """
        return Stream(self, rows, steps)

    def stream_bytes(self, rows: int = 1, steps: int = _STEPS) -> int:
        """The memory that such a stream takes, in bytes."""
        found: int = _runtime.stream_bytes(self._model, whole(rows, "rows"), whole(steps, "steps"))
        return found

    # -- prediction ---------------------------------------------------------------------------------------------------

    def _predicted(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if not self.is_classifier:
            raise TypeError("predict_proba: expected a classifier but got layers without a head, which have run()")
        wanted = "a list of sequences" if self._text is None else "a list of texts"
        is_list = hasattr(X, "__len__") and hasattr(X, "__getitem__") and getattr(X, "ndim", 1) > 0
        if not is_list or isinstance(X, str | bytes | Mapping) or hasattr(X, "columns"):
            raise TypeError(f"X: expected {wanted} but got {type(X).__name__}")
        X = list(X)
        probabilities, columns = np.empty((len(X), self.outputs)), np.empty(len(X), np.int64)
        if self._text is not None and (not X or any(each is None or isinstance(each, str) for each in X)):
            self._classify(X, probabilities, columns)
            return probabilities, columns
        sequences = [self._sequence(each, index) for index, each in enumerate(X)]
        for begin, batch in _batches(sequences):
            lengths = np.array([len(each) for each in batch])
            x = np.zeros((len(batch), max(lengths), *batch[0].shape[1:]), batch[0].dtype)
            for row, each in zip(x, batch, strict=True):
                row[: len(each)] = each
            stream = self.stream(len(batch), _STEPS if self.is_streamable else max(x.shape[1], 1))
            try:
                found = stream._run(x, lengths, None)
            except ValueError as error:
                raise ValueError(_renumbered(error, begin)) from None
            end = begin + len(batch)
            probabilities[begin:end], columns[begin:end] = found["probabilities"], found["classes"]
        return probabilities, columns

    def _classify(self, texts: list[Any], probabilities: NDArray[Any], columns: NDArray[Any]) -> None:
        """Writes the results of texts."""
        assert self._text is not None
        normal = []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                got = "None" if text is None else type(text).__name__
                raise TypeError(f"X: expected strings but got {got} at {index}")
            if not text.isascii():
                _texts.refuse_surrogates(text, f"X[{index}]")
            normal.append(_texts.normal(text, self._text["normalization"], self._text["lowercase"]))
        ids, lengths = None, None
        if self._byte_pairs is not None:
            rows = [self._byte_pairs.ids(text)[: self._text["max_length"]] for text in normal]
            lengths = np.array([len(row) for row in rows], np.int64)
            ids = np.array([each for row in rows for each in row], np.int64)
        _runtime.classify(self._model, normal, ids, lengths, probabilities, columns)

    def _sequence(self, given: Any, index: int) -> NDArray[Any]:
        """One sequence as an array in the type that the library takes."""
        if isinstance(given, str):
            raise TypeError(
                f"X[{index}]: expected an array of numbers, as the model was not trained on texts, but got a string"
            )
        if given is None or isinstance(given, Real):
            got = "a missing value" if given is None else "a single number"
            raise ValueError(f"X[{index}]: expected {self._shape_wanted} but got {got}")
        ids = self._values(given, f"X[{index}]")
        if not self.vocabulary and ids.ndim == 1 and (self.features == 1 or not ids.size):
            ids = ids.reshape(-1, self.features)
        if ids.ndim == 2 and self._series is not None and self._series.get("layout") == "channels_time":
            ids = ids.T
        if ids.ndim != (1 if self.vocabulary else 2) or (ids.ndim == 2 and ids.shape[1] != self.features):
            raise ValueError(f"X[{index}]: expected {self._shape_wanted} but got {ids.shape}")
        if self._series is not None:
            self._check_beyond(ids, index)
        return ids

    @property
    def _shape_wanted(self) -> str:
        return "ids (T,)" if self.vocabulary else f"an array (T, {self.features})"

    def _values(self, given: Any, name: str) -> NDArray[Any]:
        """Ids, or numbers, in the type that the library takes."""
        if self.vocabulary:
            return integers(given, name, "integers, the ids of tokens,")
        return numbers(given, name, np.float32 if self._series is None else np.float64)

    def _check_beyond(self, series: NDArray[Any], index: int) -> None:
        """Checks the steps that the model does not take, as the estimator does; the library checks the others."""
        assert self._series is not None
        most = self._series["max_length"]
        if most is None or len(series) <= most:
            return
        wrong, words = np.isinf(series[most:]), "a finite value but got an infinite one"
        if not wrong.any() and self._series["missing"] == "error":
            words = 'no missing value (NaN), which the model\'s missing="error" refuses,'
            wrong = np.isnan(series[most:])
        if wrong.any():
            step, feature = np.argwhere(wrong)[0]
            raise ValueError(f"x: expected {words} in row {index} at step {most + step}, feature {feature}")


class Stream:
    """Sequences that grow step by step; made by :meth:`Model.stream`. One thread at a time may use it."""

    def __init__(self, model: Model, rows: int, steps: int) -> None:
        rows, steps = whole(rows, "rows"), whole(steps, "steps")
        self.model, self.rows = model, rows
        self._stream = _runtime.Stream(model._model, rows, steps)
        self._step, self._shape = self._stream.step, (model.outputs,) if rows == 1 else (rows, model.outputs)
        self._width = () if model.vocabulary else (model.features,)  # what a step of a row has besides

    def step(self, x: ArrayLike) -> NDArray[np.float32]:
        """Feeds one step: ``(features,)``, or ``(rows, features)``; for ids a number, or ``(rows,)``.

        Returns:
            the output of layers, or the probabilities of a classifier so far: ``(outputs,)``, or ``(rows, outputs)``.
        """
        out = np.empty(self._shape, np.float32)
        if self._step(x, out):  # an array of float32 that is read in place
            return out
        values = self.model._values(x, "x")
        if values.shape != (self.rows, *self._width) and (self.rows > 1 or values.shape != self._width):
            raise ValueError(f"x: expected {self._wanted()} but got {values.shape}")
        found = self._run(values.reshape(self.rows, 1, *self._width), None, None)["out"]
        return found.reshape(self._shape)

    def push(self, chunk: ArrayLike) -> NDArray[np.float32]:
        """Feeds some steps: ``(T, features)``, or ``(rows, T, features)``; for ids ``(T,)``, or ``(rows, T)``.

        Returns:
            the output of layers at each step, ``(T, outputs)`` or ``(rows, T, outputs)``; the probabilities of a
            classifier after the last one, ``(outputs,)`` or ``(rows, outputs)``.
        """
        given = self.model._values(chunk, "chunk")
        values = given[None] if self.rows == 1 else given
        if len(values) != self.rows or values.ndim != 2 + len(self._width) or values.shape[2:] != self._width:
            raise ValueError(f"chunk: expected {self._wanted('T, ')} but got {given.shape}")
        found = self._run(values, None, None)["out"]
        return found[0] if self.rows == 1 else found

    def reset(self, row: int | None = None) -> None:
        """Lets a row begin anew, or all of them."""
        if row is not None and not 0 <= (row := whole(row, "row")) < self.rows:
            raise ValueError(f"row: expected 0 to {self.rows - 1}, or None for all rows, but got {row}")
        self._stream.reset(-1 if row is None else row)  # which is all rows in C

    def get_state(self, row: int | None = None) -> NDArray[np.uint8]:
        """What a row has kept of its steps, as bytes: ``(bytes,)``; without a row that of all rows, ``(rows, bytes)``.

        :meth:`set_state` of any stream of the same file goes on from there, in another process too.
        """
        rows = range(self.rows) if row is None else [whole(row, "row")]
        found = np.empty((len(rows), self._stream.state_bytes()), np.uint8)
        for each, state in zip(rows, found, strict=True):
            self._stream.get_state(each, state)
        return found if row is None else found[0]

    def set_state(self, state: ArrayLike, row: int | None = None) -> None:
        """Lets a row, or all rows, go on from what :meth:`get_state` returned."""
        given = np.ascontiguousarray(state)
        if given.dtype != np.uint8:
            raise TypeError(f"state: expected bytes (uint8) but got {given.dtype}")
        expected = (self._stream.state_bytes(),) if row is not None else (self.rows, self._stream.state_bytes())
        if self.model.is_streamable and given.shape != expected:
            raise ValueError(f"state: expected {expected} but got {given.shape}")
        for each, one in zip(
            range(self.rows) if row is None else [whole(row, "row")],
            given[None] if row is not None else given,
            strict=True,
        ):
            self._stream.set_state(each, one)

    def _wanted(self, steps: str = "") -> str:
        rows = "" if self.rows == 1 else f"{self.rows}, "
        return f"ids ({rows}{steps[:1]})" if self.model.vocabulary else f"({rows}{steps}{self.model.features})"

    def _run(self, x: NDArray[Any], lengths: Any, resets: Any) -> dict[str, NDArray[Any]]:
        model, (count, steps) = self.model, x.shape[:2]
        shape = (count, model.outputs) if model.is_classifier else (count, steps, model.outputs)
        found: dict[str, NDArray[Any]] = {"out": np.empty(shape, np.float32)}
        if model.is_classifier:
            found |= {"probabilities": np.empty(shape), "classes": np.empty(count, np.int64)}
        if lengths is not None:
            lengths = integers(lengths, "lengths", "integers")
        if resets is not None:
            resets = array(resets, "resets", "booleans")
            if resets.dtype.kind not in "biu":
                raise TypeError(f"resets: expected booleans but got {resets.dtype}")
            resets = np.ascontiguousarray(resets, np.bool_)
        for name, given, expected in (("lengths", lengths, (count,)), ("resets", resets, (count, steps))):
            if given is not None and given.shape != expected:
                raise ValueError(f"{name}: expected {expected} but got {given.shape}")
        inputs = [x if x.dtype == kind else None for kind in (np.float32, np.float64, np.int64)]
        self._stream.run(
            count, steps, *inputs, lengths, resets, None, found["out"], None, found.get("probabilities"),
            found.get("classes"),
        )  # fmt: skip
        return found


def _renumbered(error: Exception, first: int) -> str:
    """A message of the library about a row of a batch, with its number among all rows, whose first is ``first``."""
    return re.sub(r" in row (\d+)", lambda row: f" in row {first + int(row[1])}", str(error))


def _batches(sequences: list[NDArray[Any]]) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """Sequences that are predicted together, with the index of the first of them."""
    begin = 0
    while begin < len(sequences):
        end, longest = begin, 1
        while end < len(sequences) and end - begin < _AT_ONCE:
            longest = max(longest, len(sequences[end]))
            if end > begin and longest * (end + 1 - begin) > _CELLS:
                break
            end += 1
        yield begin, sequences[begin:end]
        begin = end
