"""The parameters of the estimators as data: name, type, default, and a line of help.

The command line's options are made from this table. It imports no other library, so that ``--help`` answers at once.
The signatures and docstrings of the estimators are written out beside it, for editors; a test holds them equal to it.
"""

from __future__ import annotations

from types import NoneType
from typing import Any, NamedTuple, get_args

from .._cells import BUILT_IN

__all__ = ["ESTIMATORS", "PARAMETERS", "Parameter", "parameters_of"]

ESTIMATORS = {"text": "TextClassifier", "series": "SeriesClassifier"}
_DROPOUT = "probability of dropping a value between layers and before the head, in training"
BOTH, TEXT, SERIES = ("text", "series"), ("text",), ("series",)


class Parameter(NamedTuple):
    name: str
    type: Any  # of Python, such as int or int | None
    default: Any
    help: str
    kinds: tuple[str, ...] = BOTH  # keys of ESTIMATORS: the estimators that have it

    @property
    def types(self) -> tuple[type, ...]:
        """The members of the union."""
        return get_args(self.type) or (self.type,)

    @property
    def is_flag(self) -> bool:
        """Whether its values are True, False and at most None."""
        return set(self.types) <= {bool, NoneType}


PARAMETERS = (
    Parameter("cell", str, "gru", "the recurrent cell: " + ", ".join(f'"{name}"' for name in BUILT_IN)),
    Parameter("hidden_size", int, 96, "units of each layer and direction", TEXT),
    Parameter("hidden_size", int, 64, "units of each layer and direction", SERIES),
    Parameter("embedding_dim", int, 96, "width of a token's embedding", TEXT),
    Parameter("num_layers", int, 1, "layers of the encoder"),
    Parameter("bidirectional", bool, True, "whether the encoder reads from both ends"),
    Parameter(
        "pooling", str, "max",
        'input of the head: "last" (the state at the end of a sequence, at both ends for two directions), "mean" or '
        '"max" over the steps, or "attention" (their mean, weighted by a learnt score)',
    ),
    Parameter("dropout", float, 0.5, _DROPOUT, TEXT),
    Parameter("dropout", float, 0.2, _DROPOUT, SERIES),
    Parameter("embedding_dropout", float, 0.3, "probability of dropping a value of the embedding, in training", TEXT),
    Parameter("word_dropout", float, 0.3, "share of the tokens that become unknown ones, in training", TEXT),
    Parameter(
        "wide", bool, True, "whether hashed words, pairs of words and n-grams of characters go to the logits too", TEXT
    ),
    Parameter(
        "wide_dropout", float, 0.0,
        "share of these n-grams that is left out of each text, in training; above 0 their table is trained with the "
        "network, and is no linear machine of its own", TEXT,
    ),
    Parameter(
        "tokenizer", str, "word",
        '"word", "char" or "bpe" (byte pairs, learnt from the texts), or the path of a Hugging Face tokenizer.json',
        TEXT,
    ),
    Parameter(
        "vectors", str | None, None,
        "file of pretrained vectors of words to begin with: .vec or .txt (word2vec, GloVe, fastText), or .npy beside a "
        ".words file; None for random ones", TEXT,
    ),
    Parameter("lowercase", bool, True, "whether case is ignored", TEXT),
    Parameter("normalization", str | None, "NFKC", "the Unicode form that texts are converted to, or None", TEXT),
    Parameter(
        "layout", str, "time_channels",
        'the order of the axes of a series in memory: "time_channels", or "channels_time" as in some other libraries',
        SERIES,
    ),
    Parameter(
        "standardize", bool, True,
        "whether each feature is scaled to mean 0 and deviation 1, as measured on the training data", SERIES,
    ),
    Parameter(
        "missing", str, "error",
        'what NaN means: "error", "zero", "mean", "forward" (the value before) or "mask" (the mean, and one more '
        "feature that marks it)", SERIES,
    ),
    Parameter(
        "normalize", str, "auto",
        'whose mean and deviation scale a series: "data" (those of the training data), "series" (its own) or "auto" '
        "(what a linear model does better with)", SERIES,
    ),
    Parameter("differences", bool, True, "whether the changes from step to step become further features", SERIES),
    Parameter("time", bool, True, "whether the time becomes a further feature", SERIES),
    Parameter("convolutions", int, 10_000, "how many random convolutions a wide part has; 0 for no such part", SERIES),
    Parameter("max_length", int | None, 256, "tokens or steps beyond this many are cut off", TEXT),
    Parameter("max_length", int | None, None, "tokens or steps beyond this many are cut off", SERIES),
    Parameter("max_vocab", int, 20_000, "how many different tokens are known at most", TEXT),
    Parameter("min_frequency", int, 1, "how often a token must occur to be known", TEXT),
    Parameter(
        "epochs", int | None, None, "how often training goes through the data; None chooses by their number", TEXT
    ),
    Parameter("epochs", int, 20, "how often training goes through the data", SERIES),
    Parameter("batch_size", int | None, None, "sequences of a batch; None chooses by the number of sequences"),
    Parameter("learning_rate", float | None, None, "the highest learning rate; None chooses by the number of steps"),
    Parameter("weight_decay", float, 0.01, "weight decay of AdamW"),
    Parameter("schedule", str, "cosine", 'how the learning rate changes: "cosine", "one_cycle" or "constant"'),
    Parameter("warmup", float, 0.1, "the share of the steps in which the learning rate rises"),
    Parameter("max_grad_norm", float | None, 1.0, "longer gradients are scaled down to this norm; None leaves them"),
    Parameter(
        "label_smoothing", float, 0.0,
        "share of each target that is spread over all classes, in training of the network", TEXT,
    ),
    Parameter("class_weight", dict | str | None, None, 'None, "balanced" or an object from label to weight'),
    Parameter(
        "holdout", float | None, 0.1,
        "share of the data that is held out to choose the best epoch and the network's share of the logits, where "
        "there is no validation and there are 200 examples or more; None trains on all and keeps the last epoch", TEXT,
    ),
    Parameter(
        "holdout", float | None, 0.2,
        "share of the data that is held out where there is no validation and there are 20 examples or more, "
        "to choose the best epoch and the network's share of the logits; None trains on all", SERIES,
    ),
    Parameter(
        "refit", bool, True,
        "whether the model is trained again on all of the data, those of holdout included, for as many epochs as were "
        "best; not for streams", TEXT,
    ),
    Parameter(
        "patience", int | None, None,
        "with a validation: how many epochs to go on without a better metric; None trains all epochs",
    ),
    Parameter(
        "metric", str, "loss",
        'which value of the validation is compared: "loss", "accuracy", "balanced_accuracy" or "macro_f1"',
    ),
    Parameter("amp", bool, False, "whether products are computed in bfloat16"),
    Parameter(
        "on_nan", str, "raise",
        'when the loss becomes NaN or explodes: "raise" ends with an error, "restore" goes back an epoch and goes on '
        "at half the learning rate",
    ),
    Parameter("device", str, "auto", '"auto" or a torch device'),
    Parameter("seed", int | None, 0, "the seed of everything random; None draws one"),
    Parameter(
        "verbose", bool | None, None,
        "None shows a bar in a terminal, True prints a line per epoch anywhere, False prints nothing",
    ),
    Parameter("log_dir", str | None, None, "folder for TensorBoard's logs, or None"),
    Parameter("checkpoint_dir", str | None, None, "folder for checkpoints, from which training can resume, or None"),
    Parameter(
        "checkpoint_every", float, 60.0,
        "seconds between two checkpoints, or more where writing them takes long; 0 writes one after each step",
    ),
    Parameter("workers", int, 1, "processes that read and encode a stream ahead; 0 uses the training process"),
    Parameter("baseline", bool, True, "whether a linear model on simple features is fitted too, to compare with"),
    Parameter("warm_start", bool, False, "whether fit() goes on from the weights of an estimator that is fitted"),
)  # fmt: skip


def parameters_of(kind: str) -> dict[str, Parameter]:
    """The parameters of the estimator for "text" or "series" by name, in the order of its constructor."""
    return {parameter.name: parameter for parameter in PARAMETERS if kind in parameter.kinds}
