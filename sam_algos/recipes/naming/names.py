"""From a name and its arguments in a recipe to the object they stand for."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sam_algos.recipes.errors import BadArgument, RecipeError, unknown
from sam_algos.recipes.naming.arguments import check, describe, hints_of

T = TypeVar("T")


def spelling(name: str, kind: str = "") -> str:
    """What all spellings of a name have in common, with or without what it is a name of at its end.

    Example:
        >>> spelling("CosineAnnealingScheduler", "scheduler") == spelling("cosine_annealing")
        True
    """
    return name.replace("_", "").lower().removesuffix(kind)


def lookup(where: str, kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table of `kind` called `name`, in any spelling; the key `where` of the recipe holds the name.

    Raises:
        RecipeError: If there is none, with the nearest name.

    Example:
        >>> lookup("scheduler.name", "scheduler", "cosine_annealing", {"CosineAnnealingScheduler": 1})
        1
    """
    found = [value for key, value in table.items() if spelling(key, kind) == spelling(name, kind)]
    if name not in table and not found:
        raise unknown(where, kind, name, table)
    return table[name] if name in table else found[0]


def arguments_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a named section: all but its ``name``."""
    return {key: value for key, value in section.items() if key != "name"}


def construct(where: str, factory: Callable[..., T], arguments: Mapping[str, Any], **supplied: Any) -> T:
    """Call `factory` with arguments of a recipe, and blame the recipe for what goes wrong.

    Args:
        where (str): The key of the recipe that holds the arguments.
        factory (Callable): A class or a function.
        arguments (Mapping[str, Any]): In the place of a part (a policy, a schedule for ``rho``, ...), its name and its
            own arguments.
        **supplied (Any): Arguments that are not the recipe's to choose.

    Returns:
        T: What `factory` returns.

    Raises:
        RecipeError: If an argument does not fit, and for whatever `factory` raises.

    Example:
        >>> construct("algorithms.x", complex, {"real": 1.0}, imag=2.0)
        (1+2j)
    """
    form = describe(factory, supplied)
    check(where, form, arguments)
    hints, given = hints_of(factory), dict(arguments)
    for name, value in arguments.items():
        axis = name in form.arguments and form.arguments[name].part
        given[name] = _part(f"{where}.{name}", axis, value) if axis else _member(hints.get(name), value)
    try:
        return factory(**supplied, **given)
    except RecipeError:
        raise
    except BadArgument as error:
        raise RecipeError(f"{where}.{error.argument}", error) from error
    except Exception as error:  # whatever it is, these arguments provoked it
        raise RecipeError(where, error) from error


def _part(where: str, axis: str, section: Any) -> Any:
    """The part that a section names; anything else as it is."""
    from sam_algos import PARTS  # imports PyTorch

    if not isinstance(section, Mapping):
        return section
    return construct(where, lookup(f"{where}.name", axis, section["name"], PARTS[axis]), arguments_of(section))


def _member(hint: Any, value: Any) -> Any:
    """The member of an enumeration, which YAML writes as its value; anything else as it is."""
    for cls in typing.get_args(hint) or (hint,):
        if isinstance(cls, enum.EnumMeta) and value in [member.value for member in list[Any](cls)]:
            return cls(value)
    return value
