"""How the step reaches the training program around it: its passes, its clock and its log."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from sam_algos.replay import Replay

__all__ = ["ClosurePasses", "FirstPass", "Passes"]


class FirstPass(NamedTuple):
    """How the pass at the clean weights is to be run.

    Attributes:
        synchronize: Whether data-parallel processes average this gradient.
        repeatable: Whether a second pass may follow.
        fraction: How much of the batch it sees, in (0, 1].
        devices: The devices of the parameters.
    """

    synchronize: bool
    repeatable: bool
    fraction: float
    devices: Collection[torch.device]


class Passes(ABC):
    """How the loop reaches the training program around it: its passes, its clock and its log."""

    @abstractmethod
    def first(self, closure: Callable[..., Any], plan: FirstPass) -> Any:
        """Run the pass at the clean weights.

        Args:
            closure: Zeroes the gradients, runs forward and backward, returns the loss; None on an overflow.
            plan: How.
        """

    @abstractmethod
    def second(self, closure: Callable[..., Any]) -> Any:
        """Run the pass at the perturbed weights as a repetition of the first."""

    @abstractmethod
    def progress(self, index: int) -> float | None:
        """The share of training done before step ``index``, in [0, 1]; None if unknown."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The model that the closure runs."""

    def finish(self) -> None:  # noqa: B027  (a program may have nothing to do here)
        """Let the program act on the final gradient, just before the base optimizer does."""

    def log(self, metrics: dict[str, float]) -> None:  # noqa: B027
        """Report the figures of the step."""


class ClosurePasses(Passes):
    """A hand-written loop: the closure takes no arguments, or ``fraction``, of the batch to run on.

    Args:
        model (torch.nn.Module): The model that the closure runs.
        total_steps (int, optional): Number of steps ``T`` of the whole training. Default: ``None`` (unknown).
    """

    def __init__(self, model: nn.Module, total_steps: int | None = None) -> None:
        self._model = model
        self._total_steps = total_steps
        self._replay = Replay()

    def first(self, closure: Callable[..., Any], plan: FirstPass) -> Any:
        """Run the closure; under ``no_sync()`` where the model has it and no synchronisation is wanted."""
        if plan.repeatable:
            self._replay.record(self._model, plan.devices, narrowed=plan.fraction < 1)
        no_sync = getattr(self._model, "no_sync", None)
        with nullcontext() if plan.synchronize or no_sync is None else no_sync():
            loss = closure() if plan.fraction == 1 else _on_fraction(closure, plan.fraction)
        if plan.repeatable and getattr(self._model, "gradient_as_bucket_view", False):
            # DistributedDataParallel would write the second pass's gradients over these.
            for p in self._model.parameters():
                p.grad = None if p.grad is None else p.grad.clone()
        return loss

    def second(self, closure: Callable[..., Any]) -> Any:
        """Run the closure again."""
        with self._replay.again():
            return closure()

    def progress(self, index: int) -> float | None:
        """``index / total_steps``, at most 1."""
        return None if self._total_steps is None else min(1.0, index / self._total_steps)

    def model(self) -> nn.Module:
        """The model given at construction."""
        return self._model


def _on_fraction(closure: Callable[..., Any], fraction: float) -> Any:
    try:
        inspect.signature(closure).bind(fraction=fraction)
    except TypeError:
        raise TypeError(
            f"With ascent_fraction={fraction:g} the closure is called as closure(fraction={fraction:g}) where it shall "
            "run on that much of the batch only; write def closure(fraction=1.0)."
        ) from None
    return closure(fraction=fraction)
