"""Options that validate themselves: the one place where a value is checked and an error is worded.

A range is written once, in the annotation of the field it restricts; parts, methods and recipes all read it
from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "NAMED",
    "Finite",
    "Fraction",
    "NameOrNone",
    "NonNegative",
    "NormOrder",
    "Options",
    "Positive",
    "PositiveInt",
    "PositiveOrNone",
    "Probability",
    "ProbabilityOrNone",
    "Range",
    "Seed",
    "UnitInterval",
    "is_number",
]


@dataclasses.dataclass(frozen=True)
class Range:
    """The values an option accepts: ``accepts`` decides, ``allowed`` says it in words."""

    allowed: str
    accepts: Callable[[Any], bool]


def is_number(value: object) -> bool:
    """Whether it is a real number, NumPy's included, that a float can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(allowed: str, accepts: Callable[[Any], bool]) -> Range:
    # A comparison with NaN is false, so every range below refuses NaN without naming it.
    return Range(allowed, lambda value: is_number(value) and accepts(value))


def _or_none(hint: Any) -> Range:
    inner = hint.__metadata__[0]
    return Range(f"{inner.allowed}, or None", lambda value: value is None or inner.accepts(value))


def plain(value: Any) -> Any:
    """A NumPy number as Python's own, which checkpoints and recipes can hold; anything else as it is."""
    if isinstance(value, (bool, int, float)) and type(value) in (bool, int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


Positive: TypeAlias = Annotated[float, _number("a finite number > 0", lambda v: 0 < v < math.inf)]
NonNegative: TypeAlias = Annotated[float, _number("a finite number >= 0", lambda v: 0 <= v < math.inf)]
Finite: TypeAlias = Annotated[float, _number("a finite number", lambda v: -math.inf < v < math.inf)]
UnitInterval: TypeAlias = Annotated[float, _number("a number in [0, 1)", lambda v: 0 <= v < 1)]
Fraction: TypeAlias = Annotated[float, _number("a number in (0, 1]", lambda v: 0 < v <= 1)]
Probability: TypeAlias = Annotated[float, _number("a number in [0, 1]", lambda v: 0 <= v <= 1)]
ProbabilityOrNone: TypeAlias = Annotated[float | None, _or_none(Probability)]
PositiveOrNone: TypeAlias = Annotated[float | None, _or_none(Positive)]
NormOrder: TypeAlias = Annotated[float, _number("a number >= 1, infinity included", lambda v: v >= 1)]
PositiveInt: TypeAlias = Annotated[int, Range("an integer >= 1", lambda v: _is_int(v) and v >= 1)]
NameOrNone: TypeAlias = Annotated[
    str | None, Range("a name, or None", lambda v: v is None or (isinstance(v, str) and bool(v.strip("-"))))
]
Seed: TypeAlias = Annotated[int, Range("an integer >= 0", lambda v: _is_int(v) and v >= 0)]

NAMED: dict[str, Range] = {
    hint.__metadata__[0].allowed: hint.__metadata__[0]
    for hint in list(globals().values())
    if typing.get_origin(hint) is Annotated
}
"""The ranges above, by their words: with these a value can be checked whose class was not imported."""


def _range_of(hint: Any) -> Range:
    """The range that a field's annotation states."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return next(extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Range))
    if origin is Literal:
        choices = typing.get_args(hint)
        return Range("one of " + ", ".join(map(repr, choices)), lambda value: value in choices)
    if origin in (typing.Union, types.UnionType):
        options = [_range_of(option) for option in typing.get_args(hint)]
        return Range(", or ".join([o.allowed for o in options]), lambda value: any(o.accepts(value) for o in options))
    if hint is type(None):
        return Range("None", lambda value: value is None)
    if hint is bool:
        return Range("True or False", lambda value: isinstance(value, bool))
    if hint is int:
        return Range("an integer", _is_int)
    return Range(f"a {hint.__name__}", lambda value: isinstance(value, hint))


@cache
def ranges(cls: type) -> dict[str, Range]:
    """The range of each option of ``cls``, by name and in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: _range_of(hints[field.name]) for field in dataclasses.fields(cls) if field.init}


def _source(value: object) -> str:
    """``repr`` of a value that evaluates back to it."""
    if not isinstance(value, float):
        return repr(value)
    # NumPy's floats are floats too, but say so in their repr.
    return repr(float(value)) if math.isfinite(value) else f"float({str(value)!r})"


class Options:
    """Base of every dataclass of options: validated when made, and ``repr`` evaluates back to an equal one.

    Keyword-only fields are the options that many classes share; ``repr`` shows them only where they differ from
    their default.

    Raises:
        TypeError: If an argument is unknown; it names those there are.
        ValueError: If a value is outside its range; it names class, argument, value and range.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Refuse misplaced arguments in more words than Python does."""
        cls._refuse_misplaced(arguments, named)
        return super().__new__(cls)

    @classmethod
    def _refuse_misplaced(cls, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Refuse what is no option."""
        parameters = inspect.signature(cls.__init__).parameters
        known = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        if len(known) == len(parameters) and (unknown := [name for name in named if name not in known]):
            advice = cls._advise(unknown[0], known[1:])
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {unknown[0]!r}: {advice}")

    @classmethod
    def _advise(cls, unknown: str, known: list[str]) -> str:
        """What may have been meant by an unknown argument, and what there is."""
        near = difflib.get_close_matches(unknown, known, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        return f"{meant}Its arguments are {', '.join(known)}." if known else "it takes none."

    def __post_init__(self) -> None:
        """Check every field against the range in its annotation."""
        for name, allowed in ranges(type(self)).items():
            value = getattr(self, name)
            if not allowed.accepts(value):
                shown = repr(value) if not _is_int(value) or abs(value) < 10**40 else "an integer too large for a float"
                raise ValueError(f"{type(self).__name__}({name}={shown}): {name} must be {allowed.allowed}.")
            if (own := plain(value)) is not value:
                object.__setattr__(self, name, own)  # the dataclass is frozen

    def __repr__(self) -> str:
        """The call that makes an equal object."""
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        fields = tuple(f for f in fields if f.init and f.repr)
        shown = [f for f in fields if not f.kw_only]
        shown += [f for f in fields if f.kw_only and getattr(self, f.name) != f.default]
        arguments = ", ".join(f"{field.name}={_source(getattr(self, field.name))}" for field in shown)
        return f"{type(self).__name__}({arguments})"
