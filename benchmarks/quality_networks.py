"""The recurrent networks that quality is compared with, as their libraries' guides build them: skorch with torch.nn's
GRU, and Keras.

Texts become ids of words, and every network gets the same ones. skorch's batches are padded on the right; the steps
beyond a row's end take no part in its pooling.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["KerasText", "skorch_series", "skorch_text"]

WORDS, LONGEST = 20_000, 100  # in the vocabulary; of a text


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())[:LONGEST]


class Ids:
    """Words to numbers from 2 on; 0 is padding and 1 an unknown word."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(token for text in texts for token in tokens(text))
        self.ids = {token: k + 2 for k, (token, _) in enumerate(counts.most_common(WORDS))}

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([self.ids.get(token, 1) for token in tokens(text)] or [1]) for text in texts]

    def __len__(self) -> int:
        return len(self.ids) + 2


class Network(nn.Module):
    """An embedding, or features; a GRU in both directions; the largest output over the steps; a linear layer."""

    def __init__(self, classes: int, words: int = 0, features: int = 64, units: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, features, padding_idx=0) if words else nn.Identity()
        self.gru = nn.GRU(features, units, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * units, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(x), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, padding_value=-torch.inf)
        return self.head(out.amax(1))


def collate(rows: list[Any]) -> Any:
    inputs, targets = zip(*rows, strict=True)
    x = nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in inputs], batch_first=True)
    return {"x": x, "lengths": torch.tensor([len(row) for row in inputs])}, torch.tensor(targets)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, X: Sequence[np.ndarray], y: Sequence[int] | None = None) -> None:
        self.X, self.y = X, [0] * len(X) if y is None else y

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        return self.X[k], int(self.y[k])


class Skorch:
    def __init__(self, seed: int, epochs: int) -> None:
        self.seed, self.epochs = seed, epochs

    def encoder(self, X: Sequence[Any]) -> Any:
        raise NotImplementedError

    def fit(self, X: Sequence[Any], y: Sequence[str]) -> Skorch:
        from skorch import NeuralNetClassifier

        torch.manual_seed(self.seed)
        self.classes_, ids = np.unique(y, return_inverse=True)
        self.encode = self.encoder(X)
        rows = self.encode(X)
        sizes = {"words": len(self.encode)} if isinstance(self.encode, Ids) else {"features": rows[0].shape[1]}
        self.net = NeuralNetClassifier(
            Network(len(self.classes_), **sizes), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-3,
            max_epochs=self.epochs, batch_size=32, train_split=None, iterator_train__shuffle=True, verbose=0,
            iterator_train__collate_fn=collate, iterator_valid__collate_fn=collate, classes=range(len(self.classes_)),
        )  # fmt: skip
        self.net.fit(Pairs(rows, ids), y=None)
        return self

    def predict_proba(self, X: Sequence[Any]) -> np.ndarray:
        logits = self.net.forward(Pairs(self.encode(X)))
        return torch.softmax(logits, 1).double().numpy()


class SkorchText(Skorch):
    def encoder(self, X: Sequence[str]) -> Ids:
        return Ids(X)


class SkorchSeries(Skorch):
    def encoder(self, X: Sequence[np.ndarray]) -> Any:
        steps = np.concatenate(X)
        mean, deviation = steps.mean(0), steps.std(0) + 1e-6
        return lambda series: [((x - mean) / deviation).astype(np.float32) for x in series]


def skorch_text(seed: int) -> Skorch:
    return SkorchText(seed, epochs=5)


def skorch_series(seed: int) -> Skorch:
    return SkorchSeries(seed, epochs=100)


class KerasText:
    def __init__(self, seed: int, epochs: int = 5, longest: int = 100) -> None:
        self.seed, self.epochs, self.longest = seed, epochs, longest

    def given(self, X: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(X), self.steps), np.int32)
        for row, ids in zip(found, self.ids(X), strict=True):
            row[: len(ids)] = ids[: self.steps]
        return found

    def fit(self, X: Sequence[str], y: Sequence[str]) -> KerasText:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        import keras

        keras.utils.set_random_seed(self.seed)
        self.classes_, targets = np.unique(y, return_inverse=True)
        self.ids = Ids(X)
        self.steps = min(self.longest, max(len(ids) for ids in self.ids(X)))
        layers = keras.layers
        self.model = keras.Sequential([
            layers.Embedding(len(self.ids), 64, mask_zero=True), layers.Bidirectional(layers.GRU(64)),
            layers.Dense(len(self.classes_), activation="softmax"),
        ])  # fmt: skip
        self.model.compile("adam", "sparse_categorical_crossentropy")
        self.model.fit(self.given(X), targets, batch_size=32, epochs=self.epochs, verbose=0)
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        return np.asarray(self.model.predict(self.given(X), batch_size=256, verbose=0), np.float64)
