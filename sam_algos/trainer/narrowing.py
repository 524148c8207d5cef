"""Passes inside Composer's Trainer on some samples, for the loss of each sample, or forward only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from sam_algos.core.passes.contract import Pass
from sam_algos.core.passes.randomness import RandomStreams
from sam_algos.core.passes.selection import sample_count
from sam_algos.trainer.microbatch import Microbatch

__all__ = ["Narrowing"]


class Narrowing:
    """Runs passes on some of the samples.

    Only the model, its loss and its metrics are given fewer samples. At every event algorithms see whole microbatches
    and, if the outputs are a tensor, whole outputs (zero for the samples that were not run). So a sample is mixed,
    smoothed and labelled as in a pass on the whole batch, whatever an algorithm remembers between events.

    Args:
        state (State): The Trainer's state.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._draws: list[RandomStreams] = []
        self._microbatches: list[Microbatch] = []

    @contextmanager
    def __call__(self, plan: Pass, *, first: bool) -> Iterator[None]:
        """Run the body as ``plan`` says.

        Args:
            plan: Which samples to use, and whether to compute a gradient and the loss of each sample.
            first: Whether it is the step's first pass. Later passes restore the random state that the first pass had in
                each microbatch: with fewer samples a forward pass may draw fewer numbers, and would shift the random
                numbers of the next microbatch.
        """
        state, model = self._state, _composer_model(self._state.model)
        algorithms, draws = list(state.algorithms), deque(self._draws)
        self._microbatches = []
        if first:
            self._draws = []

        def before_drawing() -> None:
            if first:
                self._draws.append(RandomStreams.record({p.device for p in plan.params}))
            elif len(draws) and len(self._draws) > 1:
                draws.popleft().restore()

        inner = _Inner(plan, self._microbatches)
        state.algorithms = [_On({Event.BEFORE_FORWARD: lambda _: before_drawing()}), *algorithms, inner.algorithm()]
        replaced = {name: vars(model)[name] for name in _METHODS if name in vars(model)}
        for name in _METHODS:
            vars(model)[name] = getattr(inner, name)(getattr(model, name))
        try:
            yield
        finally:
            state.algorithms = algorithms
            for name in _METHODS:
                del vars(model)[name]
            vars(model).update(replaced)

    def losses(self) -> Tensor | None:
        """The loss of each sample in the last pass, if it was asked for."""
        found = [m.losses for m in self._microbatches if m.losses is not None]
        return torch.cat(found) if found else None

    def share(self) -> float:
        """The fraction of the batch that the last pass ran on."""
        whole = sum(m.size for m in self._microbatches)
        return sum(m.count for m in self._microbatches) / max(1, whole)


class _Inner:
    """Narrows the batch around the model within one pass."""

    def __init__(self, plan: Pass, microbatches: list[Microbatch]) -> None:
        self._plan = plan
        self._microbatches = microbatches

    @property
    def _now(self) -> Microbatch:
        return self._microbatches[-1]

    def algorithm(self) -> Algorithm:
        """Runs last before the forward pass and first after it, where Composer runs algorithms in reverse order."""
        return _On({
            Event.BEFORE_FORWARD: self._before_forward,
            Event.AFTER_FORWARD: self._after_forward,
            Event.BEFORE_BACKWARD: self._before_backward,
        })  # fmt: skip

    def _before_forward(self, state: State) -> None:
        offset = sum(m.size for m in self._microbatches)
        self._microbatches.append(Microbatch(state.batch, self._plan.selection, offset))
        state.batch = self._now.narrow(state.batch)
        torch.set_grad_enabled(self._plan.gradient)

    def _after_forward(self, state: State) -> None:
        torch.set_grad_enabled(True)
        state.batch = self._now.whole
        state.outputs = self._now.widen(state.outputs)

    def _before_backward(self, state: State) -> None:
        if self._plan.losses and state.loss is not self._now.loss:
            raise ValueError(
                "ESAM needs the loss of each sample, but an algorithm changed the loss after the model had computed "
                "it, as MixUp(interpolate_loss=True) and CutMix(interpolate_loss=True) do; interpolate the labels "
                "instead (interpolate_loss=False)."
            )

    def loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The model's loss, on the chosen samples."""

        def narrowed(outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            now = self._now
            outputs, batch = now.of_the_loss(now.narrow_outputs(outputs), now.narrow(batch))
            if self._plan.losses:
                now.losses = _loss_of_each(original, outputs, batch)
            if self._plan.gradient:
                loss = original(outputs, batch, *args, **kwargs)
                now.loss = loss if now.weight == 1 else _of_each_loss(loss, lambda t: t * now.weight)
            else:
                device = now.losses.device if now.losses is not None else None
                now.loss = torch.zeros((), device=device, requires_grad=True)  # lets backward run without effect
            return now.loss

        return narrowed

    def eval_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The outputs for the metrics, on the chosen samples."""

        def narrowed(batch: Any, outputs: Any = None) -> Any:
            return original(self._now.narrow(batch), self._now.narrow_outputs(outputs))

        return narrowed

    def update_metric(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The metrics' update, on the chosen samples. Its outputs come from `eval_forward`, already narrowed."""

        def narrowed(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self._now.narrow(batch), *args, **kwargs)

        return narrowed


_METHODS = ("loss", "eval_forward", "update_metric")


class _On(Algorithm):
    """Runs given actions at some events."""

    def __init__(self, actions: dict[Event, Callable[[State], None]]) -> None:
        self._actions = actions

    def match(self, event: Event, state: State) -> bool:
        return event in self._actions

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._actions[event](state)


def _of_each_loss(loss: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a loss: a tensor, or a tuple or dictionary of tensors, as in Composer."""
    if isinstance(loss, Tensor):
        return function(loss)
    if isinstance(loss, dict):
        return {key: _of_each_loss(value, function) for key, value in loss.items()}
    return type(loss)(_of_each_loss(value, function) for value in loss)


@torch.no_grad()
def _loss_of_each(loss: Callable[..., Any], outputs: Any, batch: Any) -> Tensor:
    """The loss of each sample, as the model computes it without a reduction."""
    try:
        each = loss(outputs, batch, reduction="none")
    except TypeError as error:
        raise ValueError(f"{_NEEDS_REDUCTION} It says: {error}") from error
    if not isinstance(each, Tensor) or each.ndim == 0 or len(each) != sample_count(batch):
        raise ValueError(f"{_NEEDS_REDUCTION} It returned something else.")
    return each.detach().flatten(1).mean(1) if each.ndim > 1 else each.detach()


_NEEDS_REDUCTION = (
    "ESAM needs the loss of each sample: the model's loss(outputs, batch, reduction='none') has to return a tensor "
    "with one row for each sample, as ComposerClassifier's loss does with torch's own loss functions."
)


def _composer_model(model: torch.nn.Module) -> torch.nn.Module:
    """The user's model, without the wrapper of data parallelism."""
    return next(module for module in model.modules() if isinstance(module, ComposerModel))
