"""The passes of a step inside Composer's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from composer.core import Algorithm, Callback, Event, State, TimeUnit
from composer.loggers import Logger

from sam_algos.core.passes.contract import Outcome, Pass, Passes
from sam_algos.core.passes.selection import EVERYTHING, First
from sam_algos.trainer.narrowing import Narrowing

__all__ = ["TrainerPasses", "training_progress"]


def training_progress(state: State) -> float | None:
    """The fraction of training done. It advances with every batch, whatever the unit of ``max_duration``.

    Composer's own elapsed duration is used for all units but epochs: with epochs it does not change within an epoch.
    There the batches of the epoch are counted too, if the loader's length is known.
    """
    total, now = state.max_duration, state.timestamp
    if total is None:
        return None
    if total.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        epochs = now.epoch.value + now.batch_in_epoch.value / max(1, state.dataloader_len.value)
        return min(1.0, epochs / total.value)
    elapsed = state.get_elapsed_duration()
    return None if elapsed is None else min(1.0, float(elapsed.value))


class TrainerPasses(Passes):
    """The passes of a step inside Composer's Trainer. Its closure runs all microbatches with all their events.

    Algorithms and callbacks that act after a batch is trained (mainly gradient clipping) are held back during the
    passes. They act once, on the gradient that the base optimizer gets. Callbacks and train metrics do not see the
    second pass: it runs at displaced weights.
    """

    def __init__(self, state: State, logger: Logger, *, selects: bool = False) -> None:
        super().__init__(selects)
        self._state = state
        self._logger = logger
        self._narrowing = Narrowing(state)
        self.finish, self.log = self._finish, logger.log_metrics

    def first(self, closure: Callable[..., Any], plan: Pass) -> Outcome | None:
        """Run the closure, without the algorithms and callbacks that act after a batch is trained."""
        narrowed = isinstance(plan.selection, First)
        if plan.repeatable:
            self._replay.record(self._state.model, plan.params, self._state.batch, narrowed=narrowed)
        with self._held_back(Event.AFTER_TRAIN_BATCH):
            return self._call(closure, plan, first=True)

    def again(self, closure: Callable[..., Any], plan: Pass) -> Outcome | None:
        """Run the closure again, unseen by callbacks and train metrics."""
        with ExitStack() as stack:
            stack.enter_context(self._replay.again())
            stack.enter_context(self._muted())
            stack.enter_context(self._held_back(Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH))
            return self._call(closure, plan, first=False, loss_dict={})

    def _call(self, closure: Callable[..., Any], plan: Pass, *, first: bool, **arguments: Any) -> Outcome | None:
        whole = plan.selection is EVERYTHING and plan.gradient and not plan.losses and not self._selects
        synchronized = plan.synchronize or self._synchronizes()
        narrowing = nullcontext() if whole else self._narrowing(plan, first=first)
        with torch.enable_grad(), narrowing:
            loss = self.work("sam/pass", closure, ddp_sync=synchronized, **arguments)
        if loss is None:
            return None
        if whole:
            return Outcome(loss, None, 1.0, synchronized)
        return Outcome(loss, self._narrowing.losses(), self._narrowing.share(), synchronized)

    def _finish(self) -> None:
        """Let the algorithms and callbacks that were held back act on the trained batch."""
        state = self._state
        for algorithm in reversed(state.algorithms):
            if algorithm.match(Event.AFTER_TRAIN_BATCH, state):
                algorithm.apply(Event.AFTER_TRAIN_BATCH, state, self._logger)
        for callback in _acting_on_trained_batch(state):
            callback.run_event(Event.AFTER_TRAIN_BATCH, state, self._logger)

    def progress(self, index: int) -> float | None:
        """See `training_progress`."""
        return training_progress(self._state)

    def epoch(self) -> int | None:
        """The length of the training dataloader."""
        length = self._state.dataloader_len
        return None if length is None else length.value

    def model(self) -> torch.nn.Module:
        """The Trainer's model, including the wrapper of data parallelism."""
        return self._state.model

    @contextmanager
    def _held_back(self, *events: Event) -> Iterator[None]:
        """Run the body without the algorithms and callbacks that act on ``events``."""
        state = self._state
        algorithms, callbacks, batch = list(state.algorithms), list(state.callbacks), state.batch
        acting = _acting_on_trained_batch(state)
        state.algorithms = [
            _AlgorithmExcept(a, events) if any(a.match(event, state) for event in events) else a for a in algorithms
        ]
        state.callbacks = [_CallbackExcept(c, events) if c in acting else c for c in callbacks]
        try:
            yield
        except BaseException:
            state.batch = batch  # Composer restores it only if the pass succeeds
            raise
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
    """An algorithm that ignores some events."""

    def __init__(self, algorithm: Algorithm, events: Collection[Event]) -> None:
        self._algorithm = algorithm
        self._events = events

    def match(self, event: Event, state: State) -> bool:
        return event not in self._events and self._algorithm.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        return self._algorithm.apply(event, state, logger)


class _CallbackExcept(Callback):
    """A callback that ignores some events."""

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
