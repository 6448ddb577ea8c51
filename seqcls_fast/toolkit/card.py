"""The model card that is saved beside a model: what it is, what it learnt from, how well it did, how to use it."""

from __future__ import annotations

from typing import Any

from .. import __version__

__all__ = ["model_card"]


def model_card(estimator: Any) -> str:
    kind, last = type(estimator).__name__, estimator.history_[estimator.best_epoch_ - 1]
    defaults = type(estimator)().get_params(deep=False)
    classes = [" ".join(str(label).split()) for label in estimator.classes_.tolist()]
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    changed = {name: value for name, value in estimator.fitted_parameters_.items() if value != defaults[name]}
    size = sum(p.numel() for p in estimator.model_.parameters())
    figures = [
        f"| {name.replace('_', ' ')} | {last[name]:.4f} |"
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1")
        if name in last
    ]
    example = '["some text"]' if kind == "TextClassifier" else "[series]  # arrays (steps, features)"
    return "\n".join(
        [
            f"# A {kind}",
            "",
            f"Trained with seqcls_fast {__version__}. {size:,} parameters, {len(classes)} classes: {shown}.",
            "",
            "```python",
            f"from seqcls_fast import {kind}",
            f"clf = {kind}.load(FOLDER)",
            f"clf.predict({example})",
            "```",
            "",
            f"Parameters other than the defaults: {', '.join(f'{k}={v!r}' for k, v in changed.items()) or 'none'}.",
            "",
            f"After {last['epoch']} epochs (figures without val are of the training data):",
            "",
            "| | |",
            "|---|---|",
            *figures,
            "",
            "The figures say how the model did on these data. Whether it does as well on others, and on every group of",
            "people or things that the data describe, has to be measured there: `clf.evaluate(X, y)`.",
            "",
        ]
    )
