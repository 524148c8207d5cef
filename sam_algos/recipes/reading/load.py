"""From a recipe's file or name, and ``key=value`` overrides, to a `Recipe`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_algos.recipes.choice import Layer, laid_together, rows_of
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.find import Found, find
from sam_algos.recipes.schema import FILE_KEYS, Recipe
from sam_algos.recipes.shape import KEYS, check_layer, checked, is_text
from sam_algos.recipes.suggest import instead

_OMEGACONF_ERRORS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)

_UNSEEN_SEED = 1000
"""The first seed of a comparison; settings are chosen with seeds from 0."""

_Tree = dict[str, Any]  # plain Python values, interpolations not yet resolved


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay together all that was written about it: what is nearer to the user is on top.

    From the bottom to the top, each key by key over what is below it (see `lay`):

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
        Recipe: Complete and resolved, every key of the right type and in its range. What its names stand for is for
        `check_names`.

    Raises:
        RecipeError: For everything that is wrong with the file, its bases or the overrides.

    Example:
        >>> load_recipe("digits", ["method=sam", "algorithms.sam.rho=0.1"]).algorithms["sam"]
        {'rho': 0.1}
    """
    found = find(name)
    layers = [*_read(found.path, ()), *_asked(found)]
    layers += _overriding(overrides, layers)
    return checked(_resolved(laid_together(layers)))


def methods_of(name: str | Path) -> list[str]:
    """The rows of a recipe's table of methods.

    Args:
        name (str | Path): As for `load_recipe`.

    Returns:
        list[str]: In the file's order.

    Raises:
        RecipeError: For whatever is wrong with the file.
    """
    return rows_of(_read(find(name).path, ()))


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
    found = find(name)
    layers = [*_read(found.path, ()), *_asked(found)]
    layers += _overriding(overrides, layers)
    given = {key: value for layer in layers for key, value in layer.compare.items()}
    seeds = [layer.keys["seed"] for layer in layers if "seed" in layer.keys]
    first_seed = checked(_resolved(laid_together(layers))).seed if seeds else _UNSEEN_SEED
    return Comparison(tuple(given.get("methods", ())), given.get("seeds", 1), first_seed)


def meant_by(name: str | Path, overrides: Sequence[str], key: str, value: str) -> list[str]:
    """The overrides that somebody who wrote an unknown key of a recipe may have meant.

    Args:
        name (str | Path): As for `load_recipe`.
        overrides (Sequence[str]): What else was written.
        key (str): The key, e.g. ``epochs``.
        value (str): Its value.

    Returns:
        list[str]: The most likely first; empty where nothing is, and where something is wrong with the recipe, too.

    Example:
        >>> meant_by("digits/sam", [], "rho", "0.1")
        ['algorithms.sam.rho=0.1']
    """
    try:
        found = find(name)
        below = [*_read(found.path, ()), *_asked(found)]
        return instead(_together([*below, *_overriding(overrides, below)]), key, value)
    except RecipeError:
        return []


def dump_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe: what `load_recipe` reads back as the same recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        str: YAML.
    """
    values = {key.name: getattr(recipe, key.name) for key in fields(Recipe)}
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _read(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    """The layers of the file at `path`, its bases first; `above` are the files that led here."""
    if path.resolve() in above:
        raise RecipeError(str(path), "base: leads back to this file")
    tree = _document(path)
    below = _below(path, tree.get("base"), above)
    _check(tree, str(path), below)
    keys = {key: value for key, value in tree.items() if key not in FILE_KEYS}
    fields_of = {"methods": "rows", "method": "method", "compare": "compare"}
    given = {fields_of[key]: value for key, value in tree.items() if key in fields_of}
    return [*below, Layer(str(path), keys, **given)]


def _below(path: Path, base: Any, above: tuple[Path, ...]) -> list[Layer]:
    """The layers of the base of the file at `path`."""
    if base is None:
        return []
    if not isinstance(base, str):
        raise RecipeError(str(path), f"base: {base!r} is not a path")
    beside = path.parent / base
    found = find(beside if beside.is_file() else base)
    return [*_read(found.path, (*above, path.resolve())), *_asked(found)]


def _asked(found: Found) -> list[Layer]:
    """The method in ``RECIPE/METHOD``."""
    return [] if found.method is None else [Layer(f"method={found.method}", {}, method=found.method)]


def _overriding(overrides: Sequence[str], below: Sequence[Layer]) -> list[Layer]:
    """A layer for each override, the more specific ones on top."""
    layers, strange = [], None
    for override in sorted(overrides, key=_depth):
        ((key, value),) = (tree := _parse(override)).items()
        check_layer(tree, "")
        if key == "method":
            layers.append(Layer(override, {}, method=value))
        elif key in KEYS:
            layers.append(Layer(override, tree))
        else:
            strange = strange or override
    if strange is not None:
        key, _, value = strange.partition("=")
        meant = instead(_together([*below, *layers]), key, value)
        raise unknown(strange, "key", key.partition(".")[0], (*KEYS, "method"), meant)
    return layers


def _together(layers: Sequence[Layer]) -> _Tree:
    """What the layers say, for a hint: nothing where something is wrong with them, too."""
    try:
        return laid_together(layers)
    except RecipeError:
        return {}


def _depth(override: str) -> int:
    """How specific an override is: a name is as its section, since another name replaces the section."""
    return override.partition("=")[0].removesuffix(".name").count(".")


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
    return _mapping(tree, str(path))


def _check(tree: _Tree, where: str, below: Sequence[Layer]) -> None:
    """Refuse unknown keys and values of another shape in a file."""
    _refuse_unknown(tree, where, (*KEYS, *FILE_KEYS), lambda: {**_together(below), **tree})
    check_layer(tree, f"{where}: ")
    rows = tree.get("methods") or {}
    for name, row in rows.items() if isinstance(rows, dict) else [("", rows)]:
        place = f"{where}: methods.{name}".rstrip(".")
        row = _mapping({} if row is None else row, place)
        _refuse_unknown(row, place, KEYS, lambda name=name: {**_together(below), **tree, "method": name})
        check_layer(row, f"{place}: ")
    _check_comparison(f"{where}: compare", tree.get("compare", {}))


def _check_comparison(where: str, given: Any) -> None:
    given = _mapping(given, where)
    for key in given:
        if key not in ("methods", "seeds"):
            raise unknown(where, "key", key, ("methods", "seeds"))
    methods, seeds = given.get("methods", ["one"]), given.get("seeds", 1)
    if not (isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)):
        raise RecipeError(f"{where}.methods", f"must be a list of methods, got {methods!r}; write methods: [sgd, sam]")
    if len(set(methods)) < len(methods):
        raise RecipeError(f"{where}.methods", f"must name each method once, got {methods!r}")
    if type(seeds) is not int or seeds < 1:
        raise RecipeError(f"{where}.seeds", f"must be an integer >= 1, got {seeds!r}")


def _parse(override: str) -> _Tree:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(override, "not an override: write key=value, e.g. max_duration=20ep")
    if is_text(key) and re.fullmatch(r"[-+.\w]+", text) and text.lower() not in ("null", "true", "false"):
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


def _refuse_unknown(tree: _Tree, where: str, valid: Collection[str], recipe: Callable[[], _Tree]) -> None:
    """Refuse keys that are not `valid`, with what was likely meant in the recipe."""
    for key, value in tree.items():
        if key not in valid:
            raise unknown(where, "key", key, valid, instead(recipe(), key, value))


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
