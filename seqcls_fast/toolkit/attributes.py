"""What the estimators need of Python: learned values as attributes, and hints for unknown parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from ._terminal import did_you_mean

__all__ = ["Learned", "suggests"]


class Learned:
    """An attribute of a fitted estimator that is a field of its ``fitted_``. Assigning to it makes another ``fitted_``.

    A shallow copy of the estimator therefore keeps the values that it was made with.
    """

    def __init__(self, field: str) -> None:
        self.field = field

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, estimator: Any, owner: type | None = None) -> Any:
        if estimator is None:
            return self
        if "fitted_" not in vars(estimator):
            raise AttributeError(f"{type(estimator).__name__!r} object has no attribute {self.name!r}")
        return getattr(estimator.fitted_, self.field)

    def __set__(self, estimator: Any, value: Any) -> None:
        estimator.fitted_ = replace(estimator.fitted_, **{self.field: value})


_Init = TypeVar("_Init", bound=Callable[..., None])


def suggests(init: _Init) -> _Init:
    """A constructor whose error for an unknown parameter names the nearest one."""
    known = list(inspect.signature(init).parameters)[1:]

    @wraps(init)
    def checked(self: Any, *values: Any, **parameters: Any) -> None:
        for name in parameters.keys() - set(known):
            raise TypeError(
                f"{type(self).__name__}: got an unexpected keyword argument {name!r}{did_you_mean(name, known)}"
            )
        init(self, *values, **parameters)

    return cast(_Init, checked)
