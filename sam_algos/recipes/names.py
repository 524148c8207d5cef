"""From a name and its arguments in a recipe to the object they stand for."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sam_algos.recipes.errors import RecipeError, unknown

T = TypeVar("T")


def lookup(where: str, kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of `table` called `name`, in any spelling of its case and underscores.

    Args:
        where (str): The key of the recipe that holds `name`.
        kind (str): What `table` holds; with or without it at its end, a name is the same
            (``cosine_annealing`` is ``CosineAnnealingScheduler``).
        name (str): The name that the recipe gives.
        table (Mapping[str, T]): What there is.

    Returns:
        T: The entry.

    Raises:
        RecipeError: If there is none, with the nearest name.

    Example:
        >>> lookup("scheduler.name", "scheduler", "cosine_annealing", {"CosineAnnealingScheduler": 1})
        1
    """

    def spelling(text: str) -> str:
        return text.replace("_", "").lower().removesuffix(kind)

    if name in table:
        return table[name]
    found = [value for key, value in table.items() if spelling(key) == spelling(name)]
    if not found:
        raise unknown(where, kind, name, table)
    return found[0]


def construct(where: str, factory: Callable[..., T], arguments: Mapping[str, Any], **supplied: Any) -> T:
    """Call `factory` with the arguments that a recipe gives, and blame the recipe for what goes wrong.

    Args:
        where (str): The key of the recipe that holds `arguments`.
        factory (Callable): A class or a function.
        arguments (Mapping[str, Any]): What the recipe says; a ``name`` among them is left out.
        **supplied (Any): Arguments that are not the recipe's to choose.

    Returns:
        T: What `factory` returns.

    Raises:
        RecipeError: For an argument that `factory` does not have, that is missing, or that has the wrong
            type, and for whatever `factory` itself raises.

    Example:
        >>> construct("algorithms.x", complex, {"real": 1.0}, imag=2.0)
        (1+2j)
    """
    chosen = {key: value for key, value in arguments.items() if key != "name"}
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if name not in supplied and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    for name in chosen:
        if name in supplied or not (name in parameters or _takes_anything(factory)):
            raise unknown(where, "argument", name, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in chosen:
            raise RecipeError(f"{where}.{name}", "required")
    hints = _hints(factory)
    chosen = {name: _typed(f"{where}.{name}", hints.get(name, Any), value) for name, value in chosen.items()}
    try:
        return factory(**supplied, **chosen)
    except RecipeError:
        raise
    except Exception as error:  # whatever it is, these arguments provoked it
        raise _blame(where, chosen, error) from error


def _takes_anything(factory: Callable[..., Any]) -> bool:
    """Functions pass ``**kwargs`` on and check them there; Composer's base classes swallow them."""
    kinds = [parameter.kind for parameter in inspect.signature(factory).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds and not inspect.isclass(factory)


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):  # a type imported for type checkers only
        return {}


def _typed(where: str, hint: Any, value: Any) -> Any:
    """`value`, as a member where `hint` is an enumeration, if YAML could mean `hint` by it."""
    # On Python 3.10 list[int] passes for a class.
    if typing.get_origin(hint) is None and inspect.isclass(hint) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            values = [str(member.value) for member in hint]
            raise unknown(where, "value", value, values) from None
    if not _fits(hint, value):
        raise RecipeError(where, f"{value!r} is not of type {getattr(hint, '__name__', hint)}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in typing.get_args(hint))
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if origin in (tuple, list, Sequence):
        return isinstance(value, list)
    if origin in (bool, str, dict, type(None)):
        return isinstance(value, origin)
    return not inspect.isclass(origin) or origin is object or isinstance(value, origin)


def _blame(where: str, arguments: Mapping[str, Any], error: Exception) -> RecipeError:
    """An error at `where`, or at the argument that the message names."""
    message = str(error) or type(error).__name__
    for name in arguments:
        if re.search(rf"\b{re.escape(name)}\b", message):
            return RecipeError(f"{where}.{name}", message.removeprefix(f"{name}: "))
    return RecipeError(where, message)
