"""Everything that needs Composer: recipes, and the loop in its Trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer import Algorithm, Callback, Event, Logger, State, Trainer
from composer.loggers import LoggerDestination
from composer.models import ComposerClassifier

from benchmarks.contenders import Contender
from benchmarks.results import BenchmarkError, rounded
from benchmarks.timing import Rotation
from benchmarks.workloads import Batch, Task
from sam_algos import METHODS
from sam_algos.recipes import Recipe, RecipeError, load_recipe
from sam_algos.recipes.naming.components import build_algorithms
from sam_algos.recipes.run import Run, prepare

_ENDLESS = "1000000000ba"


def plain_recipe(name: str | Path, overrides: Sequence[str]) -> Recipe:
    """A recipe without its sharpness-aware method."""
    recipe = read_recipe(name, overrides)
    return replace(recipe, algorithms={key: value for key, value in recipe.algorithms.items() if key not in METHODS})


def read_recipe(name: str | Path, overrides: Sequence[str]) -> Recipe:
    """Load a recipe unchanged; errors are raised as `BenchmarkError`."""
    try:
        return load_recipe(name, overrides)
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error


def check(recipe: Recipe) -> None:
    """Raise a `BenchmarkError` if a recipe's algorithms cannot be built."""
    try:
        build_algorithms(recipe.algorithms)
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error


def build(recipe: Recipe, folder: str) -> Run:
    """Build a recipe's run in a folder, without checkpoints; errors are raised as `BenchmarkError`."""
    try:
        quiet = replace(recipe, run_folder=f"{folder}/run", save_folder=None, progress_bar=False)
        return prepare(quiet, "benchmark")
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error


def train(recipe: Recipe) -> dict[str, Any]:
    """Train a recipe and evaluate it after the last step; return its accuracy and cost."""
    meter = watched(recipe)
    return {
        "accuracy": meter.accuracy, "train_accuracy": meter.train_accuracy, "steps": len(meter.gradients),
        "gradients": rounded(sum(meter.gradients)), "forwards": rounded(meter.forwards),
        "cpu_seconds": rounded(meter.cpu_seconds),
    }  # fmt: skip


def watched(recipe: Recipe) -> _Meter:
    """Train a recipe with one evaluation, after the last step."""
    meter = _Meter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(replace(recipe, eval_interval=_ENDLESS), folder).trainer
        trainer.state.callbacks.append(meter)
        trainer.logger.destinations = (*trainer.logger.destinations, meter.log)
        trainer.fit()
        trainer.close()
    return meter


class _Meter(Callback):
    """Counts the passes of a training, and measures its wall and CPU time without evaluation."""

    def __init__(self) -> None:
        self.accuracy = self.train_accuracy = 0.0
        self.gradients: list[float] = []
        self.forwards = self.seconds = self.cpu_seconds = 0.0
        self.log = _Logged(self)
        self._since = 0.0, 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._since = time.perf_counter(), time.process_time()

    def batch_end(self, state: State, logger: Logger) -> None:
        metrics = getattr(state.optimizers[0], "metrics", {})
        self.gradients.append(float(metrics.get("sam/gradients", 1)))
        self.forwards += float(metrics.get("sam/forwards", 0))

    def eval_start(self, state: State, logger: Logger) -> None:
        wall, cpu = self._since
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def eval_end(self, state: State, logger: Logger) -> None:
        self.accuracy = rounded(float(state.eval_metrics["eval"]["MulticlassAccuracy"].compute()))
        self._since = time.perf_counter(), time.process_time()


class _Logged(LoggerDestination):
    """Collects values that are only logged: forward passes of a recalibration, and the last epoch's accuracy."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._meter.forwards += float(metrics.get("recalibration/forwards", 0))
        if (accuracy := metrics.get("metrics/train/MulticlassAccuracy")) is not None:
            self._meter.train_accuracy = rounded(accuracy)


def from_recipe(recipe: Recipe) -> Task:
    """The network, optimizer and data of a recipe, in a Trainer that trains until it is stopped."""
    folder = tempfile.TemporaryDirectory()
    trainer = build(replace(recipe, max_duration=_ENDLESS, scheduler=None, eval_interval=_ENDLESS), folder.name).trainer
    trainer.state.evaluators = []
    model: Any = trainer.state.model
    return Task(model.module, trainer.state.optimizers[0], _batches(trainer.state), trainer=trainer, folder=folder)


def _batches(state: State) -> Iterator[Batch]:
    while True:
        for batch in state.train_dataloader:  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
            yield state.device.batch_to_device(batch)


def trainer_of(task: Task, batches: Sequence[Batch], classes: int) -> Trainer:
    """A Trainer around a task, which repeats some batches."""
    return Trainer(
        model=ComposerClassifier(task.network, num_classes=classes), optimizers=task.optimizer,
        train_dataloader=batches, max_duration=_ENDLESS, progress_bar=False,
        device_train_microbatch_size=len(batches[0][1]),
    )  # fmt: skip


def trainer_loop(
    trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: Callable[[Any], Any]
) -> None:
    """Train in the Trainer, which gets the next contender's optimizer with every batch."""
    # First, so that the clock stops before other callbacks and the loggers run.
    trainer.state.callbacks.insert(0, _InTurn(chosen, rotation, seat))
    if not rotation.finished:
        trainer.fit()


@dataclass(frozen=True)
class _Place:
    """A contender in the Trainer: its own parts of the Trainer's state."""

    seat: Any
    algorithms: list[Algorithm]
    scaler: Any

    @classmethod
    def make(cls, contender: Contender, state: State, logger: Logger, seat: Callable[[Any], Any]) -> _Place:
        """Let a contender set itself up in the Trainer, then restore the Trainer's state."""
        before = tuple(state.optimizers), list(state.algorithms), state.scaler
        algorithm = contender.method
        if algorithm is None:
            optimizer: Any = contender.wrap(state.optimizers[0], state.model)
        else:
            state.algorithms = [*before[1], algorithm]
            for event in (Event.INIT, Event.AFTER_LOAD):
                if algorithm.match(event, state):
                    algorithm.apply(event, state, logger)
            optimizer = state.optimizers[0]
        place = cls(seat(optimizer), list(state.algorithms), state.scaler)
        state.optimizers, state.algorithms, state.scaler = before  # pyright: ignore[reportAttributeAccessIssue]
        return place

    def take(self, state: State) -> None:
        """Give the next step to this contender."""
        state.optimizers = (self.seat,)  # pyright: ignore[reportAttributeAccessIssue]
        state.algorithms, state.scaler = self.algorithms, self.scaler


class _InTurn(Callback):
    """Puts the next contender in place when a batch starts."""

    def __init__(self, chosen: Mapping[str, Contender], rotation: Rotation, seat: Callable[[Any], Any]) -> None:
        self._contenders = chosen
        self._rotation = rotation
        self._seat = seat
        self._places: dict[str, _Place] = {}
        self._name = ""

    def fit_start(self, state: State, logger: Logger) -> None:
        self._places = {name: _Place.make(c, state, logger, self._seat) for name, c in self._contenders.items()}

    def batch_start(self, state: State, logger: Logger) -> None:
        self._name = self._rotation.turn()
        self._places[self._name].take(state)
        self._rotation.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._rotation.stop(self._name, self._places[self._name].seat.figures)
        if self._rotation.finished:
            state.stop_training()
