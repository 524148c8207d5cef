"""From a `Recipe` to a training run that is ready to start, or to one line about what is wrong."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from composer import Trainer
from composer.utils import dist, get_device, reproducibility

from sam_algos.recipes.blame import culprit
from sam_algos.recipes.check import check_names
from sam_algos.recipes.components import (
    build_algorithms,
    build_collection,
    build_optimizer,
    build_scheduler,
    callbacks,
    loggers,
)
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.events import ask_for_the_cpu_once, skip_unheard_events
from sam_algos.recipes.folders import make_folder, remove_folders
from sam_algos.recipes.load import dump_recipe, load_recipe
from sam_algos.recipes.loaders import build_loader, load_data
from sam_algos.recipes.models import Classifier, build_model_for
from sam_algos.recipes.precision import precision_on
from sam_algos.recipes.progress import Progress
from sam_algos.recipes.records import MetricsFile, StepTimes, TrainAccuracy
from sam_algos.recipes.schema import Recipe
from sam_algos.recipes.summaries import Summary, summarise

if TYPE_CHECKING:
    from sam_algos.recipes.bootstrap import Relabelling

_TRAINER_ARGUMENTS = inspect.signature(Trainer).parameters

_INESSENTIAL = (
    "progress_bar", "log_to_console", "python_log_level", "dist_timeout", "dataloader", "variables", "device",
    "device_train_microbatch_size", "global_eval_batch_size", "save_interval", "save_num_checkpoints_to_keep",
)  # fmt: skip
"""What may differ where the results of a run are asked for again."""


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Args:
        trainer (Trainer): Start it with `fit`.
        settings (Recipe): What it was made from.
        folder (Path): Where its files lie.
        progress (Progress): What it prints meanwhile.
        made (tuple[Path, ...]): The folders that were made for it, innermost first.
        began (int): The batch that it goes on from.
        relabellings (tuple[Relabelling, ...]): What ``bootstrap`` made of the labels before it. Default: ``()``.
    """

    trainer: Trainer
    settings: Recipe
    folder: Path
    progress: Progress
    made: tuple[Path, ...]
    began: int
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
        loaded = self.trainer.state.load_path if self.settings.autoresume else None
        return loaded and os.path.relpath(os.path.realpath(loaded))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train, as it goes on from the checkpoint of its end."""
        now, end = self.trainer.state.timestamp, self.trainer.state.max_duration
        return end is not None and now >= end

    @property
    def stepped(self) -> bool:
        """Whether it has taken a step."""
        return int(self.trainer.state.timestamp.batch) > self.began

    def fit(self) -> None:
        """Train; where a run that is resumed is done already, nothing happens.

        Raises:
            RecipeError: If one of Composer's algorithms fails before the first step: it is not made for the data.
        """
        if self.settings.autoresume and self.complete:
            self.progress.say(f"{self.folder} is complete: nothing was trained")
            return
        if self.began:
            self.progress.say(f"going on after batch {self.began}, from {self.trainer.state.load_path}")
        try:
            self.trainer.fit()
        except Exception as error:
            where = culprit(error, self.settings)
            if self.stepped or where == "recipe":
                raise
            problem = f"does not work with this model and data: {type(error).__name__}: {error}"
            raise RecipeError(where, problem) from error
        self.progress.finish(self.trainer.state)

    def summary(self) -> Summary:
        """What was logged so far, by this process and those before it."""
        return summarise(self.log)

    def stop(self) -> bool:
        """Stop after an error or an interrupt, and leave nothing behind where there is nothing to keep.

        Returns:
            bool: Whether a step was taken, so that there are files to look at.
        """
        self.progress.stop()
        if not self.stepped and dist.get_global_rank() == 0:
            remove_folders(self.made)
        return self.stepped

    def note(self, recipe: Recipe) -> None:
        """Write a recipe down, so that it can be run again.

        Args:
            recipe (Recipe): What led to this run.

        Raises:
            RecipeError: If it cannot be written, or the run is complete and was another recipe's.
        """
        if dist.get_global_rank() != 0:
            return
        again = replace(recipe, run_name=None, autoresume=False)  # by its own name it would be this run
        try:
            if recipe.autoresume and self.complete and self.recipe.exists():
                _refuse_changes(self.recipe, again)
            else:
                self.recipe.write_text(dump_recipe(again), encoding="utf-8")
        except OSError as error:
            raise RecipeError("run_folder", f"cannot write {self.recipe}: {error.strerror or error}") from error


def prepare(recipe: Recipe, name: str, labels: torch.Tensor | None = None, written: Recipe | None = None) -> Run:
    """Build everything that one training of a recipe needs, and its run folder last of all.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): What a run without a ``run_name`` is called, before the time.
        labels (torch.Tensor, optional): To train on, one class per sample. Default: those of the data.
        written (Recipe, optional): What is written down in place of `recipe`, where that is only a part of it.
            Default: `recipe`.

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
        run = _start(recipe, parts, watchers, destinations, made)
        run.note(written or recipe)
        return run
    except BaseException:  # an interrupt, too, leaves nothing behind
        remove_folders(made)
        raise


def _join(recipe: Recipe) -> None:
    """Find the device, and where there are several processes, start their group."""
    try:
        device = get_device(recipe.device)
    except (ValueError, RuntimeError, ImportError) as error:
        why = str(error).rstrip(".")
        problem = f"there is no {recipe.device} here ({why}); write device=cpu, or leave it out to take what there is"
        raise RecipeError("device", problem) from error
    try:
        if dist.get_world_size() > 1:  # one process alone would pay for collectives with nobody
            dist.initialize_dist(device, timeout=recipe.dist_timeout)
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError("device", error) from error


def _start(
    recipe: Recipe, parts: dict[str, Any], watchers: list[Any], destinations: list[Any], made: tuple[Path, ...]
) -> Run:
    """Make the Trainer, and write the recipe down."""
    folder = Path(recipe.run_folder.format(run_name=recipe.run_name))
    # There in any case: Composer warns where a checkpoint has no state of a logger.
    progress = Progress(sys.stderr if recipe.progress_bar else None)
    arguments = {key: value for key, value in vars(recipe).items() if key in _TRAINER_ARGUMENTS}
    arguments["precision"] = precision_on(get_device(recipe.device), recipe.precision)
    arguments["progress_bar"] = False  # ours is a line for each epoch
    accuracy = [TrainAccuracy()] if isinstance(parts["model"], Classifier) else []
    arguments["callbacks"] = [*watchers, StepTimes(), *accuracy]
    arguments["loggers"] = [*destinations, MetricsFile(folder / "metrics.jsonl"), progress]
    ask_for_the_cpu_once()
    try:
        trainer = Trainer(**{**arguments, **parts})
    except Exception as error:  # Composer and its algorithms refuse in many ways; all are about the recipe
        where = culprit(error, recipe)
        problem = f"{recipe.load_path} is no checkpoint: {error}" if where == "load_path" else error
        raise RecipeError(where, problem) from error
    skip_unheard_events(trainer.engine)
    run = Run(trainer, recipe, folder, progress, made, began=int(trainer.state.timestamp.batch))
    if run.complete and not recipe.autoresume:
        problem = f"must be longer than the {run.began} batches that {recipe.load_path} has behind it"
        raise RecipeError("max_duration", f"{problem}, got {recipe.max_duration!r}")
    return run


def _refuse_changes(path: Path, recipe: Recipe) -> None:
    """Refuse to show the results of another recipe as those of this one."""
    before = vars(load_recipe(path))
    changed = [key for key, value in vars(recipe).items() if value != before[key] and key not in _INESSENTIAL]
    if changed:
        raise RecipeError("autoresume", f"{path.parent} is complete, and was trained with another {', '.join(changed)}")
