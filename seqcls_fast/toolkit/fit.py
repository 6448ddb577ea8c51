"""The work of an estimator's fit(): preparing the data, training, keeping checkpoints, and the report at the end.

In a group of torch.distributed all processes call it together.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..classifier import SequenceClassifier
from ._terminal import escaped
from .baseline import Baseline, features_for, fit_baseline
from .data.leakage import fingerprints
from .fitted import Fitted, make_model
from .inputs import Inputs
from .parameter_checks import device_of, lasting_parameters
from .ranks import Ranks, current
from .training.checkpoint import CheckpointError, Checkpoints
from .training.loop import TrainingError, train
from .training.options import Options, batch_size_for, best_epoch_of, learning_rate_for
from .training.prepare import FitData, Prepared, prepare
from .training.resume import check_content
from .training.wide import add_wide, refit

__all__ = ["fit"]

Stop = Callable[[list[dict[str, Any]]], bool]


def fit(
    inputs: Inputs,
    parameters: dict[str, Any],
    given: FitData,
    *,
    resume: bool,
    stop: Stop | None,
    keep: Callable[[Fitted], None],
) -> None:
    """Trains a model and passes what was learned to ``keep``.

    Args:
        inputs: how raw data of this kind become sequences.
        parameters: those of the estimator, after a check.
        given: the data.
        resume: whether to go on from the newest checkpoint, if there is one.
        stop: is called with the history after every epoch; training ends when it returns True.
        keep: is called when training has ended, or is interrupted after the first epoch, once more with the baseline,
            and once more with the report on the validation data.
    """
    ranks = current()
    with _claimed(parameters, ranks):
        _fit(inputs, parameters, given, resume, stop, keep, ranks)


def _fit(
    inputs: Inputs,
    parameters: dict[str, Any],
    given: FitData,
    resume: bool,
    stop: Stop | None,
    keep: Callable[[Fitted], None],
    ranks: Ranks,
) -> None:
    checkpoints, saved = _open_checkpoints(parameters, resume, ranks)
    seed = parameters["seed"]
    if seed is None:
        seed = saved["about"]["seed"] if saved else ranks.from_writer(torch.Generator().seed() % 2**31)
    wide = parameters.get("convolutions")
    prepared = prepare(inputs, parameters, given, seed)
    about = prepared.about | {"seed": seed, "parameters": lasting_parameters(parameters)}
    if any(other != about for other in ranks.all(about)):
        raise ValueError("fit: expected the same data and parameters in every process but got different ones")
    if checkpoints is not None:
        checkpoints.about = about
    if saved is not None:
        _check_same(saved["about"], about)

    device = device_of(parameters["device"])
    options = _options(parameters, len(prepared.data), prepared.epochs, prepared.data.steps, seed)
    model = _new_model(inputs, parameters, prepared, seed, device)
    history: list[dict[str, Any]] = []

    def learned(baseline: Baseline | None = None) -> Fitted:
        return Fitted(
            inputs, parameters, prepared.encoder, prepared.classes, model, prepared.seen, history,
            best_epoch_of(history, parameters["metric"]), seed,
            data=prepared.about | {"ranks": ranks.world, "threads": torch.get_num_threads()},
            baseline=baseline, amp=parameters["amp"], workers=parameters["workers"],
        )  # fmt: skip

    try:
        train(
            model, prepared.data, options, device, prepared.held, history, ranks=ranks, checkpoints=checkpoints,
            saved=None if saved is None else saved["state"], stop=stop,
        )  # fmt: skip
    except KeyboardInterrupt:
        if history:
            keep(learned())
        raise
    finally:
        prepared.close()
    keep(learned())
    if wide:
        add_wide(model, prepared, parameters, seed, ranks)
        prepared.close()
        keep(learned())
    baseline, predicted = None, None
    if parameters["baseline"] and ranks.writer:
        features = features_for(prepared.encoder, len(prepared.classes))
        data, held = prepared.encoded_by(features)
        baseline = fit_baseline(inputs, features, data, prepared.classes, seed, options.epochs)
        predicted = None if held is None else baseline.targets_of(held, ranks)
        prepared.close()
    fitted = learned(baseline)
    keep(fitted)
    fitted = fitted.validated(prepared.held, ranks, predicted)
    if wide and given.validation is None and prepared.held is not None:
        refit(model, prepared, parameters, seed, ranks)
        fitted = _with_held(fitted, prepared)
    keep(fitted)
    if prepared.held_from_all and parameters.get("refit"):
        try:
            keep(_refitted(fitted, given, options, ranks))
        except TrainingError as error:
            warnings.warn(
                f"refit: the model without the held-out data is kept, as {error}", RuntimeWarning, stacklevel=4
            )


def _with_held(fitted: Fitted, prepared: Prepared) -> Fitted:
    """A copy that knows that a part of the model has seen the held-out data, which are in memory."""
    inputs = prepared.raw[1]
    assert prepared.held is not None
    assert inputs is not None
    rows = len(prepared.data) + len(prepared.held)
    seen = prepared.seen | fingerprints(fitted.inputs.plain(inputs))
    return replace(fitted, seen=seen, data=(fitted.data or {}) | {"refit": rows})


def _refitted(fitted: Fitted, given: FitData, options: Options, ranks: Ranks) -> Fitted:
    """A model of all data, those that were held out included, trained for as many epochs as were best without them."""
    parameters = fitted.parameters | {"holdout": None, "patience": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first training has given them
        prepared = prepare(fitted.inputs, parameters, given, options.seed)
    device = device_of(parameters["device"])
    model = _new_model(fitted.inputs, parameters, prepared, options.seed, device)
    options = replace(options, epochs=fitted.best_epoch, patience=None, log_dir=None)
    train(model, prepared.data, options, device, None, [], ranks=ranks)
    assert fitted.data is not None
    data = fitted.data | {"refit": len(prepared.data)}
    return replace(fitted, encoder=prepared.encoder, model=model, seen=prepared.seen, data=data)


def _new_model(
    inputs: Inputs, parameters: Mapping[str, Any], prepared: Prepared, seed: int, device: torch.device
) -> SequenceClassifier:
    model = make_model(inputs, parameters, prepared.encoder, len(prepared.classes), seed)
    inputs.prepare_model(model, prepared.encoder)
    return model.to(device)


def _options(
    parameters: Mapping[str, Any], rows: int, epochs: int, steps: Callable[[int], int], seed: int
) -> Options:  # fmt: skip
    batch_size, log_dir = parameters["batch_size"] or batch_size_for(rows), parameters["log_dir"]
    rate = parameters["learning_rate"] or learning_rate_for(steps(batch_size) * epochs)
    names = (
        "weight_decay", "schedule", "warmup", "max_grad_norm", "patience", "metric", "amp", "on_nan",
        "verbose", "word_dropout", "wide_dropout", "label_smoothing",
    )  # fmt: skip
    return Options(
        epochs=epochs, batch_size=batch_size, learning_rate=rate, seed=seed,
        log_dir=None if log_dir is None else os.fspath(log_dir),
        **{name: parameters[name] for name in names if name in parameters},
    )  # fmt: skip


# -- checkpoints ------------------------------------------------------------------------------------------------------


def _claimed(parameters: Mapping[str, Any], ranks: Ranks) -> AbstractContextManager[None]:
    """The process that writes keeps other trainings out of ``checkpoint_dir``."""
    if parameters["checkpoint_dir"] is None or not ranks.writer:
        return nullcontext()
    return Checkpoints(parameters["checkpoint_dir"], parameters["checkpoint_every"]).claimed()


def _open_checkpoints(parameters: Mapping[str, Any], resume: bool, ranks: Ranks) -> tuple[Checkpoints | None, Any]:
    """The checkpoints in ``checkpoint_dir``, and the content of the newest one if training should go on from it."""
    folder = parameters["checkpoint_dir"]
    if folder is None:
        if resume:
            raise ValueError("resume: expected a checkpoint_dir to resume from but got None")
        return None, None
    checkpoints = Checkpoints(folder, parameters["checkpoint_every"])
    if ranks.writer and checkpoints and not resume:
        raise FileExistsError(
            "checkpoint_dir: expected resume=True or a folder without checkpoints but got "
            f"{escaped(folder)}, which has some"
        )
    return checkpoints, ranks.from_writer(checkpoints.newest(check_content) if resume and ranks.writer else None)


def _check_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises a CheckpointError if the data or parameters are not those that the training began with."""
    saved, now = ({**about, **about["parameters"]} for about in (saved, now))
    for name in now:
        if name != "parameters" and saved.get(name) != now[name]:
            what = "the data" if name in ("rows", "digest") else name
            before, after = escaped(saved.get(name)), escaped(now[name])
            raise CheckpointError(f"resume: expected {what} as in the checkpoint, {before}, but got {after}")
