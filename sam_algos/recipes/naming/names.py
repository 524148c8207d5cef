"""From a name and its arguments in a recipe to the object they stand for."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sam_algos.recipes.errors import BadArgument, RecipeError, unknown
from sam_algos.recipes.forms import check, describe, hints_of

T = TypeVar("T")


def spelling(name: str, kind: str = "") -> str:
    """What all spellings of a name have in common.

    Args:
        name (str): A name.
        kind (str, optional): What it is a name of; with or without that at its end, it is the same. Default: ``""``.

    Returns:
        str: In lower case, without underscores.

    Example:
        >>> spelling("CosineAnnealingScheduler", "scheduler") == spelling("cosine_annealing")
        True
    """
    return name.replace("_", "").lower().removesuffix(kind)


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
    if name in table:
        return table[name]
    found = [value for key, value in table.items() if spelling(key, kind) == spelling(name, kind)]
    if not found:
        raise unknown(where, kind, name, table)
    return found[0]


def arguments_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a named section: all but its ``name``.

    Args:
        section (Mapping[str, Any]): The name and the arguments.

    Returns:
        dict[str, Any]: The arguments.
    """
    return {key: value for key, value in section.items() if key != "name"}


def construct(where: str, factory: Callable[..., T], arguments: Mapping[str, Any], **supplied: Any) -> T:
    """Call `factory` with the arguments that a recipe gives, and blame the recipe for what goes wrong.

    Args:
        where (str): The key of the recipe that holds `arguments`.
        factory (Callable): A class or a function.
        arguments (Mapping[str, Any]): What the recipe says.
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
    check(where, describe(factory, supplied), arguments)
    members = _enumerations(factory)
    chosen = {name: _member(members[name], value) if name in members else value for name, value in arguments.items()}
    try:
        return factory(**supplied, **chosen)
    except RecipeError:
        raise
    except BadArgument as error:
        raise RecipeError(f"{where}.{error.argument}", error) from error
    except Exception as error:  # whatever it is, these arguments provoked it
        raise RecipeError(where, error) from error


def _enumerations(factory: Callable[..., Any]) -> dict[str, list[Any]]:
    """The arguments that are members of an enumeration, which YAML writes as their values."""
    options = {name: typing.get_args(hint) or (hint,) for name, hint in hints_of(factory).items()}
    found = {name: [option for option in some if isinstance(option, enum.EnumMeta)] for name, some in options.items()}
    return {name: classes for name, classes in found.items() if classes}


def _member(classes: list[Any], value: Any) -> Any:
    for cls in classes:
        if value in [member.value for member in cls]:
            return cls(value)
    return value
