"""A step inside Composer's Trainer; with `sam_algos.algorithm`, all that touches Composer's State."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from composer.core import Algorithm, Callback, Event, State, TimeUnit
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from sam_algos.batch import first_samples, tensors_in
from sam_algos.passes import FirstPass, Passes
from sam_algos.replay import Replay

__all__ = ["TrainerPasses", "training_progress"]


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


class TrainerPasses(Passes):
    """A step inside Composer's Trainer, whose closure runs all microbatches with all their events.

    Algorithms and callbacks that act when a batch is trained (gradient clipping above all) are held back during
    the passes and act once, on the gradient that the base optimizer gets. Callbacks and train metrics do not see
    the second pass: its weights are not the model's.
    """

    def __init__(self, state: State, logger: Logger) -> None:
        self._state = state
        self._logger = logger
        self._replay = Replay()

    def first(self, closure: Callable[..., Any], plan: FirstPass) -> Any:
        """Run the closure, without what acts when a batch is trained."""
        if plan.repeatable:
            self._replay.record(self._state.model, plan.devices, self._state.batch, narrowed=plan.share < 1)
        with ExitStack() as stack:
            if plan.share < 1:
                stack.enter_context(self._narrowed(plan.share))
            stack.enter_context(self._held_back(Event.AFTER_TRAIN_BATCH))
            return closure(ddp_sync=plan.synchronize)

    def second(self, closure: Callable[..., Any]) -> Any:
        """Run the closure again, unseen."""
        with self._replay.again(), self._muted(), self._held_back(Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH):
            return closure(ddp_sync=True, loss_dict={})

    def finish(self) -> None:
        """Let algorithms and callbacks act on the trained batch."""
        state = self._state
        for algorithm in reversed(state.algorithms):
            if algorithm.match(Event.AFTER_TRAIN_BATCH, state):
                algorithm.apply(Event.AFTER_TRAIN_BATCH, state, self._logger)
        for callback in _acting_on_trained_batch(state):
            callback.run_event(Event.AFTER_TRAIN_BATCH, state, self._logger)

    def progress(self, index: int) -> float | None:
        """See `training_progress`."""
        return training_progress(self._state)

    def model(self) -> torch.nn.Module:
        """The Trainer's model, with what data parallelism put around it."""
        return self._state.model

    def log(self, metrics: dict[str, float]) -> None:
        """Log through the Trainer's loggers."""
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
    def _narrowed(self, share: float) -> Iterator[None]:
        """Run the body on a share of each microbatch, of which algorithms and metrics see the same samples.

        What acts before the forward pass (MixUp) still acts on the whole microbatch, so that a sample is mixed as
        in the second pass; from there on the batch has only its first samples.
        """
        state = self._state
        algorithms, model = list(state.algorithms), _composer_model(state.model)
        state.algorithms = [
            _AlgorithmNarrowed(a, share) if a.match(Event.BEFORE_FORWARD, state) else a for a in algorithms
        ]
        state.algorithms.append(_Narrowing(share))
        replaced = {name: vars(model)[name] for name in _METRIC_METHODS if name in vars(model)}
        for name in _METRIC_METHODS:
            vars(model)[name] = _on_first_samples(getattr(model, name), share)
        try:
            yield
        finally:
            state.algorithms = algorithms
            for name in _METRIC_METHODS:
                del vars(model)[name]
            vars(model).update(replaced)

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


class _AlgorithmNarrowed(Algorithm):
    """An algorithm whose tensors for each sample are narrowed with the batch.

    MixUp and CutMix compute the labels of the samples that are mixed in before the forward pass, and use them after.
    """

    def __init__(self, algorithm: Algorithm, share: float) -> None:
        self._algorithm = algorithm
        self._share = share

    def match(self, event: Event, state: State) -> bool:
        return self._algorithm.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        attributes = vars(self._algorithm)
        before = dict(attributes)
        code = self._algorithm.apply(event, state, logger)
        if event == Event.BEFORE_FORWARD:
            samples = {tensor.shape[:1] for tensor in tensors_in(state.batch) if tensor.ndim}
            for name, value in attributes.items():
                if isinstance(value, Tensor) and value is not before.get(name) and value.shape[:1] in samples:
                    attributes[name] = first_samples(value, self._share)
        return code


class _Narrowing(Algorithm):
    """Leaves the first samples of each microbatch; comes last of those that act before the forward pass."""

    def __init__(self, share: float) -> None:
        self._share = share

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        state.batch = first_samples(state.batch, self._share)


_METRIC_METHODS = ("eval_forward", "update_metric")


def _on_first_samples(method: Callable[..., Any], share: float) -> Callable[..., Any]:
    """A method whose first argument is a batch, given that batch's first samples."""

    def narrowed(batch: Any, *args: Any, **kwargs: Any) -> Any:
        return method(first_samples(batch, share), *args, **kwargs)

    return narrowed


def _composer_model(model: torch.nn.Module) -> torch.nn.Module:
    """The user's model inside of what data parallelism and compilation put around it."""
    while not isinstance(model, ComposerModel):
        model = model.module if hasattr(model, "module") else model._orig_mod  # pyright: ignore
    return model


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
