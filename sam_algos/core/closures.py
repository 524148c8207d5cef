"""The passes of a hand-written loop: what its closure may look like, and what cannot be right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sam_algos.core.passes import Outcome, Pass, Passes
from sam_algos.core.profiling import span
from sam_algos.core.selection import EVERYTHING, First, Selection
from sam_algos.core.shards import local

__all__ = ["ClosurePasses"]

_Gradients = dict[Tensor, tuple[Tensor, int]]  # of parameters, with their versions


class ClosurePasses(Passes):
    """A hand-written loop.

    The closure zeroes the gradients, runs forward and backward, and returns the loss. Or it returns a vector, the loss
    of each sample, and leaves zeroing, mean and backward to the step. Where passes run on some of the samples it takes
    an argument, a `Selection`, which called with a batch gives those samples.

    Args:
        model (torch.nn.Module): The model that the closure runs.
        total_steps (int, optional): Number of steps ``T`` of the whole training. Default: ``None`` (unknown).
        selects (bool): Whether some pass will run on some of the samples only. Default: ``False``.
    """

    def __init__(self, model: nn.Module, total_steps: int | None = None, *, selects: bool = False) -> None:
        super().__init__(selects)
        self._model = model
        self._total_steps = total_steps
        self._left: tuple[Tensor, Tensor, int] | None = None

    def first(self, closure: Callable[..., Any], plan: Pass) -> Outcome:
        """Run the closure; under ``no_sync()`` where the model has it and no synchronisation is wanted."""
        refuse_trainers(closure)
        strangers = self._take_away_gradients(plan.params)
        if plan.repeatable:
            with span("sam/replay"):
                self._replay.record(self._model, plan.params, narrowed=isinstance(plan.selection, First))
        outcome = self._call(closure, plan, strangers)
        _refuse_accumulated(strangers)
        without = plan.gradient and not any(p.grad is not None for p in plan.params)
        if without and any(p.requires_grad for p in plan.params):
            raise RuntimeError(
                "The closure left no gradient on any parameter of the optimizer: it has to call loss.backward()."
            )
        return outcome

    def again(self, closure: Callable[..., Any], plan: Pass) -> Outcome:
        """Run the closure again."""
        with span("sam/replay"), self._replay.again():
            return self._call(closure, plan)

    def progress(self, index: int) -> float | None:
        """``index / total_steps``, at most 1."""
        return None if self._total_steps is None else min(1.0, index / self._total_steps)

    def model(self) -> nn.Module:
        """The model given at construction."""
        return self._model

    def settle(self, params: list[Tensor]) -> None:
        """Remember a gradient that this step leaves, so that the next can tell it from a stranger's."""
        super().settle(params)
        found = next((p for p in reversed(params) if p.grad is not None), None)
        self._left = None if found is None or found.grad is None else (found, found.grad, found.grad._version)

    def _call(self, closure: Callable[..., Any], plan: Pass, strangers: _Gradients | None = None) -> Outcome:
        synchronized = self._synchronizes(plan)
        unsynchronized: Any = nullcontext if synchronized else self._model.no_sync
        noted = _Noted(plan.selection)
        with span("sam/pass"), unsynchronized(), torch.set_grad_enabled(plan.gradient):
            loss = _on_samples(closure, noted) if self._selects else closure()
            if loss is None:
                raise TypeError("The closure returned None: it has to end with `return loss`.")
            losses = loss if isinstance(loss, Tensor) and loss.ndim == 1 else None
            if losses is not None:
                loss = losses.mean()
                if plan.gradient and loss.requires_grad and _are_untouched(plan.params, strangers or {}):
                    for p in strangers or ():
                        p.grad = None
                    loss.backward()
        if plan.losses and losses is None:
            raise TypeError(
                "This method needs the loss of each sample: the closure has to return them as a vector, and leave "
                "zero_grad(), mean() and backward() to the step, e.g. def closure(samples): inputs, labels = "
                "samples((x, y)); return cross_entropy(model(inputs), labels, reduction='none')."
            )
        return Outcome(loss, None if losses is None else losses.detach(), noted.share(), synchronized)

    def _take_away_gradients(self, params: list[Tensor]) -> _Gradients:
        """Remove the gradients of the step before; returns any others that are not zero, which stay."""
        there = [p for p in params if p.grad is not None]
        theirs = () if self._are_left_overs() else there
        if any(_is_nonzero(p.grad) for p in theirs if p.grad is not None):
            return {p: (p.grad, p.grad._version) for p in there if p.grad is not None}
        for p in there:
            p.grad = None
        self._left = None
        return {}

    def _are_left_overs(self) -> bool:
        if self._left is None:
            return False
        p, gradient, version = self._left
        return p.grad is gradient and gradient._version == version


def _is_nonzero(gradient: Tensor) -> bool:
    return gradient.layout is not torch.strided or bool(local(gradient).any())


class _Noted(Selection):
    """A selection that notes how many of how many samples it chose."""

    def __init__(self, inner: Selection) -> None:
        self._inner = inner
        self._sizes: list[int] = []

    def rows(self, size: int) -> slice | Tensor:
        self._sizes.append(size)
        return self._inner.rows(size)

    def __call__(self, batch: Any) -> Any:
        return batch if self._inner is EVERYTHING else super().__call__(batch)

    def share(self, size: int = 0) -> float:
        """Of the batches that it was called with; as asked for, if it was not called."""
        if self._inner is EVERYTHING:
            return 1.0
        if not self._sizes:
            return self._inner.fraction if isinstance(self._inner, First) else 1.0
        return sum(self._inner.share(n) * n for n in self._sizes) / max(1, sum(self._sizes))

    @property
    def fraction(self) -> float:
        """How much of the batch, for closures that choose the first samples themselves."""
        return self._inner.fraction if isinstance(self._inner, First) else 1.0


def _on_samples(closure: Callable[..., Any], samples: _Noted) -> Any:
    """Call a closure that takes the samples it shall run on; or, for the first ones, their ``fraction``."""
    parameters = inspect.signature(closure).parameters
    if "fraction" in parameters and (isinstance(samples._inner, First) or samples._inner is EVERYTHING):
        return closure(fraction=samples.fraction)
    try:
        inspect.signature(closure).bind(samples)
    except TypeError:
        raise TypeError(
            "This method runs passes on some of the batch's samples: the closure has to take an argument that chooses "
            "them; write def closure(samples): inputs, labels = samples((x, y)); ..."
        ) from None
    return closure(samples)


def refuse_trainers(closure: Callable[..., Any]) -> None:
    """Refuse the closure of Composer's Trainer, whose second pass has to be told apart from the first.

    Raises:
        TypeError: If it is one.
    """
    if getattr(closure, "__module__", "").startswith("composer.trainer"):
        raise TypeError(
            "Composer's Trainer was given an optimizer that is already wrapped. Give it the base optimizer, and the "
            "method as an algorithm: Trainer(optimizers=optimizer, algorithms=[SAM(...)])."
        )


def _are_untouched(params: list[Tensor], strangers: _Gradients) -> bool:
    """Whether no backward pass has reached the parameters, whose only gradients are those of before."""
    for p in params:
        gradient, version = strangers.get(p, (None, 0))
        if p.grad is not gradient or (gradient is not None and gradient._version != version):
            return False
    return True


def _refuse_accumulated(strangers: _Gradients) -> None:
    """Refuse gradients that were there before the closure and that it added to.

    Raises:
        RuntimeError: If there are any.
    """
    kept = [p.grad._version - version for p, (g, version) in strangers.items() if p.grad is g and p.grad is not None]
    # Zeroing in place and adding to it are two changes; one change, or none, is no zeroing.
    if kept and max(kept) < 2:
        raise RuntimeError(
            "The parameters held gradients when step(closure) began, and the closure did not zero them. Backward "
            "passes outside the closure cannot be repeated at the perturbed weights: let the closure run all "
            "microbatches of the step, or zero the gradients before it."
        )
