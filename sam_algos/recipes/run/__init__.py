"""From a `Recipe` to a training run that is ready to start, or to one line about what is wrong."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.utils import dist, get_device, reproducibility

from sam_algos.recipes.data.datasets import build_loader, load_data
from sam_algos.recipes.data.models import Classifier, build_model
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.naming.components import (
    build_algorithms,
    build_collection,
    build_optimizer,
    build_scheduler,
    callbacks,
    culprit,
    loggers,
)
from sam_algos.recipes.reading.check import check_names
from sam_algos.recipes.reading.load import dump_recipe, load_recipe
from sam_algos.recipes.results import Summary, summarise
from sam_algos.recipes.results.folders import claim_folder, remove_folders
from sam_algos.recipes.run.engine import ask_for_the_cpu_once, precision_on, skip_unheard_events
from sam_algos.recipes.run.progress import Progress
from sam_algos.recipes.run.records import MetricsFile, StepTimes, TrainAccuracy
from sam_algos.recipes.run.relabel import Relabelling, relabel
from sam_algos.recipes.schema import Recipe

__all__ = ["Run", "prepare", "trainings"]

_TRAINER_ARGUMENTS = inspect.signature(Trainer).parameters

_INESSENTIAL = (
    "progress_bar", "log_to_console", "python_log_level", "dist_timeout", "dataloader", "variables", "device",
    "device_train_microbatch_size", "global_eval_batch_size", "save_interval", "save_num_checkpoints_to_keep",
)  # fmt: skip
"""Keys that may differ when a complete run is asked for its results again."""

_APART = 1_000_003  # between the seeds of the trainings of a bootstrap, so that no other run has the same


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Args:
        trainer (Trainer): Start it with `fit`.
        settings (Recipe): What it was made from.
        folder (Path): Where its files are.
        progress (Progress): What it prints meanwhile.
        made (Sequence[Path]): The folders that were made for it, innermost first.
        began (int): The batch that it goes on from.
        relabellings (Sequence[Relabelling]): What ``bootstrap`` made of the labels before it.
    """

    trainer: Trainer
    settings: Recipe
    folder: Path
    progress: Progress
    made: Sequence[Path]
    began: int
    relabellings: Sequence[Relabelling]

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
        """Whether nothing is left to train, as it goes on from its last checkpoint."""
        now, end = self.trainer.state.timestamp, self.trainer.state.max_duration
        return end is not None and now >= end

    @property
    def stepped(self) -> bool:
        """Whether it has taken a step."""
        return int(self.trainer.state.timestamp.batch) > self.began

    def fit(self) -> None:
        """Train; a resumed run that is complete does nothing.

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
        """Stop after an error or an interrupt, and leave nothing behind if no step was taken.

        Returns:
            bool: Whether a step was taken, so that there are files to look at.
        """
        self.progress.stop()
        if not self.stepped and dist.get_global_rank() == 0:
            remove_folders(self.made)
        return self.stepped

    def note(self, recipe: Recipe) -> None:
        """Write down the recipe that led to this run, so that it can be run again.

        Raises:
            RecipeError: If it cannot be written, or the run is complete and came from another recipe.
        """
        if dist.get_global_rank() != 0:
            return
        again = replace(recipe, run_name=None, autoresume=False)  # by its own name it would be this run
        try:
            if recipe.autoresume and self.complete and self.recipe.exists():
                self._refuse_changes(again)
            else:
                self.recipe.write_text(dump_recipe(again), encoding="utf-8")
        except OSError as error:
            raise RecipeError("run_folder", f"cannot write {self.recipe}: {error.strerror or error}") from error

    def _refuse_changes(self, recipe: Recipe) -> None:
        """Refuse to show the results of another recipe as this recipe's."""
        before = vars(load_recipe(self.recipe))
        changed = [key for key, value in vars(recipe).items() if value != before[key] and key not in _INESSENTIAL]
        if changed:
            problem = f"{self.folder} is complete, and was trained with another {', '.join(changed)}"
            raise RecipeError("autoresume", problem)


def trainings(recipe: Recipe, name: str) -> Iterator[Run]:
    """Prepare the trainings of a recipe: one, and one more for each round of ``bootstrap``.

    Each starts from its own initialisation (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_, section 3.3). All
    but the first train on the labels that the one before predicts for the training samples: without augmentation, and
    with the weights that are evaluated. With autoresume each goes on from its latest checkpoint; a complete one only
    predicts its labels again.

    **Cost.** ``bootstrap + 1`` trainings, and after all but the last a forward pass over the training samples.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): The beginning of an automatic run name.

    Yields:
        Run: Train it before asking for the next; the last one knows all the relabellings. With bootstrap the files of
        training ``i`` are in the folder ``training-<i>``; its recipe covers the trainings up to it.

    Raises:
        RecipeError: For whatever is wrong with the recipe; before the first training nothing is created.
    """
    if recipe.bootstrap:
        check_names(recipe)
        if load_data(recipe)[0].num_classes < 2:
            raise RecipeError("bootstrap", f"must be 0 where text has no classes, got {recipe.bootstrap}")
    done: list[Relabelling] = []
    for number in range(recipe.bootstrap + 1):
        run = prepare(recipe, name, tuple(done))
        recipe = replace(recipe, run_name=run.trainer.state.run_name)
        last = number == recipe.bootstrap
        if last or not run.complete:
            yield run
        if not last:
            done.append(relabel(recipe, run))
        run.trainer.close()


def prepare(recipe: Recipe, name: str, relabellings: Sequence[Relabelling] | None = None) -> Run:
    """Build everything that one training of a recipe needs, and its run folder last of all.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): The beginning of an automatic run name.
        relabellings (Sequence[Relabelling], optional): What came of the trainings before this one of a bootstrap.
            Default: None, for a recipe that trains once.

    Returns:
        Run: Nothing is trained yet; the folder holds the recipe.

    Raises:
        RecipeError: For whatever is wrong with the recipe; then nothing was created.
    """
    check_names(recipe)
    if recipe.bootstrap and relabellings is None:
        raise RecipeError("bootstrap", f"must be 0 where it is trained once, got {recipe.bootstrap}")
    before = relabellings or ()
    written = replace(recipe, bootstrap=len(before))
    recipe = _training(recipe, len(before)) if recipe.bootstrap else recipe
    _join(recipe)
    algorithms = build_algorithms(recipe.algorithms)
    watchers = build_collection("callbacks", callbacks(), recipe.callbacks)
    train, test = load_data(recipe)
    train = replace(train, labels=before[-1].labels) if before else train
    reproducibility.seed_all(recipe.seed)
    model = build_model(recipe.model, train)
    optimizer = build_optimizer(recipe.optimizer, model.parameters())
    scheduler = build_scheduler(recipe.scheduler, optimizer)
    size = recipe.global_train_batch_size
    parts: dict[str, Any] = {
        "model": model,
        "algorithms": algorithms,
        "optimizers": optimizer,
        "schedulers": scheduler,
        "train_dataloader": build_loader(recipe, train, size, train=True),
        "eval_dataloader": build_loader(recipe, test, recipe.global_eval_batch_size or size, train=False),
        "callbacks": watchers,
        "loggers": build_collection("loggers", loggers(), recipe.loggers),
    }
    recipe, made = _in_its_folder(recipe, name)
    try:
        run = _start(recipe, parts, made, before)
        run.note(written)
        return run
    except BaseException:  # an interrupt, too, leaves nothing behind
        remove_folders(made)
        raise


def _training(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one training of a bootstrap, with its own seed and folders."""
    folders = {"run_folder": recipe.run_folder, "save_folder": recipe.save_folder}
    own = {key: folder and f"{folder}/training-{number}" for key, folder in folders.items()}
    return replace(recipe, bootstrap=0, seed=(recipe.seed + number * _APART) % 2**32, **own)


def _join(recipe: Recipe) -> None:
    """Find the device, and start the process group if there are several processes."""
    try:
        device = get_device(recipe.device)
    except (ValueError, RuntimeError, ImportError) as error:
        why = str(error).rstrip(".")
        problem = f"there is no {recipe.device} here ({why}); write device=cpu, or leave it out to take what there is"
        raise RecipeError("device", problem) from error
    try:
        if dist.get_world_size() > 1:  # a single process would pay for collectives with nobody
            dist.initialize_dist(device, timeout=recipe.dist_timeout)
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError("device", error) from error


def _in_its_folder(recipe: Recipe, name: str) -> tuple[Recipe, Sequence[Path]]:
    """The recipe with the run name that all processes share, and the folders that the first one made."""
    answer: list[Any] = ["", (), None]
    if dist.get_global_rank() == 0:
        try:
            answer[:2] = claim_folder(recipe.run_folder, recipe.run_name, name, resume=recipe.autoresume)
        except RecipeError as error:
            answer[2] = error
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(answer)
    run_name, made, refusal = answer
    if refusal is not None:
        raise refusal
    return replace(recipe, run_name=run_name), made


def _start(recipe: Recipe, parts: dict[str, Any], made: Sequence[Path], relabellings: Sequence[Relabelling]) -> Run:
    """Make the Trainer."""
    folder = Path(recipe.run_folder.format(run_name=recipe.run_name))
    # There in any case: Composer warns where a checkpoint has no state of a logger.
    progress = Progress(sys.stderr if recipe.progress_bar else None)
    arguments = {key: value for key, value in vars(recipe).items() if key in _TRAINER_ARGUMENTS}
    arguments["precision"] = precision_on(get_device(recipe.device), recipe.precision)
    arguments["progress_bar"] = False  # ours is a line for each epoch
    accuracy = [TrainAccuracy()] if isinstance(parts["model"], Classifier) else []
    arguments["callbacks"] = [*parts.pop("callbacks"), StepTimes(), *accuracy]
    arguments["loggers"] = [*parts.pop("loggers"), MetricsFile(folder / "metrics.jsonl"), progress]
    ask_for_the_cpu_once()
    try:
        trainer = Trainer(**{**arguments, **parts})
    except Exception as error:  # Composer and its algorithms refuse in many ways; all are about the recipe
        where = culprit(error, recipe)
        problem = f"{recipe.load_path} is no checkpoint: {error}" if where == "load_path" else error
        raise RecipeError(where, problem) from error
    skip_unheard_events(trainer.engine)
    run = Run(trainer, recipe, folder, progress, made, int(trainer.state.timestamp.batch), relabellings)
    if run.complete and not recipe.autoresume:
        problem = f"must be longer than the {run.began} batches that {recipe.load_path} has behind it"
        raise RecipeError("max_duration", f"{problem}, got {recipe.max_duration!r}")
    return run
