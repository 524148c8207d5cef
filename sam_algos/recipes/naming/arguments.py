"""What a name in a recipe takes: its arguments with their types and ranges, as data that needs no import."""

from __future__ import annotations

import ast
import difflib
import enum
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from sam_algos.core.options import NAMED, Range
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.paths import FILE, FOLDER

_ANY = "anything"
_OBJECT = "a Python object, which cannot be written here"
_PART = "a part: "
_ONE_OF = "one of "

_PATHS = {known.allowed: known for known in (FOLDER, FILE)}

_RANGES = {**NAMED, **_PATHS}  # by their words; a kind that is not among them is left to whoever is called


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "an integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a number": _is_number,
    "text": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "a list": lambda value: isinstance(value, (list, tuple)),
    "a mapping": lambda value: isinstance(value, Mapping),
}

_SYNONYMS = {"cuda": "gpu", "bf16": "amp_bf16", "bfloat16": "amp_bf16", "fp16": "amp_fp16", "float16": "amp_fp16"}
"""What PyTorch and other programs call some choices."""

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Argument:
    """One argument.

    Args:
        kinds (tuple[str, ...]): What it may be, each in words: ``"an integer"``, ``"a finite number > 0"``,
            ``"one of 'a', 'b'"``, ``"a part: schedule"``, ``"anything"``.
        default (str | None): The source of its default, None where it is required.
    """

    kinds: tuple[str, ...]
    default: str | None

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        writable = [kind for kind in self.kinds if kind != _OBJECT] or [_OBJECT]
        return ", or ".join(re.sub(f"{_PART}(.*)", r"a \1 {name: ...}", kind) for kind in writable)

    def accepts(self, value: Any) -> bool:
        """Whether it may be this value, as far as can be said here."""
        return any(_fits(kind, value) for kind in self.kinds)

    @property
    def part(self) -> str | None:
        """The axis of the part that it may be, None where it may be none."""
        return next((kind.removeprefix(_PART) for kind in self.kinds if kind.startswith(_PART)), None)


@dataclass(frozen=True)
class Form:
    """What can be written under a name.

    Args:
        arguments (Mapping[str, Argument]): By name.
        takes_others (bool): Whether it takes others too, and checks them itself.
        doc (str): What it is.
        samples (int, optional): Of a data set: how many there are to train on, before any are set aside. Default: only
            the files tell.
    """

    arguments: Mapping[str, Argument]
    takes_others: bool = False
    doc: str = ""
    samples: int | None = None


def describe(factory: Callable[..., Any], hidden: Container[str] = ()) -> Form:
    """The form of a class or a function, from its signature and annotations.

    Args:
        factory (Callable): The class or function.
        hidden (Container[str], optional): Arguments that are not the recipe's to choose. Default: none.

    Returns:
        Form: With the first paragraph of its docstring.

    Example:
        >>> from sam_algos import LookSAM
        >>> describe(LookSAM).arguments["k"]
        Argument(kinds=('an integer >= 1',), default='5')
    """
    hints, arguments = hints_of(factory), {}
    parameters = inspect.signature(factory).parameters
    for name, parameter in parameters.items():
        if name not in hidden and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            default = None if parameter.default is parameter.empty else source_of(parameter.default)
            arguments[name] = Argument(kinds(hints.get(name, Any)), default)
    swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # Functions pass **kwargs on and check them there; Composer's base classes swallow them.
    return Form(arguments, swallows and not inspect.isclass(factory), inspect.getdoc(factory) or "")


def kinds(hint: Any) -> tuple[str, ...]:
    """What a value of a type may be, in words.

    Args:
        hint (Any): A type, or an ``Annotated`` one with a `Range`.

    Returns:
        tuple[str, ...]: One for each member of a union.

    Example:
        >>> kinds(int | None)
        ('an integer', 'null')
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        extras = [extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Range)]
        for extra in extras:
            _RANGES.setdefault(extra.allowed, extra)
        return (extras[0].allowed,) if extras else kinds(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(kind for option in typing.get_args(hint) for kind in kinds(option)))
    if origin is Literal:
        return (_choice(typing.get_args(hint)),)
    cls = origin or hint
    if hint is Any or not inspect.isclass(cls) or cls is object:
        return (_ANY,)
    if issubclass(cls, enum.Enum):
        return (_choice([member.value for member in cls]),)
    if cls in _WORDS:
        return (_WORDS[cls],)
    if issubclass(cls, Mapping):
        return ("a mapping",)
    if issubclass(cls, (list, tuple)) or issubclass(list, cls):
        return ("a list",)
    is_part = any(base.__module__ == "sam_algos.core.part" for base in cls.__mro__)
    return (_PART + cls.__name__.lower() if is_part else _OBJECT,)


def check(where: str, form: Form, arguments: Mapping[str, Any]) -> None:
    """See that arguments fit a form.

    Args:
        where (str): The key of the recipe that holds them.
        form (Form): What can be written there.
        arguments (Mapping[str, Any]): What is.

    Raises:
        RecipeError: For an argument that is unknown or missing, or whose value is of another type or out of range.
    """
    for name in arguments:
        if name not in form.arguments and not form.takes_others:
            raise unknown(where, "argument", name, form.arguments)
    for name, argument in form.arguments.items():
        if name not in arguments:
            if argument.default is None:
                raise RecipeError(f"{where}.{name}", "required")
        elif not argument.accepts(arguments[name]):
            raise RecipeError(f"{where}.{name}", mismatch(argument, arguments[name]))


def mismatch(argument: Argument, value: Any) -> str:
    """What is wrong with a value that is not what it may be, and where it is clear, what to write instead.

    Args:
        argument (Argument): What it may be.
        value (Any): What it is.

    Returns:
        str: For people.

    Example:
        >>> mismatch(Argument(("an integer >= 0",), "0"), 1e3)
        'must be an integer >= 0, got 1000.0; write 1000'
    """
    if missing := [kind for kind in argument.kinds if kind in _PATHS and isinstance(value, str)]:
        return f"no {missing[0].removeprefix('a ')} {value!r}; put it there, nothing is downloaded"
    problem = f"must be {argument.allowed}, got {value!r}"
    if isinstance(value, float) and value.is_integer() and argument.accepts(int(value)):
        return f"{problem}; write {int(value)}"
    choices = [choice for kind in argument.kinds if kind.startswith(_ONE_OF) for choice in _choices(kind)]
    meant = _SYNONYMS.get(str(value).lower().partition(":")[0])
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    hint = meant if meant in choices else next(iter(near), None)
    return problem if hint is None else f"{problem}; did you mean {hint!r}?"


def _fits(kind: str, value: Any) -> bool:
    if kind in _TYPES:
        return _TYPES[kind](value)
    if kind in _RANGES:
        return _RANGES[kind].accepts(value)
    if kind.startswith(_ONE_OF):
        return value in _choices(kind)
    if kind.startswith(_PART):  # as a section, or built already
        return not isinstance(value, (bool, int, float, str, list, type(None)))
    if kind == _ANY:
        return not (isinstance(value, float) and math.isnan(value))
    return not isinstance(value, (bool, int, float, str, list, dict, type(None)))


def _choice(values: Sequence[Any]) -> str:
    return _ONE_OF + ", ".join(map(repr, values))


@cache
def _choices(kind: str) -> tuple[Any, ...]:
    return tuple(ast.literal_eval(f"[{kind.removeprefix(_ONE_OF)}]"))


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments of a class or a function, with their ranges.

    Args:
        factory (Callable): The class or function.

    Returns:
        dict[str, Any]: Empty where they cannot be told.
    """
    annotated: Any = factory
    if inspect.isclass(factory) and not hasattr(factory, "__dataclass_fields__"):
        annotated = factory.__init__
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError):  # a type that is imported for type checkers only
        return {}


def source_of(default: Any) -> str:
    """A default as it is shown: as Python writes it, or an ellipsis for an object that YAML has not."""
    plain = default is None or isinstance(default, (bool, int, float, str, tuple, list, dict))
    return repr(default) if plain else "..."
