"""`bench PACKAGE.MODULE:NAME`: what `convert` gains for a model that the user wrote.

The module is imported, so its code runs, as it would in the user's own program. Nothing is timed before the converted
copy computes what the original computes.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..toolkit.timing import timed
from .shared import UsageError, median_seconds, print_json

__all__ = ["bench_module", "input_sizes", "is_module_name"]

MIN_SECONDS = 0.02  # of a sample; calls that take less are repeated
# What the user's code may raise. A program that is imported, or a constructor, may also end the interpreter.
ANY_ERROR = (Exception, SystemExit)


def is_module_name(model: str | None) -> bool:
    """Whether `model` is PACKAGE.MODULE:NAME and not a folder."""
    return model is not None and ":" in model and not os.path.exists(model)


def input_sizes(text: str) -> tuple[int, ...]:
    """The sizes of --input."""
    sizes = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(",")]
    if min(sizes) < 1:
        raise UsageError(f"--input: expected sizes of at least 1 separated by commas, as in 32,100,8, but got {text!r}")
    return tuple(sizes)


def bench_module(name: str, sizes: tuple[int, ...], ids: int | None, rounds: int, as_json: bool) -> None:
    """Times the module beside a converted copy of it, and prints the report of the conversion."""
    import torch

    from ..conversion import convert
    from ..toolkit.training.logits import is_out_of_memory

    original = imported(name).eval()
    try:
        if math.prod(sizes) > 1 << 60:  # more than torch can count in bytes
            raise MemoryError
        x = torch.randn(sizes) if ids is None else torch.randint(ids, sizes)
        # called before it is copied, as some layers draw their weights in the first call
        trained = _is_trained(name, original, x)
        with _told(f"{name}: expected a model that copy.deepcopy can copy but it raises"):
            ours = copy.deepcopy(original)
        report = convert(ours)
        if not report.swapped:
            raise ValueError(f"{name}: expected a model with a layer that convert() can swap but found none: {report}")
        _check_equal(name, original, ours, x)
        models = {"as it is": original, "converted": ours}
        seconds = {}
        if trained:
            for model in models.values():
                model.train()
            with _told(f"{name}: expected a training step with an input of {sizes} to work but it raises"):
                _train(original, x)
            seconds["training step"] = _medians({key: partial(_train, m, x) for key, m in models.items()}, rounds)
        for model in models.values():
            model.eval()
        with torch.inference_mode():
            seconds["inference"] = _medians({key: partial(m, x) for key, m in models.items()}, rounds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"--input: expected sizes that fit into memory but got {sizes}") from error
    if as_json:
        left = [{"name": each.name, "type": each.type, "reason": each.reason} for each in report.left]
        print_json({
            "model": name, "input": list(sizes), "ids": ids, "threads": torch.get_num_threads(), "seconds": seconds,
            "swapped": report.swapped, "left": left,
        })  # fmt: skip
        return
    print(report)
    print(f"{'median, in ms':<16}{'as it is':>12}{'converted':>12}{'ratio':>8}")
    for what, times in seconds.items():
        before, after = times.values()
        print(f"{what:<16}{1e3 * before:12.3f}{1e3 * after:12.3f}{before / after:8.2f}")


@contextmanager
def _told(expected: str) -> Iterator[None]:
    """Makes a sentence of what the user's code raises, unless memory is too small."""
    from ..toolkit.training.logits import is_out_of_memory

    try:
        yield
    except ANY_ERROR as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{expected} {type(error).__name__}: {error}") from error


def imported(name: str) -> Any:
    """The model that PACKAGE.MODULE:NAME names: a module, or what a class or function without arguments makes."""
    from torch import nn

    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the program seqcls-fast, unlike python -m, does not look there
    try:
        found: Any = importlib.import_module(module_name)
    except ANY_ERROR as error:
        raise ImportError(
            f"{name}: expected a module that can be imported but got {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name}: expected the name of a model in {module_name} but there is no {part!r}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(f"{name}: expected a torch.nn.Module, or what makes one, but got {type(found).__name__}")
    if needed := list(_needed(found)):
        raise TypeError(
            f"{name}: expected what can be called without arguments but it needs {', '.join(needed)}; write a function "
            "without arguments that returns the model, and name that"
        )
    try:
        with _told(f"{name}: expected a call without arguments to return a model but it raises"):
            made = found()
    except (MemoryError, RuntimeError) as error:
        raise MemoryError(f"{name}: expected a model that fits into memory but got {error}") from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name}: expected a call to return a torch.nn.Module but got {type(made).__name__}")
    return made


def _needed(function: Callable[..., Any]) -> Iterator[str]:
    """The parameters that a call must give."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    for each in parameters:
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            yield each.name


def _is_trained(name: str, original: Any, x: Any) -> bool:
    """Whether an output of the model depends on a weight that is trained. The model is called for the first time."""
    with _told(f"--input: expected what {name} takes but for {tuple(x.shape)} of {x.dtype} it raises"):
        return any(True for _ in _leaves(original, x))


def _check_equal(name: str, original: Any, ours: Any, x: Any) -> None:
    """Raises an error unless both compute the same: in eval mode, as dropout differs from call to call."""
    import torch

    with torch.no_grad():
        expected, found = list(_floats(original(x))), list(_floats(ours(x)))
    shapes = [[tuple(each.shape) for each in outputs] for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"{name}: expected outputs of {shapes[0]} but converted it gives {shapes[1]}")
    for a, b in zip(expected, found, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True):
            difference = float((a - b).abs().max())
            raise RuntimeError(f"{name}: expected equal outputs but they differ by {difference}, so nothing is timed")


def _floats(result: Any) -> Iterator[Any]:
    """The tensors of real numbers in a result: a tensor, or tensors in tuples, lists, dicts and packed sequences."""
    from torch import Tensor

    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict):
        for each in result.values():
            yield from _floats(each)
    elif isinstance(result, list | tuple):
        for each in result:
            yield from _floats(each)


def _leaves(model: Any, x: Any) -> Iterator[Any]:
    """The outputs that depend on a weight that is trained."""
    return (each for each in _floats(model(x)) if each.requires_grad)


def _train(model: Any, x: Any) -> None:
    """A training step but for the optimizer, which is the same for both."""
    model.zero_grad()
    sum(each.sum() for each in _leaves(model, x)).backward()


def _medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each call. Short calls are repeated, as many times for each."""
    repeats = max(1, round(MIN_SECONDS / max(1e-9, *(timed(call)[0] for call in calls.values()))))

    def repeated(call: Callable[[], Any]) -> None:
        for _ in range(repeats):
            call()

    found = median_seconds({key: partial(repeated, call) for key, call in calls.items()}, rounds)
    return {key: seconds / repeats for key, seconds in found.items()}
