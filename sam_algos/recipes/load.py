"""From a recipe's file or name, and ``key=value`` overrides, to a `Recipe`."""

from __future__ import annotations

import io
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_algos.recipes.choice import with_method
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.find import find
from sam_algos.recipes.forms import Argument, kinds, mismatch
from sam_algos.recipes.merge import lay
from sam_algos.recipes.schema import COLLECTIONS, FILE_KEYS, REQUIRED, SECTIONS, Recipe

_OMEGACONF_ERRORS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)

_HINTS = typing.get_type_hints(Recipe, include_extras=True)

_KEYS = [key.name for key in fields(Recipe)]

_UNSEEN_SEED = 1000
"""The first seed of a comparison; settings are chosen with seeds from 0."""

_Tree = dict[str, Any]  # plain Python values, interpolations not yet resolved


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, lay it over its ``base:``, lay its method's row and then overrides over it, and check the result.

    A file may name another with ``base:`` (a path relative to itself, or a shipped recipe); its own keys are laid over
    that one's (see `lay`). ``method: NAME`` then lays the row ``methods.NAME`` over the whole, and adds
    ``algorithms.NAME`` where ``NAME`` is a sharpness-aware method that the row does not mention. The name of the
    recipe's own optimizer stands for training without a method, where it has no row. A method in the file's
    ``algorithms`` gives way to one that is asked for by the recipe's name or an override.

    Args:
        name (str | Path): A file, or the name of a shipped recipe; see `find`.
        overrides (Sequence[str], optional): ``key=value`` with dotted keys. Default: ``()``.

    Returns:
        Recipe: Complete and resolved, every key of the right type and in its range. What its names stand for is for
        `check_names`.

    Raises:
        RecipeError: For everything that is wrong with the file, its bases or the overrides.
    """
    found = find(name)
    tree, layers = _read(found.path, ()), [_parse(override) for override in overrides]
    asked = [] if found.method is None else [found.method]
    asked += [layer.pop("method") for layer in layers if "method" in layer]
    chosen = asked[-1] if asked else tree.get("method")
    tree = with_method(tree, chosen, layers, instead=bool(asked))
    for override, layer in zip(overrides, layers, strict=True):
        tree = lay(tree, layer, override)
    return _checked(_resolved(tree))


def methods_of(name: str | Path) -> list[str]:
    """The rows of a recipe's table of methods.

    Args:
        name (str | Path): As for `load_recipe`.

    Returns:
        list[str]: In the file's order.

    Raises:
        RecipeError: For whatever is wrong with the file.
    """
    return list(_read(find(name).path, ()).get("methods") or ())


@dataclass(frozen=True)
class Comparison:
    """What a recipe says of comparing its methods.

    Args:
        methods (tuple[str, ...]): The rows to train, or methods with their defaults; empty where it does not say.
        seeds (int): Trainings of each.
        first_seed (int): Their first seed; each training's is one more.
    """

    methods: tuple[str, ...]
    seeds: int
    first_seed: int


def comparison_of(name: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """What the ``compare:`` of a recipe says, with its defaults.

    Args:
        name (str | Path): As for `load_recipe`.
        overrides (Sequence[str], optional): The same.

    Returns:
        Comparison: With the seed of the recipe or its overrides, or else one that no choice was made on.

    Raises:
        RecipeError: For whatever is wrong with the file or an override.
    """
    tree = _read(find(name).path, ())
    given = tree.get("compare") or {}
    for override in overrides:
        tree = lay(tree, _parse(override), override)
    return Comparison(tuple(given.get("methods", ())), given.get("seeds", 1), tree.get("seed", _UNSEEN_SEED))


def dump_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe: what `load_recipe` reads back as the same recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        str: YAML.
    """
    values = {key.name: getattr(recipe, key.name) for key in fields(Recipe)}
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _read(path: Path, above: tuple[Path, ...]) -> _Tree:
    """The file at `path` laid over its bases; `above` are the files that led here."""
    if path.resolve() in above:
        raise RecipeError(str(path), "base: leads back to this file")
    tree = _document(path)
    base = tree.pop("base", None)
    if base is None:
        return lay({}, tree, str(path))
    if not isinstance(base, str):
        raise RecipeError(str(path), f"base: {base!r} is not a path")
    beside = path.parent / base
    found = find(beside if beside.is_file() else base)
    below = _read(found.path, (*above, path.resolve()))
    if found.method is not None:
        below["method"] = found.method
    return lay(below, tree, str(path))


def _document(path: Path) -> _Tree:
    try:
        text = path.read_text(encoding="utf-8")
        starts = sum(isinstance(event, yaml.DocumentStartEvent) for event in yaml.parse(text))
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text))) if starts == 1 else {}
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(str(path), f"not YAML: {line}{error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), "not a text file") from error
    except OSError as error:
        raise RecipeError(str(path), error.strerror or error) from error
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(str(path), _summary(error)) from error
    if starts != 1:
        raise RecipeError(str(path), f"must hold one YAML document, the keys of a recipe; it has {starts or 'none'}")
    tree = _known(tree, str(path), (*_KEYS, *FILE_KEYS))
    rows = tree.get("methods") or {}
    for name, row in rows.items() if isinstance(rows, dict) else [("", rows)]:
        where = f"{path}: methods.{name}".rstrip(".")
        _known({} if row is None else row, where, _KEYS)
    _check_comparison(f"{path}: compare", tree.get("compare") or {})
    return tree


def _check_comparison(where: str, given: Any) -> None:
    given = _known(given, where, ("methods", "seeds"))
    methods, seeds = given.get("methods", ["one"]), given.get("seeds", 1)
    if not (isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)):
        raise RecipeError(f"{where}.methods", f"must be a list of methods, got {methods!r}; write methods: [sgd, sam]")
    if type(seeds) is not int or seeds < 1:
        raise RecipeError(f"{where}.seeds", f"must be an integer >= 1, got {seeds!r}")


def _parse(override: str) -> _Tree:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(override, "not an override: write key=value, e.g. max_duration=20ep")
    if _is_text(key) and re.fullmatch(r"[-+.\w]+", text) and text.lower() not in ("null", "true", "false"):
        return {key: text}  # as it stands: a run may be called 007, or 12e4567
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(override, f"not a value: {_summary(error)}") from error
    return _known(tree, override, (*_KEYS, "method"))


def _is_text(key: str) -> bool:
    return key in _HINTS and set(kinds(_HINTS[key])) <= {"text", "null"}


def _known(tree: Any, where: str, valid: Sequence[str]) -> _Tree:
    """`tree` if it is a mapping of `valid` keys, and all keys in it are text."""
    if not isinstance(tree, dict):
        raise RecipeError(where, "not a mapping of keys to values")
    for key in _keys_of(tree):
        if not isinstance(key, str):
            raise RecipeError(where, f"the key {key!r} is not text: quote it")
    for key in tree:
        if key not in valid:
            raise unknown(where, "key", key, valid)
    return cast(_Tree, tree)


def _keys_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys_of(item)


def _resolved(tree: _Tree) -> _Tree:
    """`tree` with the defaults, and with ``${...}`` filled in."""
    defaults = vars(Recipe())
    try:
        config = OmegaConf.create({**defaults, **tree})
        OmegaConf.resolve(config)
        return cast(_Tree, OmegaConf.to_container(config))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(getattr(error, "full_key", None) or "recipe", _summary(error)) from error


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _checked(tree: _Tree) -> Recipe:
    """The recipe, if its values have the types, shapes and ranges that building it relies on."""
    for key in _KEYS:
        if tree[key] == REQUIRED:
            raise RecipeError(key, "required")
        if key in COLLECTIONS and not isinstance(tree[key], dict):
            singular = key.removesuffix("s")
            name = tree[key] if isinstance(tree[key], str) and tree[key].isidentifier() else "NAME"
            problem = f"must map each {singular}'s name to its arguments, got {tree[key]!r}; write {key}.{name}={{}}"
            raise RecipeError(key, problem)
        argument = Argument(kinds(_HINTS[key]), None)
        tree[key] = _converted(argument, tree[key])
        if not argument.accepts(tree[key]):
            raise RecipeError(key, mismatch(argument, tree[key]))
    for section in SECTIONS:
        arguments = tree[section]
        if arguments is not None and not isinstance(arguments.get("name"), str):
            raise RecipeError(f"{section}.name", "required")
    for collection in COLLECTIONS:
        for name, arguments in tree[collection].items():
            if not isinstance(arguments, dict):
                problem = f"{arguments!r} is not a mapping of arguments; write {collection}.{name}={{}}"
                raise RecipeError(f"{collection}.{name}", problem)
    return Recipe(**tree)


def _converted(argument: Argument, value: Any) -> Any:
    """`value` as the type that the key has, where they say the same: the environment's numbers are text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if set(argument.kinds) <= {"text", "null"} else value
    if isinstance(value, str) and "text" not in argument.kinds:
        plain = yaml.safe_load(value) if re.fullmatch(r"[-+.\w]+", value) else value
        return plain if isinstance(plain, (bool, int, float)) else value
    return value
