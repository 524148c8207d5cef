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
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
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
    "fits",
    "is_number",
    "ranged",
]


@dataclasses.dataclass(frozen=True)
class Range:
    """The values an option accepts: ``accepts`` decides, ``allowed`` says it in words, ``schema`` in JSON Schema."""

    allowed: str
    accepts: Callable[[Any], bool]
    schema: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)


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


_TYPES: dict[str, Callable[[Any], bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_int,
    "number": lambda value: is_number(value) and not math.isnan(value),
    "string": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, (list, tuple)),
    "object": lambda value: isinstance(value, Mapping),
}

_KEYWORDS: dict[str, Callable[[Any, Any], bool]] = {
    "enum": lambda value, choices: value in choices,
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "items": lambda value, schema: all(fits(schema, item) for item in value),
    "minItems": lambda value, least: len(value) >= least,
    "uniqueItems": lambda value, _: all(item not in value[:number] for number, item in enumerate(value)),
}


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits a JSON Schema.

    Unlike in JSON, ``1.0`` is not an integer, and infinity is a number; NaN is not.

    Args:
        schema (Mapping[str, Any]): Its type, if it has one, and the keywords that restrict it; others are ignored.
        value (Any): Any value; NumPy's numbers count as Python's.

    Returns:
        bool: True if it does.

    Example:
        >>> fits({"type": "number", "exclusiveMinimum": 0}, 0.1)
        True
    """
    if "type" in schema and not _TYPES[schema["type"]](value):
        return False
    value = plain(value)  # NumPy would round the bounds to its own precision
    return all(test(value, schema[keyword]) for keyword, test in _KEYWORDS.items() if keyword in schema)


def ranged(allowed: str, kind: str, **keywords: Any) -> Range:
    """A range that JSON Schema can express.

    Args:
        allowed (str): In words.
        kind (str): A type of JSON: ``number``, ``integer``, ``string``, ...
        **keywords (Any): What restricts it, as in JSON Schema.

    Returns:
        Range: To annotate a type with.
    """
    schema = {"type": kind, **keywords, "description": allowed}
    return Range(allowed, partial(fits, schema), schema)


def plain(value: Any) -> Any:
    """A NumPy number as Python's own, which checkpoints and recipes can hold; anything else as it is."""
    if isinstance(value, (bool, int, float)) and type(value) in (bool, int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


_MAX = sys.float_info.max

Positive: TypeAlias = Annotated[float, ranged("a finite number > 0", "number", exclusiveMinimum=0, maximum=_MAX)]
NonNegative: TypeAlias = Annotated[float, ranged("a finite number >= 0", "number", minimum=0, maximum=_MAX)]
Finite: TypeAlias = Annotated[float, ranged("a finite number", "number", minimum=-_MAX, maximum=_MAX)]
UnitInterval: TypeAlias = Annotated[float, ranged("a number in [0, 1)", "number", minimum=0, exclusiveMaximum=1)]
Fraction: TypeAlias = Annotated[float, ranged("a number in (0, 1]", "number", exclusiveMinimum=0, maximum=1)]
Probability: TypeAlias = Annotated[float, ranged("a number in [0, 1]", "number", minimum=0, maximum=1)]
ProbabilityOrNone: TypeAlias = Probability | None
PositiveOrNone: TypeAlias = Positive | None
NormOrder: TypeAlias = Annotated[float, ranged("a number >= 1, infinity included", "number", minimum=1)]
PositiveInt: TypeAlias = Annotated[int, ranged("an integer >= 1", "integer", minimum=1)]
NameOrNone: TypeAlias = Annotated[str, ranged("a name", "string", pattern="[^-]")] | None
Seed: TypeAlias = Annotated[int, ranged("an integer >= 0", "integer", minimum=0)]


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
