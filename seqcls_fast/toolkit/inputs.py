"""Texts and series as the X of an estimator: a list, an array, a column, a frame with one column, or a file's path.

Texts and series differ in how raw data become sequences, and in nothing else. These classes hold that difference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .._wide import WeightedIds
from ..classifier import SequenceClassifier
from ._terminal import kind_of, shown
from .data import labels
from .data.columns import items, missing
from .data.series import SeriesEncoder
from .data.steps import as_steps
from .data.text import UNKNOWN, TextEncoder
from .data.tokenizer_file import TokenizerFile, is_tokenizer_file, text_encoder_from_json
from .data.vectors import check_vectors, read_vectors

__all__ = ["LAYOUTS", "Inputs", "SeriesInputs", "TextInputs"]

LAYOUTS = ("time_channels", "channels_time")
_MANY_CHANNELS, _MOST_USUAL = 4, 16  # for each step; channels that nobody wonders at


class Inputs:
    """How raw data of one kind are read, checked and encoded. Nothing in it changes."""

    kind: str  # "text" or "series"
    encoder_type: Any
    enough_to_hold: int  # rows, from which on a share of them is held out where no validation is given
    holds_out_of_streams: bool  # whether that is done of a Stream too

    def with_parameters(self, parameters: Mapping[str, Any]) -> Inputs:
        """The same for an estimator of these parameters."""
        return self

    def doubts(self, X: list[Any]) -> list[str]:
        """Sentences about training data that look as if they meant something else."""
        return []

    def make_encoder(self, parameters: Mapping[str, Any]) -> Any:
        """A new encoder, made from the parameters of the estimator, which has learned nothing yet."""
        raise NotImplementedError

    def encoder_from_json(self, text: str) -> Any:
        """The encoder that its to_json() wrote; a ValueError for any other text."""
        return self.encoder_type.from_json(text)

    def model_size(self, parameters: Mapping[str, Any], encoder: Any) -> tuple[int, dict[str, Any]]:
        """The ``input_size`` of the :class:`~seqcls_fast.SequenceClassifier`, and its arguments for this kind alone."""
        raise NotImplementedError

    def learnt(self, encoder: Any, classes: int, rows: int = 0) -> Any:
        """The encoder, once it has learnt from data of that many classes, of which so many rows may come at least."""
        return encoder

    def prepare_model(self, model: SequenceClassifier, encoder: Any) -> None:
        """Gives a new model what the encoder has learnt, before training."""

    def sequences(self, X: Any) -> list[Any]:
        """The values of X as a list, after a check."""
        raise NotImplementedError

    def plain(self, X: list[Any]) -> list[Any]:
        """The raw data as strings or arrays."""
        return X

    def read(self, X: Any, y: Any, labelled: bool = True) -> tuple[list[Any], Any]:
        """The sequences, and the labels as they are given. If X is a path, both are read from the file.

        A string is never taken for a path. In a service it comes from strangers, and may name any file of the machine.
        """
        if not isinstance(X, os.PathLike):
            X = self.sequences(X)
            if labelled and y is None:
                raise ValueError("y: expected labels but got None")
            return X, y
        from .data.readers import read

        if y is not None:
            raise ValueError("y: expected None with the path of a file, which holds the labels")
        table = read(X, kind=self.kind, label="label" if labelled else None)
        return table.texts_or_series, table.labels

    def labelled(self, X: Any, y: Any) -> tuple[list[Any], list[Any]]:
        """The sequences, and one label for each, as plain Python values."""
        X, y = self.read(X, y)
        return X, labels.as_list(y, len(X))


class TextInputs(Inputs):
    kind = "text"
    encoder_type = TextEncoder
    enough_to_hold = 200  # fewer do not tell one epoch from another
    holds_out_of_streams = True

    def __init__(self, vectors: str | os.PathLike[str] | None = None) -> None:
        self.vectors = vectors  # the file of pretrained vectors

    def with_parameters(self, parameters: Mapping[str, Any]) -> TextInputs:
        return TextInputs(parameters["vectors"])

    def make_encoder(self, parameters: Mapping[str, Any]) -> TextEncoder:
        if self.vectors is not None:  # before texts are read, which may take long
            check_vectors(self.vectors, parameters["embedding_dim"])
        names = ("lowercase", "normalization", "max_length", "max_vocab", "min_frequency", "wide")
        tokenizer, options = parameters["tokenizer"], {name: parameters[name] for name in names}
        return (
            TokenizerFile.read(tokenizer, **options)
            if is_tokenizer_file(tokenizer)
            else TextEncoder(tokenizer, **options)
        )

    def encoder_from_json(self, text: str) -> TextEncoder:
        return text_encoder_from_json(text)

    def model_size(self, parameters: Mapping[str, Any], encoder: TextEncoder) -> tuple[int, dict[str, Any]]:
        options: dict[str, Any] = {"vocab_size": encoder.vocab_size}
        return parameters["embedding_dim"], options | ({"wide_ids": 1 << encoder.bits} if encoder.wide else {})

    def learnt(self, encoder: TextEncoder, classes: int, rows: int = 0) -> TextEncoder:
        encoder.choose_bits(classes, rows)
        return encoder

    def prepare_model(self, model: SequenceClassifier, encoder: TextEncoder) -> None:
        if isinstance(model.wide, WeightedIds):
            model.wide.scale.copy_(encoder.scale())
        if self.vectors is not None and model.embedding is not None:
            _set_vectors(model.embedding.weight.detach(), encoder, self.vectors)

    def sequences(self, X: Any) -> list[str]:
        hint = "; for one text pass predict([text]), for a file pathlib.Path(name)"
        texts = list(items(_one_column(X), "X", "a list of texts", hint))
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                _refuse_record(text, index, "strings")
                got = shown(text) if missing(text) else kind_of(text)
                raise TypeError(f"X: expected strings but got {got} at {index}")
        return texts


class SeriesInputs(Inputs):
    kind = "series"
    encoder_type = SeriesEncoder
    enough_to_hold = 20
    holds_out_of_streams = False

    def __init__(self, layout: str = LAYOUTS[0]) -> None:
        self.layout = layout

    def with_parameters(self, parameters: Mapping[str, Any]) -> SeriesInputs:
        return SeriesInputs(parameters["layout"])

    def doubts(self, X: list[Any]) -> list[str]:
        shapes = {tuple(each.shape) if hasattr(each, "shape") else () for each in X}
        if len(shapes) != 1 or len(X) < 2 or len(shape := shapes.pop()) != 2:
            return []
        (steps, channels), other = shape, LAYOUTS[self.layout == LAYOUTS[0]]
        if channels < _MANY_CHANNELS * steps or channels < _MOST_USUAL:
            return []
        found = f"{steps} {'step' if steps == 1 else 'steps'} of {channels} channels"
        return [f'X: the series have {found} each; if these are the steps, pass layout="{other}"']

    def make_encoder(self, parameters: Mapping[str, Any]) -> SeriesEncoder:
        names = ("standardize", "missing", "max_length", "normalize", "differences", "time")
        chosen = {name: parameters[name] for name in names}
        if chosen["normalize"] == "auto":  # of a Stream, whose series are not in memory to choose by
            chosen["normalize"] = "data"
        return SeriesEncoder(**chosen)

    def model_size(self, parameters: Mapping[str, Any], encoder: SeriesEncoder) -> tuple[int, dict[str, Any]]:
        return encoder.features_out, {}

    def sequences(self, X: Any) -> list[Any]:
        hint = "; for a file pass pathlib.Path(name)"
        series = list(items(_one_column(X), "X", "a list of series (T, features)", hint))
        for index, each in enumerate(series):
            _refuse_record(each, index, "arrays (T, features)")
        if self.layout == LAYOUTS[0]:
            return series
        steps = [as_steps(each, f"X[{index}]") for index, each in enumerate(series)]
        flat = [np.ndim(each) == 1 for each in series]  # a series of one channel has no order of axes
        return [each if one else each.T for each, one in zip(steps, flat, strict=True)]

    def plain(self, X: list[Any]) -> list[Any]:
        return [as_steps(series, f"X[{index}]") for index, series in enumerate(X)]


def _set_vectors(weight: torch.Tensor, encoder: TextEncoder, path: str | os.PathLike[str]) -> None:
    """Puts pretrained vectors in the place of the first weights of an embedding.

    Words that the file lacks keep their random weights, whose deviation becomes that of the vectors.
    """
    ids: dict[str, list[int]] = {}  # by word: a token may stand for it with a space before it and without
    for i in [*range(UNKNOWN + 1, encoder.vocab_size), UNKNOWN]:
        ids.setdefault(encoder.id_to_token(i).strip(), []).append(i)
    found = read_vectors(path, ids.keys(), weight.size(1), encoder.normal)
    matrix = np.stack(list(found.values()))
    weight[UNKNOWN:] *= float(matrix.std()) or 1.0
    for word, vector in zip(found, torch.from_numpy(matrix), strict=True):
        weight[ids[word]] = vector.to(weight)


def _one_column(X: Any) -> Any:
    """The column of an array (n, 1) of texts or series, in which scikit-learn's tools pass on what is no number."""
    is_column = isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUST"
    return X[:, 0] if is_column else X


def _refuse_record(value: Any, index: int, wanted: str) -> None:
    if isinstance(value, Mapping):
        key = shown(next(iter(value), "text"), 40)
        raise TypeError(
            f"X: expected {wanted} but got {kind_of(value)} at {index}; pass one value of each, as "
            f"[row[{key}] for row in X]"
        )
