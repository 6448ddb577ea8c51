"""Fused recurrent layers for PyTorch: RNN, GRU and LSTM that replace torch.nn's by changing one import.

Public names are loaded on first use, so that `import seqcls_fast` and `seqcls-fast --version` do not wait for torch.
The operators are registered as soon as torch is imported too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._after_torch import register_operators as _register_operators
from ._needs import without_torch as _without_torch
from ._version import __version__ as __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ConvertReport",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "SequenceClassifier",
    "SeriesClassifier",
    "TextClassifier",
    "__version__",
    "available_impls",
    "convert",
    "evaluate_predictions",
    "freeze",
    "from_haste",
    "from_keras",
    "frozen",
    "revert",
    "rnn_layer",
    "unfreeze",
    "use_impl",
]

if TYPE_CHECKING:
    from . import export as export
    from . import nn as nn
    from . import ops as ops
    from . import reference as reference
    from . import runtime as runtime
    from ._from_haste import from_haste
    from ._from_keras import from_keras
    from ._frozen import freeze, frozen, unfreeze
    from .classifier import SequenceClassifier
    from .conversion import ConvertReport, convert, revert
    from .nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
    from .ops import available_impls, rnn_layer, use_impl
    from .toolkit.estimators import SeriesClassifier, TextClassifier
    from .toolkit.evaluation.evaluate import evaluate_predictions
    from .toolkit.evaluation.report import Report

_register_operators()

_HOME = dict.fromkeys(("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"), "nn")
_HOME |= dict.fromkeys(("rnn_layer", "use_impl", "available_impls"), "ops")
_HOME |= dict.fromkeys(("freeze", "frozen", "unfreeze"), "_frozen")
_HOME |= {"SequenceClassifier": "classifier", "from_keras": "_from_keras", "from_haste": "_from_haste"}
_HOME |= dict.fromkeys(("convert", "revert", "ConvertReport"), "conversion")
_HOME |= dict.fromkeys(("TextClassifier", "SeriesClassifier"), "toolkit.estimators")
_HOME |= {"evaluate_predictions": "toolkit.evaluation.evaluate", "Report": "toolkit.evaluation.report"}
_SUBMODULES = ("export", "nn", "ops", "reference", "runtime")


def __getattr__(name: str) -> Any:
    try:
        return _loaded(name)
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ImportError(_without_torch(f"seqcls_fast.{name}"), name="torch") from error


def _loaded(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name].startswith("toolkit."):
        import_module(".toolkit._extras", __name__).need("numpy", name)  # which almost every module there imports
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
