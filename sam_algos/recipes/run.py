"""From a `Recipe` to a training run that is ready to start, or to one line about what is wrong."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from composer import Trainer
from composer.core import DataSpec
from composer.utils import dist, get_device, reproducibility
from torch.utils.data import DataLoader

from sam_algos.recipes.check import check_names
from sam_algos.recipes.components import (
    build_algorithms,
    build_collection,
    build_optimizer,
    build_scheduler,
    callbacks,
    loggers,
)
from sam_algos.recipes.datasets import build_dataset, check_alike, eval_section
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.folders import make_folder, remove_folders
from sam_algos.recipes.load import dump_recipe
from sam_algos.recipes.models import build_model_for
from sam_algos.recipes.names import construct
from sam_algos.recipes.noise import Samples
from sam_algos.recipes.precision import precision_on
from sam_algos.recipes.progress import Progress
from sam_algos.recipes.records import MetricsFile, StepTimes, Summary, summarise
from sam_algos.recipes.schema import Recipe

if TYPE_CHECKING:
    from sam_algos.recipes.bootstrap import Relabelling

_TRAINER_ARGUMENTS = inspect.signature(Trainer).parameters

_LOADERS = {("utils", "checkpoint.py"), ("checkpoint", "load.py")}


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Args:
        trainer (Trainer): Start it with `fit`.
        folder (Path): Where its files lie.
        progress (Progress | None): What it prints meanwhile.
        resumes (bool): Whether it goes on from its latest checkpoint, where there is one.
        made (tuple[Path, ...]): The folders that were made for it, innermost first. Default: ``()``.
        relabellings (tuple[Relabelling, ...]): What ``bootstrap`` made of the labels before it. Default: ``()``.
    """

    trainer: Trainer
    folder: Path
    progress: Progress | None
    resumes: bool
    made: tuple[Path, ...] = ()
    relabellings: tuple[Relabelling, ...] = ()

    @property
    def log(self) -> Path:
        """The metrics, as JSON lines."""
        return self.folder / "metrics.jsonl"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def checkpoint(self) -> str | None:
        """The last checkpoint, None where there is none."""
        if saved := self.trainer.saved_checkpoints:
            return saved[-1]
        loaded = self.trainer.state.load_path if self.resumes else None
        return loaded and os.path.relpath(os.path.realpath(loaded))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train, as it goes on from the checkpoint of its end."""
        now, end = self.trainer.state.timestamp, self.trainer.state.max_duration
        return end is not None and now >= end

    def fit(self) -> None:
        """Train; where a run that is resumed is done already, nothing happens."""
        if not (self.resumes and self.complete):
            self.trainer.fit()

    def summary(self) -> Summary:
        """What was logged so far, by this process and those before it."""
        return summarise(self.log)

    def stop(self) -> bool:
        """Stop after an error or an interrupt, and leave nothing behind where there is nothing to keep.

        Returns:
            bool: Whether a step was taken, so that there are files to look at.
        """
        if self.progress is not None:
            self.progress.stop()
        kept = int(self.trainer.state.timestamp.batch) > 0 or not self.made
        if not kept and dist.get_global_rank() == 0:
            remove_folders(self.made)
        return kept


def prepare(recipe: Recipe, name: str, labels: torch.Tensor | None = None) -> Run:
    """Build everything that one training of a recipe needs, and its run folder last of all.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): What a run without a ``run_name`` is called, before the time.
        labels (torch.Tensor, optional): To train on, one class per sample. Default: those of the data.

    Returns:
        Run: Nothing is trained yet; the folder holds the recipe.

    Raises:
        RecipeError: For whatever is wrong with the recipe; then nothing was created.
    """
    check_names(recipe)
    if recipe.bootstrap:
        raise RecipeError("bootstrap", f"must be 0 where it is trained once, got {recipe.bootstrap}")
    _join(recipe)
    algorithms = build_algorithms(recipe.algorithms)
    watchers = build_collection("callbacks", callbacks(), recipe.callbacks)
    train, test = load_data(recipe)
    train = train if labels is None else replace(train, labels=labels)
    reproducibility.seed_all(recipe.seed)
    model = build_model_for(recipe.model, train)
    optimizer = build_optimizer(recipe.optimizer, model.parameters())
    scheduler = build_scheduler(recipe.scheduler, optimizer)
    parts: dict[str, Any] = {
        "model": model,
        "algorithms": algorithms,
        "optimizers": optimizer,
        "schedulers": scheduler,
        "train_dataloader": build_loader(recipe, train, recipe.global_train_batch_size, train=True),
        "eval_dataloader": build_loader(
            recipe, test, recipe.global_eval_batch_size or recipe.global_train_batch_size, train=False
        ),
    }
    destinations = build_collection("loggers", loggers(), recipe.loggers)
    recipe, made = make_folder(recipe, name)
    try:
        return _start(recipe, parts, watchers, destinations, made)
    except BaseException:  # an interrupt, too, leaves nothing behind
        remove_folders(made)
        raise


def _join(recipe: Recipe) -> None:
    """Find the device, and where there are several processes, start their group."""
    try:
        device = get_device(recipe.device)
        if dist.get_world_size() > 1:  # one process alone would pay for collectives with nobody
            dist.initialize_dist(device, timeout=recipe.dist_timeout)
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError("device", error) from error


def load_data(recipe: Recipe) -> tuple[Samples, Samples]:
    """Open the data of a recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        tuple: What is trained on, and what is evaluated on.

    Raises:
        RecipeError: If it is not there, or does not go together.
    """
    train = build_dataset("train_dataset", recipe.train_dataset, train=True)
    test = build_dataset("eval_dataset", recipe.eval_dataset or eval_section(recipe.train_dataset), train=False)
    check_alike(train, test)
    size = recipe.global_train_batch_size
    if size > len(train):
        raise RecipeError("global_train_batch_size", f"{size} is more than the {len(train)} training samples")
    return train, test


def build_loader(recipe: Recipe, data: Samples, batch_size: int, *, train: bool) -> DataSpec:
    """The batches of this process: shuffled and all of one size to train on."""
    world = dist.get_world_size()
    if batch_size % world:
        key = f"global_{'train' if train else 'eval'}_batch_size"
        raise RecipeError(key, f"{batch_size} does not divide by the {world} processes")
    sampler = dist.get_sampler(data, shuffle=train, drop_last=train, seed=recipe.seed)
    loader = construct(
        "dataloader", DataLoader, recipe.dataloader,
        dataset=data, batch_size=batch_size // world, sampler=sampler, drop_last=train, collate_fn=data.collate,
    )  # fmt: skip
    return DataSpec(loader, split_batch=_split)


def _split(batch: Any, size: int | float) -> list[Any]:
    """Composer's own function, but for its warning about a last batch that is smaller than the others."""
    tensors = batch.values() if isinstance(batch, Mapping) else batch
    parts = list(zip(*(tensor.split(int(size)) for tensor in tensors), strict=True))
    return [dict(zip(batch, part, strict=True)) for part in parts] if isinstance(batch, Mapping) else parts


def _start(
    recipe: Recipe, parts: dict[str, Any], watchers: list[Any], destinations: list[Any], made: tuple[Path, ...]
) -> Run:
    """Make the Trainer, and write the recipe down."""
    folder = Path(recipe.run_folder.format(run_name=recipe.run_name))
    progress = Progress() if recipe.progress_bar else None
    arguments = {key: value for key, value in vars(recipe).items() if key in _TRAINER_ARGUMENTS}
    arguments["precision"] = precision_on(get_device(recipe.device), recipe.precision)
    arguments["progress_bar"] = False  # ours is a line for each epoch
    arguments["callbacks"] = [*watchers, StepTimes()]
    shown = [] if progress is None else [progress]
    arguments["loggers"] = [*destinations, MetricsFile(folder / "metrics.jsonl"), *shown]
    try:
        trainer = Trainer(**{**arguments, **parts})
    except Exception as error:  # Composer and its algorithms refuse in many ways; all are about the recipe
        where = _culprit(error, recipe)
        problem = f"{recipe.load_path} is no checkpoint: {error}" if where == "load_path" else error
        raise RecipeError(where, problem) from error
    run = Run(trainer, folder, progress, recipe.autoresume, made)
    if dist.get_global_rank() == 0:
        # A name that is taken would keep the file from being run again; to resume, it has to be the same.
        again = recipe if recipe.autoresume else replace(recipe, run_name=None)
        try:
            run.recipe.write_text(dump_recipe(again), encoding="utf-8")
        except OSError as error:
            raise RecipeError("run_folder", f"cannot write {run.recipe}: {error.strerror or error}") from error
    return run


def _culprit(error: Exception, recipe: Recipe) -> str:
    """The key that an error of Composer's is about, by the file that raised it."""
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    for parts in reversed(files):
        for name in recipe.algorithms:
            if parts[-3:-1] == ("algorithms", name):
                return f"algorithms.{name}"
        if recipe.load_path is not None and parts[-2:] in _LOADERS:
            return "load_path"
    return "recipe"
