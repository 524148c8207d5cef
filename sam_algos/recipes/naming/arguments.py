"""What a name in a recipe takes: its arguments as JSON Schema, read from its signature, and the check against them."""

from __future__ import annotations

import difflib
import enum
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from sam_algos.core.options import Range, fits, ranged
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.schema import REQUIRED

Folder: TypeAlias = Annotated[str, ranged("a folder", "string", format="folder")]
"""A folder that exists; ``~`` is the home folder."""

File: TypeAlias = Annotated[str, ranged("a file", "string", format="file")]
"""A file that exists; ``~`` is the home folder."""

_FORMATS: dict[str, Callable[[Path], bool]] = {"folder": Path.is_dir, "file": Path.is_file}

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}

_WORDS = {
    "boolean": "true or false", "integer": "an integer", "number": "a number", "string": "text", "null": "null",
    "array": "a list", "object": "a mapping",
}  # fmt: skip

_PLAIN = (bool, int, float, str, list, dict, type(None))
"""What YAML can write."""

_SYNONYMS = {"cuda": "gpu", "bf16": "amp_bf16", "bfloat16": "amp_bf16", "fp16": "amp_fp16", "float16": "amp_fp16"}
"""What PyTorch and other programs call some choices."""


@dataclass(frozen=True)
class Argument:
    """One argument.

    Args:
        options (Sequence[Mapping]): JSON Schemas, one of which it has to fit. ``{"$ref": "#/$defs/schedule"}`` is a
            part, ``{"not": {}}`` a Python object, and the format of a path is ``folder`` or ``file``.
        default (str | None): The source of its default, None where it is required.
    """

    options: Sequence[Mapping[str, Any]]
    default: str | None

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        writable = [option for option in self.options if "not" not in option]
        return ", or ".join(dict.fromkeys(map(_words, writable or self.options)))

    @property
    def part(self) -> str | None:
        """The axis of the part that it may be, None where it may be none."""
        return next((option["$ref"].rpartition("/")[2] for option in self.options if "$ref" in option), None)

    def accepts(self, value: Any) -> bool:
        """Whether it may be this value, as far as can be said without an import."""
        return any(_fits(option, value) for option in self.options)

    def is_only(self, *kinds: str) -> bool:
        """Whether all that it may be is of these types of JSON."""
        return all(option.get("type") in kinds for option in self.options)


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


def describe(factory: Callable[..., Any], hidden: Iterable[str] = ()) -> Form:
    """The form of a class or a function, from its signature, annotations and docstring, without `hidden` arguments.

    An object may name, as ``functions``, the functions that share its arguments, and as ``supplied`` the arguments that
    it passes to them itself.

    Example:
        >>> from sam_algos import LookSAM
        >>> describe(LookSAM).arguments["k"].allowed
        'an integer >= 1'
    """
    functions, hidden = getattr(factory, "functions", (factory,)), {*hidden, *getattr(factory, "supplied", ())}
    arguments, swallows = {}, not inspect.isclass(factory)  # Composer's base classes swallow **kwargs
    for function in functions:
        hints, parameters = hints_of(function), inspect.signature(function).parameters
        swallows = swallows and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        for name, each in parameters.items():
            if name not in hidden and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                default = None if each.default is each.empty else source_of(each.default)
                arguments[name] = Argument(_options(hints.get(name, Any)), default)
    return Form(arguments, swallows, inspect.getdoc(functions[0]) or "", getattr(factory, "samples", None))


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments of a class or a function, with their ranges; empty where they cannot be told."""
    of_init = inspect.isclass(factory) and not hasattr(factory, "__dataclass_fields__")
    try:
        return typing.get_type_hints(factory.__init__ if of_init else factory, include_extras=True)
    except (NameError, TypeError):  # a type that is imported for type checkers only
        return {}


def source_of(default: Any) -> str:
    """A default as it is shown: as Python writes it, or an ellipsis for an object that YAML has not."""
    return repr(default) if isinstance(default, (*_PLAIN, tuple)) else "..."


def check(where: str, form: Form, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit a form, under the key `where` of a recipe, or in the recipe itself.

    Raises:
        RecipeError: For an argument that is unknown or missing, or whose value is of another type or out of range.
    """
    for name in arguments:
        if name not in form.arguments and not form.takes_others:
            raise unknown(where, "argument", name, form.arguments)
    for name, argument in form.arguments.items():
        key, value = f"{where}.{name}".removeprefix("."), arguments.get(name)
        if value == REQUIRED or (name not in arguments and argument.default is None):
            raise RecipeError(key, "required")
        if name in arguments and not argument.accepts(value):
            raise RecipeError(key, mismatch(argument, value))
        if argument.part and isinstance(value, Mapping) and not isinstance(value.get("name"), str):
            raise RecipeError(f"{key}.name", f"required: a part and its arguments, e.g. {key}={{name: ...}}")


def mismatch(argument: Argument, value: Any) -> str:
    """Say what is wrong with a value and, where it is clear, what to write instead.

    Example:
        >>> mismatch(Argument([{"type": "integer"}], "0"), 1e3)
        'must be an integer, got 1000.0; write 1000'
    """
    missing = [option["format"] for option in argument.options if "format" in option and isinstance(value, str)]
    if missing:
        return f"no {missing[0]} {value!r}; put it there, nothing is downloaded"
    problem = f"must be {argument.allowed}, got {value!r}"
    if isinstance(value, float) and value.is_integer() and argument.accepts(int(value)):
        return f"{problem}; write {int(value)}"
    choices = [choice for option in argument.options for choice in option.get("enum", ())]
    meant = _SYNONYMS.get(str(value).lower().partition(":")[0])
    near = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0.5)
    hint = meant if meant in choices else next(iter(near), None)
    return problem if hint is None else f"{problem}; did you mean {hint!r}?"


def _options(hint: Any) -> list[Mapping[str, Any]]:
    """A schema for each member of a type."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = next((extra for extra in members[1:] if isinstance(extra, Range)), None)
        return _options(members[0]) if found is None else [found.schema or {"not": {}, "description": found.allowed}]
    if origin in (typing.Union, types.UnionType):
        options = [option for member in members for option in _options(member)]
        return [option for number, option in enumerate(options) if option not in options[:number]]
    return [{"enum": list(members)} if origin is Literal else _schema(origin or hint)]


def _schema(cls: Any) -> Mapping[str, Any]:
    """The schema of a class: ``{}``, which any value fits, where it says nothing."""
    if not inspect.isclass(cls) or cls in (object, Any):
        return {}
    if issubclass(cls, enum.Enum):
        return {"enum": [member.value for member in cls]}
    if cls in _TYPES:
        return {"type": _TYPES[cls]}
    if issubclass(cls, Mapping):
        return {"type": "object"}
    if issubclass(cls, (list, tuple)) or issubclass(list, cls):
        return {"type": "array"}
    # By name: whoever describes the keys of a recipe has not imported PyTorch.
    is_part = any(f"{base.__module__}.{base.__name__}" == "sam_algos.core.parts.Part" for base in cls.__mro__)
    return {"$ref": f"#/$defs/{cls.__name__.lower()}"} if is_part else {"not": {}}


def _words(option: Mapping[str, Any]) -> str:
    if "description" in option:
        return option["description"]
    if "enum" in option:
        return f"one of {', '.join(map(repr, option['enum']))}"
    if "$ref" in option:
        return f"a {option['$ref'].rpartition('/')[2]} {{name: ...}}"
    if "not" in option:
        return "a Python object, which cannot be written here"
    return _WORDS[option["type"]] if option else "anything"


def _fits(option: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits one schema, its format and references included."""
    if "$ref" in option:
        return isinstance(value, dict) or not isinstance(value, _PLAIN)
    if "not" in option:
        return not isinstance(value, _PLAIN)
    if not option:
        return not (isinstance(value, float) and math.isnan(value))
    if not fits(option, value) or "format" not in option:
        return fits(option, value)
    try:
        return _FORMATS[option["format"]](Path(value).expanduser())
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, the home of an unknown user
        return False
