"""Algorithms given as a class, where the Trainer needs an instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from composer.core import Algorithm

__all__ = ["refuse_class"]

_F = TypeVar("_F", bound=Callable[..., bool])


def refuse_class(match: _F) -> _F:
    """Decorate ``match``, which a Trainer calls first: called on the class rather than an instance, it raises."""
    return cast("_F", _OfInstances(match))


class _OfInstances:
    def __init__(self, match: Callable[..., bool]) -> None:
        self._match = match
        self.__doc__ = match.__doc__

    def __get__(self, algorithm: Algorithm | None, cls: type[Algorithm]) -> Callable[..., bool]:
        if algorithm is not None:
            return self._match.__get__(algorithm, cls)

        def refuse(*_: Any) -> bool:
            raise TypeError(
                f"algorithms=[{cls.__name__}] is a class; the Trainer needs an instance: algorithms=[{cls.__name__}()]."
            )

        return refuse
