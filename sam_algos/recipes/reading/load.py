"""From a recipe's file or name, and ``key=value`` overrides, to a `Recipe`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_algos.core.options import PositiveInt, ranged
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.naming.arguments import check, describe
from sam_algos.recipes.reading.check import KEYS, check_layer, checked
from sam_algos.recipes.reading.find import find
from sam_algos.recipes.reading.layers import Layer, laid_together, rows_of
from sam_algos.recipes.reading.suggest import instead
from sam_algos.recipes.schema import FILE_KEYS, Recipe

_OMEGACONF_ERRORS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)

_Methods = Annotated[
    tuple[str, ...],
    ranged(
        "a list of methods, each once, e.g. [sgd, sam]", "array",
        items={"type": "string"}, minItems=1, uniqueItems=True,
    ),
]  # fmt: skip

_Tree = dict[str, Any]  # plain Python values, interpolations not yet resolved


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and lay its files and the overrides over each other: what is nearer to the user is on top.

    From the bottom to the top, each key by key over the layers below it:

    1. the file that ``base:`` names, itself with its own base below it;
    2. that file's row of the method, ``methods.NAME``;
    3. the file itself;
    4. its own row of the method;
    5. the overrides, in any order: ``optimizer.lr=0.1`` is laid over ``optimizer.name=adamw``, as it is more specific,
       and of two for the same key the later one wins.

    The method is the topmost ``method: NAME``; ``RECIPE/NAME`` and ``method=NAME`` are above the files. NAME is a row,
    or any sharpness-aware method, whose defaults are then at the bottom. The name of the recipe's own optimizer stands
    for training without a method, as does ``method: null``. A method replaces other methods in the ``algorithms`` of
    the layers below it; options of its own that stand there are kept.

    Args:
        name (str | Path): A file, or the name of a shipped recipe; see `find`.
        overrides (Sequence[str], optional): ``key=value`` with dotted keys. Default: ``()``.

    Returns:
        Recipe: Complete and resolved, every key of the right type and in its range. `check_names` checks the names.

    Raises:
        RecipeError: If anything is wrong with the file, its bases or the overrides.

    Example:
        >>> load_recipe("digits", ["method=sam", "algorithms.sam.rho=0.1"]).algorithms["sam"]
        {'rho': 0.1}
    """
    return checked(_resolved(laid_together(_layers(name, overrides))))


def methods_of(name: str | Path) -> list[str]:
    """The rows of a recipe's table of methods.

    Args:
        name (str | Path): As for `load_recipe`.

    Returns:
        list[str]: In the file's order.

    Raises:
        RecipeError: If anything is wrong with the file.
    """
    return rows_of(_found(name))


@dataclass(frozen=True)
class Comparison:
    """What `compare` in a recipe asks for.

    Args:
        methods (tuple[str, ...]): The rows to train, or methods with their defaults. Default: ``()``, unsaid.
        seeds (int): How many trainings of each, with consecutive seeds. Default: ``1``.
        first_seed (int): The first seed. Default: ``1000``, as settings were chosen with smaller ones.
    """

    methods: _Methods = ()
    seeds: PositiveInt = 1
    first_seed: int = 1000


def comparison_of(name: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """What the ``compare:`` of a recipe says, with its defaults.

    Args:
        name (str | Path): As for `load_recipe`.
        overrides (Sequence[str], optional): The same.

    Returns:
        Comparison: With the seed of the recipe or its overrides, where they have one.

    Raises:
        RecipeError: If anything is wrong with the file or an override.
    """
    layers = _layers(name, overrides)
    given = {key: value for layer in layers for key, value in layer.tree.get("compare", {}).items()}
    given["methods"] = tuple(given.get("methods", ()))
    if any("seed" in layer.tree for layer in layers):
        given["first_seed"] = checked(_resolved(laid_together(layers))).seed
    return Comparison(**given)


def meant_by(name: str | Path, overrides: Sequence[str], key: str, value: str) -> list[str]:
    """The overrides that somebody who wrote an unknown key of a recipe may have meant, the most likely first.

    Example:
        >>> meant_by("digits/sam", [], "rho", "0.1")
        ['algorithms.sam.rho=0.1']
    """
    try:
        return instead(laid_together(_layers(name, overrides)), key, value)
    except RecipeError:
        return []


def dump_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe: what `load_recipe` reads back as the same recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        str: YAML.
    """
    return OmegaConf.to_yaml(OmegaConf.create(vars(recipe)))


def _layers(name: str | Path, overrides: Sequence[str]) -> list[Layer]:
    """All layers, the most specific override on top."""
    found = _found(name)
    return [*found, *_overriding(overrides, found)]


def _found(name: str | Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of a file, its bases first, and of the method in ``RECIPE/METHOD``; files `above` led to it."""
    found = find(name)
    path, where = found.path, str(found.path)
    if path.resolve() in above:
        raise RecipeError(where, "base: leads back to this file")
    tree = _document(path)
    base = tree.get("base")
    if not isinstance(base, str | None):
        raise RecipeError(where, f"base: {base!r} is not a path")
    beside = path.parent / (base or "")
    below = [] if base is None else _found(beside if beside.is_file() else base, (*above, path.resolve()))
    _check_file(tree, where, below)
    asked = [] if found.method is None else [Layer(f"method={found.method}", {"method": found.method})]
    return [*below, Layer(where, tree), *asked]


def _overriding(overrides: Sequence[str], below: Sequence[Layer]) -> list[Layer]:
    """A layer for each override, the more specific ones on top."""
    layers, strange = [], []
    # A name is as specific as its section, since another name replaces the section.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].removesuffix(".name").count(".")):
        check_layer(tree := _parse(override), "")
        if tree.keys() <= {*KEYS, "method"}:
            layers.append(Layer(override, tree))
        else:
            strange.append(override)
    if strange:
        key, _, value = strange[0].partition("=")
        meant = instead(_together([*below, *layers]), key, value)
        raise unknown(strange[0], "key", key.partition(".")[0], (*KEYS, "method"), meant)
    return layers


def _together(layers: Sequence[Layer]) -> _Tree:
    """What the layers say, for a hint: nothing where something is wrong with them, too."""
    try:
        return laid_together(layers)
    except RecipeError:
        return {}


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
    except (OSError, *_OMEGACONF_ERRORS) as error:
        raise RecipeError(str(path), getattr(error, "strerror", None) or _summary(error)) from error
    if starts != 1:
        raise RecipeError(str(path), f"must hold one YAML document, the keys of a recipe; it has {starts or 'none'}")
    return _mapping(tree, str(path))


def _check_file(tree: _Tree, where: str, below: Sequence[Layer]) -> None:
    """Refuse unknown keys and values of another shape in a file and its rows."""
    _check_keys(tree, where, (*KEYS, *FILE_KEYS), lambda: {**_together(below), **tree})
    rows = tree.get("methods") or {}
    for name, row in rows.items() if isinstance(rows, dict) else [("", rows)]:
        place = f"{where}: methods.{name}".rstrip(".")
        row = _mapping({} if row is None else row, place)
        _check_keys(row, place, KEYS, lambda name=name: {**_together(below), **tree, "method": name})
    compare = _mapping(tree.get("compare", {}), f"{where}: compare")
    check(f"{where}: compare", describe(Comparison, ["first_seed"]), compare)


def _check_keys(tree: _Tree, where: str, valid: Collection[str], recipe: Callable[[], _Tree]) -> None:
    """Refuse keys that are not `valid`, with what was likely meant in the recipe, and values that map nothing."""
    for key, value in tree.items():
        if key not in valid:
            raise unknown(where, "key", key, valid, instead(recipe(), key, value))
    check_layer(tree, f"{where}: ")


def _parse(override: str) -> _Tree:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(override, "not an override: write key=value, e.g. max_duration=20ep")
    is_text = key in KEYS and KEYS[key].is_only("string", "null")
    if is_text and re.fullmatch(r"[-+.\w]+", text) and text.lower() not in ("null", "true", "false"):
        return {key: text}  # as it stands: a run may be called 007, or 12e4567
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(override, f"not a value: {_summary(error)}") from error
    return _mapping(tree, override)


def _mapping(tree: Any, where: str) -> _Tree:
    """`tree` if it is a mapping, and all keys in it are text."""
    if not isinstance(tree, dict):
        raise RecipeError(where, "not a mapping of keys to values")
    for key in _keys_of(tree):
        if not isinstance(key, str):
            raise RecipeError(where, f"the key {key!r} is not text: quote it")
    return cast(_Tree, tree)


def _keys_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys_of(item)


def _resolved(tree: _Tree) -> _Tree:
    """`tree` with the defaults, and with ``${...}`` filled in."""
    try:
        config = OmegaConf.create({**vars(Recipe()), **tree})
        OmegaConf.resolve(config)
        return cast(_Tree, OmegaConf.to_container(config))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(getattr(error, "full_key", None) or "recipe", _summary(error)) from error


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
