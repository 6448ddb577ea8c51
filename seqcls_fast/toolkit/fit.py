"""The work of an estimator's fit(): preparing the data, training, keeping checkpoints, and the report at the end.

In a group of torch.distributed all processes call it together.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..classifier import SequenceClassifier
from ._terminal import escaped, shown
from .baseline import Baseline, features_for, fit_baseline
from .data import labels
from .data.datasets import Examples
from .data.leakage import fingerprints
from .data.stream import Stream
from .data.text import TextEncoder
from .fitted import Fitted, make_model
from .inputs import Inputs
from .parameter_checks import check_kept, device_of, lasting_parameters
from .ranks import Ranks, current
from .training.checkpoint import CheckpointError, Checkpoints
from .training.loop import TrainingError, train
from .training.options import Options, batch_size_for, best_epoch_of, learning_rate_for
from .training.prepare import FitData, Known, Prepared, prepare
from .training.resume import check_content
from .training.scores import Wide
from .training.svm import Machine, Mixing, add_machine, network_alone, suits
from .training.wide import add_wide, refit

__all__ = ["Shared", "fit", "partial_fit"]

_RATE = 2e-3  # the learning rate of partial_fit, unless one is given
_MANY = 1 << 12  # texts that partial_fit expects to come, for which its table of n-grams is made

Stop = Callable[[list[dict[str, Any]]], bool]


@dataclass
class Shared:
    """What trainings on the same data with the same seed have in common, whatever their networks are like."""

    baseline: Baseline | None = None
    wide: Wide | None = None  # of series
    machine: Machine | None = None  # of texts


def fit(
    inputs: Inputs,
    parameters: dict[str, Any],
    given: FitData,
    *,
    resume: bool,
    stop: Stop | None,
    keep: Callable[[Fitted], None],
    start: Fitted | None = None,
    shared: Shared | None = None,
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
        start: the model whose weights the training goes on from, if there is one.
        shared: what earlier trainings on these data have fitted, to which this one adds what is missing.
    """
    ranks = current()
    if start is not None:
        check_kept(parameters, start.parameters, "warm_start")
    with _claimed(parameters, ranks):
        _fit(inputs, parameters, given, resume, stop, keep, ranks, start, Shared() if shared is None else shared)


def _fit(
    inputs: Inputs,
    parameters: dict[str, Any],
    given: FitData,
    resume: bool,
    stop: Stop | None,
    keep: Callable[[Fitted], None],
    ranks: Ranks,
    start: Fitted | None,
    shared: Shared,
) -> None:
    checkpoints, saved = _open_checkpoints(parameters, resume, ranks)
    seed = parameters["seed"]
    if seed is None:
        seed = saved["about"]["seed"] if saved else ranks.from_writer(torch.Generator().seed() % 2**31)
    wide = parameters.get("convolutions")
    known = None if start is None else Known(start.encoder, start.classes)
    prepared = prepare(inputs, parameters, given, seed, known)
    about = prepared.about | {"seed": seed, "parameters": lasting_parameters(parameters)}
    if any(other != about for other in ranks.all(about)):
        raise ValueError("fit: expected the same data and parameters in every process but got different ones")
    if checkpoints is not None:
        checkpoints.about = about
    if saved is not None:
        _check_same(saved["about"], about)

    device = device_of(parameters["device"])
    options = _options(parameters, len(prepared.data), prepared.epochs, prepared.data.steps, seed)
    model = _model(inputs, parameters, prepared, seed, device, start)
    earlier = _earlier(start)
    history: list[dict[str, Any]] = []

    def learned(baseline: Baseline | None = None) -> Fitted:
        return Fitted(
            inputs, parameters, prepared.encoder, prepared.classes, model,
            prepared.seen if start is None else prepared.seen | start.seen, history,
            best_epoch_of(history, parameters["metric"]), seed, data=prepared.about | earlier | _machine(ranks),
            baseline=baseline, amp=parameters["amp"], workers=parameters["workers"],
        )  # fmt: skip

    machine = start is None and _suits_machine(parameters, prepared)
    data, held = prepared.narrow() if machine else (prepared.data, prepared.held)
    try:
        with network_alone(model) if machine else nullcontext():
            train(
                model, data, options, device, held, history, ranks=ranks, checkpoints=checkpoints,
                saved=None if saved is None else saved["state"], stop=stop,
            )  # fmt: skip
    except KeyboardInterrupt:
        if history:
            keep(learned())
        raise
    finally:
        prepared.close()
    keep(learned())
    mixing: Mixing | None = None
    if machine:
        shared.machine, mixing = add_machine(model, prepared, parameters, seed, ranks, fitted=shared.machine)
        prepared.close()
        keep(learned())
    if wide:
        shared.wide = add_wide(model, prepared, parameters, seed, ranks, shared.wide)
        prepared.close()
        keep(learned())
    baseline, predicted = None, None
    if parameters["baseline"] and ranks.writer:
        features = features_for(prepared.encoder, len(prepared.classes))
        data, held = prepared.encoded_by(features)
        if shared.baseline is None:
            shared.baseline = fit_baseline(inputs, features, data, prepared.classes, seed, options.epochs)
        baseline = shared.baseline
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
            keep(_refitted(fitted, given, options, ranks, start, mixing))
        except TrainingError as error:
            warnings.warn(
                f"refit: the model without the held-out data is kept, as {error}", RuntimeWarning, stacklevel=5
            )


def _with_held(fitted: Fitted, prepared: Prepared) -> Fitted:
    """A copy that knows that a part of the model has seen the held-out data, which are in memory."""
    inputs = prepared.raw[1]
    assert prepared.held is not None
    assert inputs is not None
    rows = len(prepared.data) + len(prepared.held)
    seen = prepared.seen | fingerprints(fitted.inputs.plain(inputs))
    return replace(fitted, seen=seen, data=(fitted.data or {}) | {"refit": rows})


def _refitted(
    fitted: Fitted, given: FitData, options: Options, ranks: Ranks, start: Fitted | None, mixing: Mixing | None
) -> Fitted:
    """A model of all data, those that were held out included, trained for as many epochs as were best without them.

    ``mixing`` is that of the first training, in the process that writes, if its n-grams were a machine of their own.
    """
    parameters = fitted.parameters | {"holdout": None, "patience": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first training has given them
        known = None if start is None else Known(start.encoder, start.classes)
        prepared = prepare(fitted.inputs, parameters, given, options.seed, known)
    device = device_of(parameters["device"])
    model = _model(fitted.inputs, parameters, prepared, options.seed, device, start)
    options = replace(options, epochs=fitted.best_epoch, patience=None, log_dir=None)
    machine = start is None and _suits_machine(fitted.parameters, prepared)
    with network_alone(model) if machine else nullcontext():
        train(model, prepared.narrow()[0] if machine else prepared.data, options, device, None, [], ranks=ranks)
    if machine:
        add_machine(model, prepared, parameters, options.seed, ranks, mixing)
    assert fitted.data is not None
    data = fitted.data | {"refit": len(prepared.data)}
    seen = fitted.seen | prepared.seen
    return replace(fitted, encoder=prepared.encoder, model=model, seen=seen, data=data)


def _suits_machine(parameters: Mapping[str, Any], prepared: Prepared) -> bool:
    """Whether the n-grams of texts are a machine of their own, or a table that is trained with the network."""
    encoder = prepared.encoder
    return isinstance(encoder, TextEncoder) and suits(
        parameters, encoder.ngrams, len(prepared.data), len(prepared.classes)
    )


def _model(
    inputs: Inputs, parameters: Mapping[str, Any], prepared: Prepared, seed: int, device: torch.device,
    start: Fitted | None,
) -> SequenceClassifier:  # fmt: skip
    if start is not None:
        return _copy(start, parameters, seed).to(device)
    model = make_model(inputs, parameters, prepared.encoder, len(prepared.classes), seed)
    inputs.prepare_model(model, prepared.encoder)
    return model.to(device)


def _copy(start: Fitted, parameters: Mapping[str, Any], seed: int) -> SequenceClassifier:
    """A model with the weights of another one, without random convolutions, and with the dropout of ``parameters``.

    fit() fits random convolutions anew. Where ``parameters`` ask for none, those of the other model would be lost.
    """
    if start.network.convolutions is not None and not parameters["convolutions"]:
        raise ValueError(
            "convolutions: expected more than 0, as the model that is trained on has random convolutions beside its "
            "network, but got 0; a new estimator begins anew"
        )
    model = make_model(start.inputs, parameters, start.encoder, len(start.classes), seed)
    weights = start.network.state_dict()
    model.load_state_dict({name: each for name, each in weights.items() if not name.startswith("convolutions.")})
    return model


def _earlier(start: Fitted | None) -> dict[str, int]:
    """How many rows the weights were trained on before."""
    if start is None or start.data is None:
        return {}
    return {"earlier": start.data["rows"] + start.data.get("earlier", 0)}


def _machine(ranks: Ranks) -> dict[str, int]:
    return {"ranks": ranks.world, "threads": torch.get_num_threads()}


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


# -- one pass over a batch of data ------------------------------------------------------------------------------------


def partial_fit(
    inputs: Inputs, parameters: dict[str, Any], given: FitData, classes: Any, start: Fitted | None
) -> Fitted:
    """What was learned before, if anything was, trained on with these data in one pass; see the estimators' method."""
    if isinstance(given.X, Stream):
        raise TypeError("X: expected sequences in memory but got a Stream; fit() reads a Stream, in several passes")
    if parameters.get("convolutions"):
        raise ValueError(
            "partial_fit: expected convolutions=0 but got "
            f"{parameters['convolutions']}, as the wide part is fitted to all series at once"
        )
    if parameters["class_weight"] == "balanced":
        raise ValueError(
            "class_weight: expected None or a dict for partial_fit, which does not see all labels, but got 'balanced'"
        )
    ranks = current()
    X, y = inputs.labelled(given.X, given.y)
    if not X:
        raise ValueError("X: expected at least one sequence but got none")
    if start is None:
        start = _begun(inputs, parameters, X, classes, ranks)
    else:
        check_kept(parameters, start.parameters, "partial_fit")
        _check_classes(classes, start.classes)
        if start.temperature != 1 or start.threshold is not None:
            words = "partial_fit: the temperature and the threshold are forgotten, as other weights need others"
            warnings.warn(words, UserWarning, stacklevel=3)
    targets = labels.to_targets(y, start.classes, hint="; the first call says all of them, in classes")
    weights = labels.weights_of(targets, start.classes, parameters["class_weight"], given.sample_weight)
    data, device = Examples(start.encoder.encode(X), targets, weights), device_of(parameters["device"])
    history = list(start.history)
    assert start.seed is not None
    options = replace(
        _options(parameters, len(X), len(history) + 1, data.steps, start.seed),
        learning_rate=parameters["learning_rate"] or _RATE, schedule="constant", warmup=0.0,
        patience=None, verbose=bool(parameters["verbose"]), log_dir=None,
    )  # fmt: skip
    model = _copy(start, parameters, start.seed).to(device)
    train(model, data, options, device, None, history, ranks=ranks)
    about = {"rows": len(X), "digest": data.digest(), "validation": None} | _earlier(start) | _machine(ranks)
    return Fitted(
        inputs, parameters, start.encoder, start.classes, model, start.seen | fingerprints(inputs.plain(X)), history,
        len(history), start.seed, data=about, amp=parameters["amp"], workers=parameters["workers"],
    )  # fmt: skip


def _begun(inputs: Inputs, parameters: dict[str, Any], X: list[Any], classes: Any, ranks: Ranks) -> Fitted:
    """A model that knows its classes and its encoder, and has not been trained yet."""
    if classes is None:
        raise ValueError("classes: expected all labels that may come, in the first call of partial_fit, but got None")
    known = labels.classes_of(labels.as_list(classes, name="classes"))
    if len(known) < 2:
        raise ValueError(f"classes: expected at least two different labels but got {len(known)}")
    encoder = inputs.learnt(inputs.make_encoder(parameters).fit(X), len(known), _MANY)
    seed = parameters["seed"]
    if seed is None:
        seed = ranks.from_writer(torch.Generator().seed() % 2**31)
    model = make_model(inputs, parameters, encoder, len(known), seed)
    inputs.prepare_model(model, encoder)
    return Fitted(inputs, parameters, encoder, known, model, fingerprints([]), [], 0, seed, data=None)


def _check_classes(given: Any, known: np.ndarray) -> None:
    """Raises a ValueError for other classes than those of the first call."""
    if given is None:
        return
    found = labels.classes_of(labels.as_list(given, name="classes"))
    if found.tolist() != known.tolist():
        raise ValueError(
            f"classes: expected those of the first call, {shown(known.tolist())}, but got {shown(found.tolist())}"
        )


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
