"""What a recipe can name besides models and data: each name's class, from the libraries' own lists."""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from types import ModuleType
from typing import Any

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import torch
from composer import Algorithm, Callback
from composer.loggers import Logger, LoggerDestination
from composer.optim import ComposerScheduler
from composer.utils import load_checkpoint
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from sam_algos import METHODS, PARTS, Method, SharpnessAware
from sam_algos.recipes.naming.names import arguments_of, construct, lookup
from sam_algos.recipes.reading.check import refuse_several_methods
from sam_algos.recipes.schema import COLLECTIONS, Recipe
from sam_algos.trainer import RecalibrateBatchNorm

COMPOSED = "sharpness_aware"
"""The name of the method that is composed of parts."""

_LLM_FOUNDRY = {  # its names for Composer's schedulers
    "cosine": "CosineAnnealingScheduler",
    "cosine_with_warmup": "CosineAnnealingWithWarmupScheduler",
    "linear_decay_with_warmup": "LinearWithWarmupScheduler",
}


def algorithms() -> dict[str, type[Algorithm]]:
    """Composer's algorithms by their metadata's names, the sharpness-aware methods, and ``recalibrate_batch_norm``.

    ``sam`` is this package's SAM, not Composer's. ``sharpness_aware`` takes a section for each of its parts.
    """
    found: dict[str, type[Algorithm]] = {}
    for folder in files(composer.algorithms).iterdir():
        card = folder / "metadata.json"
        if card.is_file():
            for name, facts in json.loads(card.read_text()).items():
                found[name] = getattr(composer.algorithms, facts["class_name"])
    return {**found, **METHODS, COMPOSED: SharpnessAware, "recalibrate_batch_norm": RecalibrateBatchNorm}


def optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """Composer's and torch's optimizers, by class name.

    L-BFGS re-evaluates the loss in its own step, and SparseAdam wants sparse gradients, which no network here has.
    """
    found = _classes((torch.optim, composer.optim), torch.optim.Optimizer)
    return {name: found[name] for name in found if name not in ("Optimizer", "LBFGS", "SparseAdam")}


def schedulers() -> dict[str, Callable[..., Any]]:
    """Composer's and torch's learning rate schedules, by class name and by llm-foundry's names.

    Left out are those that take functions or other schedules, which YAML cannot write, and ReduceLROnPlateau, whose
    metric the Trainer does not pass on.
    """
    bases = ("LRScheduler", "ComposerScheduler")
    others = ("LambdaLR", "MultiplicativeLR", "ChainedScheduler", "SequentialLR", "ReduceLROnPlateau")
    ours = _classes((composer.optim,), ComposerScheduler)
    found = {**_classes((torch.optim.lr_scheduler,), LRScheduler), **ours}
    found.update({alias: ours[name] for alias, name in _LLM_FOUNDRY.items()})
    return {name: found[name] for name in found if name not in (*bases, *others)}


def callbacks() -> dict[str, Callable[..., Callback]]:
    """Composer's callbacks, by class name."""
    return _classes((composer.callbacks,), Callback)


def loggers() -> dict[str, Callable[..., LoggerDestination]]:
    """Composer's loggers, by class name."""
    found = _classes((composer.loggers,), LoggerDestination)
    return {name: found[name] for name in found if found[name] not in (Logger, LoggerDestination)}


def everything() -> dict[str, Mapping[str, Callable[..., Any]]]:
    """All that a recipe can name, by what it is and by name; see `Catalogue`."""
    from sam_algos.recipes.data.datasets import DATASETS
    from sam_algos.recipes.data.models import models

    methods = {**METHODS, COMPOSED: SharpnessAware}
    return {
        "method": methods,
        **PARTS,
        "algorithm": {name: cls for name, cls in algorithms().items() if name not in methods},
        "dataset": DATASETS,
        "model": models(),
        "optimizer": optimizers(),
        "scheduler": schedulers(),
        "callback": callbacks(),
        "logger": loggers(),
        "dataloader": {"dataloader": DataLoader},
    }


def build_collection(key: str, table: Mapping[str, Callable[..., Any]], entries: Mapping[str, Any]) -> list[Any]:
    """Build the entries of `algorithms`, `callbacks` or `loggers` from a table of classes, in the recipe's order.

    Raises:
        RecipeError: For a wrong name or argument.
    """
    return [
        construct(f"{key}.{name}", lookup(f"{key}.{name}", COLLECTIONS[key], name, table), arguments)
        for name, arguments in entries.items()
    ]


def build_algorithms(entries: Mapping[str, Any]) -> list[Algorithm]:
    """Build the algorithms of a recipe, as `build_collection` does, and refuse two sharpness-aware methods."""
    built = build_collection("algorithms", algorithms(), entries)
    refuse_several_methods([name for name, made in zip(entries, built, strict=True) if isinstance(made, Method)])
    return built


def build_optimizer(section: Mapping[str, Any], params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the base optimizer of a recipe from its section, which has a name and arguments."""
    factory = lookup("optimizer.name", "optimizer", section["name"], optimizers())
    return construct("optimizer", factory, arguments_of(section), params=params)


def build_scheduler(section: Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> Any:
    """Build the learning rate schedule of a recipe from its section; torch's are bound to the optimizer."""
    if section is None:
        return None
    factory = lookup("scheduler.name", "scheduler", section["name"], schedulers())
    supplied = {"optimizer": optimizer} if "optimizer" in inspect.signature(factory).parameters else {}
    return construct("scheduler", factory, arguments_of(section), **supplied)


def culprit(error: Exception, recipe: Recipe) -> str:
    """The key that an error of Composer's is about: of the algorithm whose code was running, or of a checkpoint.

    Where neither was, it is ``recipe``.
    """
    classes = {name: lookup("algorithms", "algorithm", name, algorithms()) for name in recipe.algorithms}
    homes = {cls.__module__: f"algorithms.{name}" for name, cls in classes.items() if not issubclass(cls, Method)}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code is load_checkpoint.__code__:
            return "autoresume" if recipe.load_path is None else "load_path"
        if (key := homes.get(frame.f_globals["__name__"])) is not None:
            return key
    return "recipe"


def _classes(modules: Iterable[ModuleType], base: type) -> dict[str, Any]:
    """The public classes of `modules` that are `base`'s, by name."""
    found = {name: getattr(module, name) for module in modules for name in dir(module) if name[0] != "_"}
    if base is ComposerScheduler:  # a protocol: its classes need not inherit from it
        return {name: value for name, value in found.items() if name.endswith("Scheduler")}
    classes = {name: value for name, value in found.items() if inspect.isclass(value)}
    return {name: value for name, value in classes.items() if issubclass(value, base)}
