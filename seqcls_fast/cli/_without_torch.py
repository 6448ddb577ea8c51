"""A saved model in the runtime, which starts in a tenth of the time that the import of torch takes.

Its results have the bits of the estimator's. Whatever it refuses, data or a model, is given to the estimator, which
computes it or says what is wrong, so that no command has two sentences for one mistake.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from .._needs import has_torch
from .shared import load

__all__ = ["Predictor", "open_runtime"]

_GPU = Path("/dev/nvidiactl")  # is there where a GPU of NVIDIA's is, which a model of device="auto" would run on


class Predictor:
    """Labels and probabilities of a saved model. ``kind`` is ``"text"`` or ``"series"``."""

    def __init__(self, folder: str, model: Any) -> None:
        self._folder, self._model = folder, model
        self.kind = "text" if "text" in model.about else "series"
        self.classes: list[Any] = model.classes.tolist()

    @cached_property
    def _estimator(self) -> Any:
        return load(self._folder)[0]

    def predict(self, X: list[Any]) -> tuple[list[Any], list[list[float]]]:
        try:
            labels, probabilities = self._model.predict_both(X)
        except (TypeError, ValueError):
            if not has_torch():
                raise
            probabilities = self._estimator.predict_proba(X)
            labels = self._estimator.decide(probabilities)
        return labels.tolist(), probabilities.tolist()


def open_runtime(folder: str) -> Predictor | None:
    """The model, or None where the runtime cannot run it as the estimator would. An error says why, without torch."""
    try:
        from ..runtime import Model

        parameters = json.loads((Path(folder) / "config.json").read_bytes())["parameters"]
        device = parameters["device"]
        # With amp the estimator computes in bfloat16 what the runtime computes in float32.
        if not parameters["amp"] and (device == "cpu" or (device == "auto" and not _GPU.exists())):
            return Predictor(folder, Model.open(folder))
    except (ImportError, LookupError, OSError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, OSError | ValueError) and not has_torch():
            raise
    return None
