"""Whether the values of a recipe have the types, shapes and ranges that its keys have."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import yaml

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.forms import Argument, kinds, mismatch
from sam_algos.recipes.schema import COLLECTIONS, REQUIRED, SECTIONS, Recipe

_HINTS = typing.get_type_hints(Recipe, include_extras=True)

KEYS = {key.name: Argument(kinds(_HINTS[key.name]), None) for key in fields(Recipe)}
"""The keys of a recipe, with what each may be."""

_MAPPINGS = [key for key, argument in KEYS.items() if "a mapping" in argument.kinds]

_Tree = dict[str, Any]


def is_text(key: str) -> bool:
    """Whether a key holds text and nothing else.

    Args:
        key (str): Any text.

    Returns:
        bool: False for what is no key.
    """
    return key in KEYS and set(KEYS[key].kinds) <= {"text", "null"}


def is_interpolation(value: Any) -> bool:
    """Whether a value is text with ``${...}`` in it, which is filled in when all layers are laid together."""
    return isinstance(value, str) and "${" in value


def check_layer(tree: _Tree, where: str) -> None:
    """See that what maps names to arguments does so in one layer: another layer over it would hide that it does not.

    Args:
        tree (dict): Some keys of a recipe; null, ``???`` and interpolations may stand for any value.
        where (str): What is put before the key at fault, in an error.

    Raises:
        RecipeError: If it does not.
    """
    for key, value in _mappings(tree):
        if value is not None and value != REQUIRED and not is_interpolation(value) and not isinstance(value, dict):
            raise RecipeError(f"{where}{key}", _no_mapping(key, value))


def checked(tree: _Tree) -> Recipe:
    """The recipe, if its values have the types, shapes and ranges that building it relies on.

    Args:
        tree (dict): All keys of a recipe, nothing left to be filled in.

    Returns:
        Recipe: With the environment's numbers as numbers.

    Raises:
        RecipeError: For the first key that has not.
    """
    for key, argument in KEYS.items():
        if tree[key] == REQUIRED:
            raise RecipeError(key, "required")
        tree[key] = _converted(argument, tree[key])
        if key not in COLLECTIONS and not argument.accepts(tree[key]):
            raise RecipeError(key, mismatch(argument, tree[key]))
    for key, value in _mappings({collection: tree[collection] for collection in COLLECTIONS}):
        if not isinstance(value, dict):
            raise RecipeError(key, _no_mapping(key, value))
    for section in SECTIONS:
        arguments = tree[section]
        if arguments is not None and not isinstance(arguments.get("name"), str):
            raise RecipeError(f"{section}.name", "required")
    return Recipe(**tree)


def _mappings(tree: _Tree) -> Iterator[tuple[str, Any]]:
    """The values that should be mappings: of sections and the like, and in collections each entry."""
    for key in _MAPPINGS:
        if key in tree:
            yield key, tree[key]
            if key in COLLECTIONS and isinstance(tree[key], dict):
                yield from ((f"{key}.{name}", arguments) for name, arguments in tree[key].items())


def _no_mapping(key: str, value: Any) -> str:
    if "." in key:
        return f"{value!r} is not a mapping of arguments; write {key}={{}}"
    if key not in COLLECTIONS:
        return mismatch(KEYS[key], value)
    name = value if isinstance(value, str) and value.isidentifier() else "NAME"
    return f"must map each {key.removesuffix('s')}'s name to its arguments, got {value!r}; write {key}.{name}={{}}"


def _converted(argument: Argument, value: Any) -> Any:
    """`value` as the type that the key has, where they say the same: the environment's numbers are text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if set(argument.kinds) <= {"text", "null"} else value
    if isinstance(value, str) and "text" not in argument.kinds:
        plain = yaml.safe_load(value) if re.fullmatch(r"[-+.\w]+", value) else value
        return plain if isinstance(plain, (bool, int, float)) else value
    return value
