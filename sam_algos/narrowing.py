"""A pass inside Composer's Trainer on a fraction of each microbatch: what ``ascent_fraction`` does there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel

from sam_algos.batch import first_samples, sample_counts
from sam_algos.passes import FirstPass
from sam_algos.replay import RandomStreams

__all__ = ["Narrowing"]


class Narrowing:
    """Narrows the first pass of a step, and lets the second draw from where the first drew.

    What acts before the forward pass (MixUp) still acts on the whole microbatch, so that a sample is mixed as in the
    second pass; from there on the batch has only its first samples, and so have algorithms and metrics.

    Args:
        state (State): The Trainer's state.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._draws: list[RandomStreams] = []

    @contextmanager
    def first(self, plan: FirstPass) -> Iterator[None]:
        """Run the body on ``plan.fraction`` of each microbatch."""
        state, fraction = self._state, plan.fraction
        algorithms, model = list(state.algorithms), _composer_model(state.model)
        narrowed = [_AlgorithmNarrowed(a, fraction) for a in algorithms]
        self._draws = []

        def note(_: State) -> None:
            self._draws.append(RandomStreams.record(plan.devices))

        def narrow(state: State) -> None:
            state.batch = first_samples(state.batch, fraction)

        state.algorithms = [_BeforeForward(note), *narrowed, _BeforeForward(narrow)]
        replaced = {name: vars(model)[name] for name in _METRIC_METHODS if name in vars(model)}
        for name in _METRIC_METHODS:
            vars(model)[name] = _on_first_samples(getattr(model, name), fraction)
        try:
            yield
        finally:
            state.algorithms = algorithms
            for algorithm in narrowed:
                algorithm.put_back()
            for name in _METRIC_METHODS:
                del vars(model)[name]
            vars(model).update(replaced)

    @contextmanager
    def second(self) -> Iterator[None]:
        """Run the body so that each of several microbatches draws from where it drew when narrowed.

        A forward pass of fewer samples may draw less, and would leave the next microbatch other numbers.
        """
        draws, self._draws = deque(self._draws), []
        if len(draws) < 2:
            yield
            return
        algorithms = list(self._state.algorithms)
        self._state.algorithms = [_BeforeForward(lambda _: draws.popleft().restore()), *algorithms]
        try:
            yield
        finally:
            self._state.algorithms = algorithms


class _AlgorithmNarrowed(Algorithm):
    """An algorithm whose values for each sample are narrowed with the batch.

    MixUp and CutMix compute the labels of the samples that are mixed in before the forward pass, and use them after.
    """

    def __init__(self, algorithm: Algorithm, fraction: float) -> None:
        self._algorithm = algorithm
        self._fraction = fraction
        self._whole: dict[str, tuple[Any, Any]] = {}

    def match(self, event: Event, state: State) -> bool:
        return self._algorithm.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        if event != Event.BEFORE_FORWARD:
            return self._algorithm.apply(event, state, logger)
        self.put_back()
        attributes = vars(self._algorithm)
        before = dict(attributes)
        code = self._algorithm.apply(event, state, logger)
        samples = sample_counts(state.batch)
        for name, value in list(attributes.items()):
            if value is not before.get(name) and sample_counts(value) == samples:
                attributes[name] = first_samples(value, self._fraction)
                self._whole[name] = value, attributes[name]
        return code

    def put_back(self) -> None:
        """Give the algorithm its whole values again, unless it has replaced them itself."""
        attributes = vars(self._algorithm)
        attributes.update({name: whole for name, (whole, few) in self._whole.items() if attributes.get(name) is few})
        self._whole = {}


class _BeforeForward(Algorithm):
    """Something to do before each forward pass."""

    def __init__(self, action: Callable[[State], None]) -> None:
        self._action = action

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._action(state)


_METRIC_METHODS = ("eval_forward", "update_metric")


def _on_first_samples(method: Callable[..., Any], fraction: float) -> Callable[..., Any]:
    """A method whose first argument is a batch, given that batch's first samples."""

    def narrowed(batch: Any, *args: Any, **kwargs: Any) -> Any:
        return method(first_samples(batch, fraction), *args, **kwargs)

    return narrowed


def _composer_model(model: torch.nn.Module) -> torch.nn.Module:
    """The user's model, inside of what data parallelism put around it."""
    return next(module for module in model.modules() if isinstance(module, ComposerModel))
