"""Methods as Composer algorithms; the only file that touches Composer's State."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from composer.algorithms import SAM as ComposerSAM
from composer.core import Algorithm, Callback, Event, State, TimeUnit
from composer.loggers import Logger
from torch.optim import Optimizer

from sam_algos.optimizer import SharpnessAwareOptimizer
from sam_algos.options import Options
from sam_algos.parts import Parts
from sam_algos.passes import ClosurePasses, Passes
from sam_algos.replay import Replay
from sam_algos.sharded import load_without, refuse_fsdp1

__all__ = ["Method"]


@dataclass(frozen=True, repr=False)
class Method(Options, Algorithm, ABC):
    """Base of every sharpness-aware method: a choice of parts, given to Composer or to a hand-written loop.

    Runs on :attr:`.Event.INIT`, where it wraps the optimizer.

    Args:
        synchronize (bool): Average the first gradient over data-parallel processes even where no part needs it.
            Otherwise each process climbs by the gradient of its own samples, which generalises better (the SAM
            paper's m-sharpness, section 4.1) and saves a reduction. Default: ``False``.
        nonfinite (str): A gradient that is not finite is handed to the base optimizer (``'pass'``), or the step
            is skipped on all processes (``'skip'``) at one more norm and host synchronisation per step. It never
            enters a policy's statistics. Default: ``'pass'``, as training without a method does.
    """

    synchronize: bool = field(default=False, kw_only=True)
    nonfinite: Literal["pass", "skip"] = field(default="pass", kw_only=True)
    _live: list[SharpnessAwareOptimizer] = field(default_factory=list, init=False, compare=False, kw_only=True)

    @abstractmethod
    def parts(self) -> Parts:
        """When, how and what: the composition that this method is."""

    def __post_init__(self) -> None:
        """Check the arguments, and that they make parts."""
        super().__post_init__()
        self.parts()

    def wrap(
        self, optimizer: Optimizer, *, model: torch.nn.Module, total_steps: int | None = None
    ) -> SharpnessAwareOptimizer:
        """Make an optimizer for a hand-written loop.

        Its ``step(closure)`` wants a closure that zeroes the gradients, runs forward and backward, and returns
        the loss. Save ``method_state_dict()`` beside ``state_dict()``.

        Args:
            optimizer (torch.optim.Optimizer): The base optimizer.
            model (torch.nn.Module): The very object that the closure calls: with data parallelism the
                ``DistributedDataParallel``, not its ``module``.
            total_steps (int, optional): Steps of the whole training, not counting those that are skipped; methods
                with a schedule need it.

        Returns:
            The wrapped optimizer.

        Raises:
            ValueError: If ``total_steps`` is missing or not an integer >= 1, or the optimizer cannot be wrapped.
        """
        parts = self.parts()
        name = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"{name}.wrap(optimizer={optimizer!r}): optimizer must be a torch.optim.Optimizer.")
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"{name}.wrap(model={model!r}): model must be a torch.nn.Module.")
        if total_steps is None and parts.policy.reads_progress:
            raise ValueError(f"{name}.wrap(total_steps=None): this method's schedule needs an integer >= 1.")
        if not (total_steps is None or (type(total_steps) is int and total_steps >= 1)):
            raise ValueError(f"{name}.wrap(total_steps={total_steps!r}): total_steps must be an integer >= 1.")
        refuse_fsdp1(name, model)
        return self._wrap(optimizer, ClosurePasses(model, total_steps))

    def _wrap(self, optimizer: Optimizer, passes: Passes) -> SharpnessAwareOptimizer:
        return SharpnessAwareOptimizer(
            optimizer, self.parts(), passes, synchronize=self.synchronize, nonfinite=self.nonfinite
        )

    def match(self, event: Event, state: State) -> bool:
        """Run on :attr:`.Event.INIT`."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        """Wrap the optimizer, and leave in this Trainer an instance that saves and loads for it alone."""
        self._refuse_conflicts(state)
        own = replace(self)
        own._live.append(own._wrap(state.optimizers[0], _TrainerPasses(state, logger)))
        state.optimizers = tuple(own._live)
        load_without(own.parts().descent.buffers, state)
        state.algorithms = [own if a is self else a for a in state.algorithms]
        return None

    def _refuse_conflicts(self, state: State) -> None:
        name = type(self).__name__
        refuse_fsdp1(name, state.model, state.fsdp_config)
        others = [a for a in state.algorithms if isinstance(a, (Method, ComposerSAM)) and a is not self]
        if others:
            raise ValueError(f"{name}: a run takes one sharpness-aware method; this one also has {others[0]!r}.")
        if len(state.optimizers) != 1:
            raise ValueError(f"{name}: a run takes one optimizer; this one has {len(state.optimizers)}.")

    def state_dict(self) -> dict[str, Any]:
        """The arguments and what the method remembers between steps, in Python primitives."""
        memory = self._live[0].method_state_dict() if self._live else {}
        return {"repr": repr(self), "memory": memory}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore what the method remembers; a state that another method wrote is passed over."""
        if self._live and isinstance(state.get("memory"), dict):
            self._live[0].load_method_state_dict(state["memory"])


def training_progress(state: State) -> float | None:
    """The share of training that is done, moving with every batch whatever the unit of ``max_duration``.

    Composer's own elapsed duration stands still within an epoch where ``max_duration`` counts epochs (which it
    does only where the loader's length is known); it serves for every other unit.
    """
    total, now = state.max_duration, state.timestamp
    if total is None:
        return None
    if total.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        epochs = now.epoch.value + now.batch_in_epoch.value / max(1, state.dataloader_len.value)
        return min(1.0, epochs / total.value)
    elapsed = state.get_elapsed_duration()
    return None if elapsed is None else min(1.0, float(elapsed.value))


class _TrainerPasses(Passes):
    """A step inside Composer's Trainer, whose closure runs all microbatches with all their events.

    Algorithms and callbacks that act when a batch is trained (gradient clipping above all) are held back during
    the passes and act once, on the gradient that the base optimizer gets. Callbacks and train metrics do not see
    the second pass: its weights are not the model's.
    """

    def __init__(self, state: State, logger: Logger) -> None:
        self._state = state
        self._logger = logger
        self._replay = Replay()

    def first(
        self, closure: Callable[..., Any], *, synchronize: bool, repeatable: bool, devices: Collection[torch.device]
    ) -> Any:
        if repeatable:
            self._replay.record(self._state.model, devices, self._state.batch)
        with self._held_back(Event.AFTER_TRAIN_BATCH):
            return closure(ddp_sync=synchronize)

    def second(self, closure: Callable[..., Any]) -> Any:
        with self._replay.again(), self._held_back(Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH), self._muted():
            return closure(ddp_sync=True, loss_dict={})

    def finish(self) -> None:
        state = self._state
        for algorithm in reversed(state.algorithms):
            if algorithm.match(Event.AFTER_TRAIN_BATCH, state):
                algorithm.apply(Event.AFTER_TRAIN_BATCH, state, self._logger)
        for callback in _acting_on_trained_batch(state):
            callback.run_event(Event.AFTER_TRAIN_BATCH, state, self._logger)

    def progress(self, index: int) -> float | None:
        return training_progress(self._state)

    def model(self) -> torch.nn.Module:
        return self._state.model

    def log(self, metrics: dict[str, float]) -> None:
        self._logger.log_metrics(metrics)

    @contextmanager
    def _held_back(self, *events: Event) -> Iterator[None]:
        """Run the body without the algorithms and callbacks that act on ``events``."""
        state = self._state
        algorithms, callbacks = list(state.algorithms), list(state.callbacks)
        acting = _acting_on_trained_batch(state)
        state.algorithms = [
            _AlgorithmExcept(a, events) if any(a.match(event, state) for event in events) else a for a in algorithms
        ]
        state.callbacks = [_CallbackExcept(c, events) if c in acting else c for c in callbacks]
        try:
            yield
        finally:
            state.algorithms, state.callbacks = algorithms, callbacks

    @contextmanager
    def _muted(self) -> Iterator[None]:
        """Run the body unseen by callbacks and train metrics."""
        state = self._state
        callbacks, metrics = list(state.callbacks), state.train_metrics
        seen = state.outputs, state.loss
        state.callbacks, state.train_metrics = [], {}
        try:
            yield
        finally:
            state.callbacks, state.train_metrics = callbacks, metrics
            state.outputs, state.loss = seen


class _AlgorithmExcept(Algorithm):
    """An algorithm that does not act on some events."""

    def __init__(self, algorithm: Algorithm, events: Collection[Event]) -> None:
        self._algorithm = algorithm
        self._events = events

    def match(self, event: Event, state: State) -> bool:
        return event not in self._events and self._algorithm.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        return self._algorithm.apply(event, state, logger)


class _CallbackExcept(Callback):
    """A callback that does not see some events."""

    def __init__(self, callback: Callback, events: Collection[Event]) -> None:
        self._callback = callback
        self._events = events

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event not in self._events:
            self._callback.run_event(event, state, logger)


def _acting_on_trained_batch(state: State) -> list[Callback]:
    return [
        c
        for c in state.callbacks
        if type(c).after_train_batch is not Callback.after_train_batch or type(c).run_event is not Callback.run_event
    ]
