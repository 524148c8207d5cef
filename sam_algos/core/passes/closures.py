"""The passes of a hand-written loop: what its closure may look like, and what cannot be right."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam_algos.core.passes.contract import Outcome, Pass, Passes
from sam_algos.core.passes.replay import Replay
from sam_algos.core.passes.selection import EVERYTHING, First, Selection
from sam_algos.core.refusals import refuse_trainers
from sam_algos.core.tensors.gradients import marks
from sam_algos.core.tensors.scaling import unscale_
from sam_algos.core.tensors.shards import local, local_parts

__all__ = ["ClosurePasses"]


class ClosurePasses(Passes):
    """A hand-written loop.

    The closure zeroes the gradients, runs forward and backward, and returns the loss. Or it returns a vector, the loss
    of each sample, and leaves zeroing, mean and backward to the step. Where passes run on some of the samples it takes
    an argument, a `Selection`, which called with a batch gives those samples.

    A step may take several closures, one for each microbatch (`Pass.accumulating`). Each runs the first pass on its own
    samples when it comes; later passes run all of them, each from the random state that it had.

    Args:
        model (torch.nn.Module): The model that the closure runs.
        total_steps (int, optional): Number of steps ``T`` of the whole training. Default: ``None`` (unknown).
        scheduled (bool): Whether anything follows the progress of training, so that ``T`` matters.
            Default: ``False``.
        selects (bool): Whether some pass will run on some of the samples only. Default: ``False``.
    """

    def __init__(
        self, model: nn.Module, total_steps: int | None = None, *, scheduled: bool = False, selects: bool = False
    ) -> None:
        super().__init__(selects)
        self._scheduled = scheduled
        self._model = model
        self._total_steps = total_steps
        self._left: _Left | None = None
        self._strangers: _Strangers | None = None
        self._earlier: list[_Microbatch] = []
        self._replays = [self._replay]

    @property
    def begun(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether earlier microbatches of the step have run."""
        return bool(self._earlier)

    def first(self, closure: Callable[..., Any], plan: Pass) -> Outcome:
        """Run the closure; under ``no_sync()`` where the model has it and no synchronisation is wanted."""
        refuse_trainers(closure)
        begun = self._goes_on(plan.params) if self._earlier else False
        self._strangers = _Strangers(plan.params) if not begun and self._holds_strangers(plan.params) else None
        if len(self._replays) == len(self._earlier):
            self._replays.append(Replay())
        replay = self._replays[len(self._earlier)]
        if plan.repeatable:
            narrowed = isinstance(plan.selection, First)
            replay.record(self._model, plan.params, narrowed=narrowed, objects=self._objects())
        outcome = self._call(closure, plan._replace(synchronize=False) if plan.accumulating else plan)
        if self._strangers is not None:
            self._strangers.refuse_if_kept()
            self._strangers = None
        if begun:
            self._refuse_if_zeroed(plan.params, outcome)
        if plan.accumulating:
            loss = outcome.loss.detach() if isinstance(outcome.loss, Tensor) else outcome.loss
            self._earlier.append(_Microbatch(closure if plan.repeatable else None, replay, loss))
            self._left = _Left(plan.params)
            return outcome._replace(complete=False)
        return self._whole(outcome, [microbatch.loss for microbatch in self._earlier], plan)

    def can_repeat(self) -> bool:
        """Whether the closures of all microbatches so far were kept."""
        return all(earlier.closure is not None for earlier in self._earlier)

    def again(self, closure: Callable[..., Any], plan: Pass) -> Outcome:
        """Run the closures of all microbatches again."""
        losses = []
        for earlier in self._earlier:
            if earlier.closure is None:
                raise RuntimeError("A pass is asked for again of which an earlier microbatch was not kept.")
            with earlier.replay.again():
                losses.append(self._call(earlier.closure, plan._replace(synchronize=False)).loss)
        with self._replays[len(self._earlier)].again():
            return self._whole(self._call(closure, plan), losses, plan)

    def _whole(self, outcome: Outcome, losses: list[Any], plan: Pass) -> Outcome:
        """The outcome of a pass whose last microbatch had ``outcome``, and the others these losses."""
        if losses:
            outcome = outcome._replace(loss=sum([*losses, outcome.loss]))
        if plan.scaler is not None:
            unscale_(plan.params, plan.scaler)
        if plan.gradient and not _any_gradient(plan.params):
            _refuse_no_gradient(outcome.loss, plan, self._model)
        return outcome

    def progress(self, index: int) -> float | None:
        """``index / total_steps``, at most 1."""
        if self._scheduled and self._total_steps is not None and index >= self._total_steps:
            self._scheduled = False
            warnings.warn(
                f"Step {index + 1} is beyond total_steps={self._total_steps}: from here on the method's schedule stays "
                "at its end. total_steps must be the steps of the whole training; those of a resumed run count.",
                stacklevel=2,
            )
        return None if self._total_steps is None else min(1.0, index / self._total_steps)

    def model(self) -> nn.Module:
        """The model given at construction."""
        return self._model

    def settle(self, params: list[Tensor]) -> None:
        """Remember the gradients that this step leaves, so that the next can tell them from a stranger's."""
        self._forget_microbatches()
        self._left = _Left(params)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what belongs to the program, or to a step that has begun."""
        return {**vars(self), "_earlier": [], "_left": None, "_objects": tuple}

    def _forget_microbatches(self) -> None:
        self._earlier = []
        for replay in self._replays:
            replay.forget()

    def _goes_on(self, params: list[Tensor]) -> bool:
        """Whether this is a further microbatch of a step; it begins a new one where the gradients were zeroed.

        Raises:
            RuntimeError: If the gradients of the microbatches before were changed.
        """
        if self._left is not None and self._left.lie_in([p.grad for p in params if p.grad is not None]):
            return True
        self._forget_microbatches()
        if any(_is_nonzero(p.grad) for p in params if p.grad is not None):
            raise RuntimeError(
                "The gradients of the step's earlier microbatches were changed before its last one: clip, scale or "
                "average them between optimizer.backward(closure) and optimizer.step()."
            )
        return False

    def _refuse_if_zeroed(self, params: list[Tensor], outcome: Outcome) -> None:
        """Refuse a closure that zeroed the gradients of the microbatches before it.

        Raises:
            RuntimeError: If it did.
        """
        reduced = outcome.synchronized and hasattr(self._model, "no_sync")  # may lie in a bucket since
        if self._left is not None and not reduced and not self._left.is_kept(params):
            self._forget_microbatches()
            raise RuntimeError(
                "The closure zeroed the gradients of the step's earlier microbatches. Zero them once for each step, "
                "before its first optimizer.accumulate(closure), and not in the closures."
            )

    def _call(self, closure: Callable[..., Any], plan: Pass) -> Outcome:
        synchronized = self._synchronizes(plan)
        noted = _Noted(plan.selection) if self._selects else None
        arguments = (closure,) if noted is None else (_on_samples, closure, noted)
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(plan.gradient)
        try:
            if synchronized:
                loss, losses = self._losses(arguments, plan)
            else:
                model: Any = self._model
                with model.no_sync():
                    loss, losses = self._losses(arguments, plan)
        finally:
            torch.set_grad_enabled(before)
        return Outcome(loss, losses, 1.0 if noted is None else noted.chosen(), synchronized)

    def _losses(self, call: tuple[Callable[..., Any], ...], plan: Pass) -> tuple[Any, Tensor | None]:
        """Run the closure; return the loss, and the loss of each sample if the closure returned a vector.

        Such a closure leaves zeroing, the mean and backward to the step.
        """
        loss = self.work("sam/pass", *call)
        losses = _losses_of_samples(loss, plan)
        if losses is None:
            return loss, None
        if plan.accumulating or self._earlier:
            raise TypeError(
                "The closure returned a vector: that of a microbatch has to run loss.backward() itself, with its "
                "share of the step's loss, and return that."
            )
        loss = losses.mean()
        if self._strangers is not None and self._strangers.are_untouched():
            for p in plan.params:
                p.grad = None  # which such a closure leaves to the step
        if plan.gradient and loss.requires_grad and not _any_gradient(plan.params):
            scaled = loss if plan.scaler is None else plan.scaler.scale(loss)
            self.work("sam/pass", scaled.backward)
        return loss, losses.detach()

    def _holds_strangers(self, params: list[Tensor]) -> bool:
        """Remove the gradients of the step before; whether there are any others that are not zero, which stay."""
        left, self._left = self._left, None
        there = [p.grad for p in params if p.grad is not None]
        if there and not (left is not None and left.lie_in(there)) and any(map(_is_nonzero, there)):
            return True
        for p in params:
            p.grad = None
        return False


class _Microbatch(NamedTuple):
    """One that has run; its closure is kept if passes may follow."""

    closure: Callable[..., Any] | None
    replay: Replay
    loss: Any


_LAYOUT = attrgetter("layout")


class _Left:
    """The gradients that a step, or a microbatch, left on the parameters."""

    def __init__(self, params: list[Tensor]) -> None:
        dense = [p.grad for p in params if p.grad is not None and p.grad.layout is torch.strided]
        self._smallest = min(dense, key=Tensor.numel, default=None)  # held, so that no other can take its place
        self._seen = marks(local_parts(dense))

    def is_kept(self, params: list[Tensor]) -> bool:
        """Whether they have only been added to."""
        return self._smallest is None or any(p.grad is self._smallest for p in params)

    def lie_in(self, gradients: list[Tensor]) -> bool:
        """Whether these gradients are exactly the ones left, unchanged."""
        if self._smallest is None or not gradients:
            return self._smallest is None and not gradients
        if id(self._smallest) not in set(map(id, gradients)) or set(map(_LAYOUT, gradients)) != {torch.strided}:
            return False
        return self._seen == marks(local_parts(gradients))


def _any_gradient(params: list[Tensor]) -> bool:
    for p in params:  # noqa: SIM110  (a generator takes longer)
        if p.grad is not None:
            return True
    return False


def _is_nonzero(gradient: Tensor) -> bool:
    return gradient.layout is not torch.strided or bool(local(gradient).any())


def _losses_of_samples(loss: Any, plan: Pass) -> Tensor | None:
    """The loss of each sample, where the closure returned that.

    Raises:
        TypeError: If it returned nothing, something of another shape, or no vector where one is needed.
    """
    if loss is None:
        raise TypeError("The closure returned None: it has to end with `return loss`.")
    if isinstance(loss, Tensor) and loss.ndim > 1:
        raise TypeError(
            f"The closure returned a tensor of shape {tuple(loss.shape)}: it has to return the loss, or a vector with "
            "the loss of each sample."
        )
    if isinstance(loss, Tensor) and loss.ndim == 1:
        return loss
    if plan.losses:
        raise TypeError(
            "This method needs the loss of each sample: the closure has to return them as a vector, and leave "
            "zero_grad(), mean() and backward() to the step, e.g. def closure(samples): inputs, labels = "
            "samples((x, y)); return cross_entropy(model(inputs), labels, reduction='none')."
        )
    return None


def _refuse_no_gradient(loss: Any, plan: Pass, model: nn.Module) -> None:
    """Refuse a closure that did not run backward.

    It may skip a batch whose loss is not finite; and a loss may reach other parameters than the optimizer's, which is a
    no-op step.

    Raises:
        RuntimeError: If so.
    """
    skipped = isinstance(loss, (Tensor, float)) and not math.isfinite(loss)
    if skipped or not any(p.requires_grad for p in plan.params):
        return
    if isinstance(loss, Tensor) and loss.grad_fn is not None:
        forgotten = _reaches(loss.grad_fn, plan.params)
    else:  # the loss does not say; what backward has left elsewhere does
        forgotten = all(p.grad is None for p in model.parameters())
    if forgotten:
        raise RuntimeError(
            "The closure left no gradient on any parameter of the optimizer: it has to call loss.backward()."
        )


def _reaches(node: Any, params: list[Tensor]) -> bool:
    """Whether a graph leads to any of the parameters."""
    searched, wanted, waiting = set(), set(map(id, params)), [node]
    while waiting:
        node = waiting.pop()
        if id(getattr(node, "variable", None)) in wanted:
            return True
        following = {after for after, _ in node.next_functions if after is not None} - searched
        searched |= following
        waiting += following
    return False


class _Strangers:
    """Gradients that were there before the closure, which it has to zero, as it does in plain training.

    The smallest is replaced by infinities: whatever is added to them they stay, unless they are zeroed.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._param = min((p for p in params if p.grad is not None), key=Tensor.numel)
        self._gradient = self._param.grad
        self._mark = torch.full_like(self._param, math.inf)
        self._version = self._mark._version
        self._param.grad = self._mark

    def are_untouched(self) -> bool:
        """Whether the closure neither zeroed them nor added to them."""
        return self._param.grad is self._mark and self._mark._version == self._version

    def refuse_if_kept(self) -> None:
        """Refuse if the closure did not zero them.

        Raises:
            RuntimeError: If so.
        """
        if self._param.grad is self._mark and not bool(local(self._mark).isfinite().all()):
            self._param.grad = self._gradient
            raise RuntimeError(
                "The parameters held gradients when the step began, and the closure did not zero them. Backward "
                "passes outside the closure cannot be repeated at the perturbed weights: let the closure run all "
                "microbatches of the step, or zero the gradients before it."
            )


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

    def fraction(self) -> float | None:
        """How much of the batch, for closures that choose the first samples themselves; None if it is no such share."""
        if not isinstance(self._inner, First):
            return 1.0 if self._inner is EVERYTHING else None
        self._sizes.append(0)
        return self._inner.fraction

    def chosen(self) -> float:
        """Which share of the batches that it was called with.

        Raises:
            TypeError: If it was not called, so that the pass ran on samples that it was not meant for.
        """
        if self._inner is EVERYTHING:
            return 1.0
        if not self._sizes:
            raise TypeError("The closure did not use its argument: it has to run on samples((x, y)) only.")
        if not any(self._sizes):
            return self._inner.fraction if isinstance(self._inner, First) else 1.0
        return sum(map(self._inner.count, self._sizes)) / sum(self._sizes)


def _on_samples(closure: Callable[..., Any], samples: _Noted) -> Any:
    """Call a closure that takes the samples it shall run on; or, for the first ones, their ``fraction``."""
    signature = inspect.signature(closure)
    if "fraction" in signature.parameters and (fraction := samples.fraction()) is not None:
        return closure(fraction=fraction)
    try:
        signature.bind(samples)
    except TypeError:
        raise TypeError(
            "This method runs passes on some of the batch's samples: the closure has to take an argument that chooses "
            "them; write def closure(samples): inputs, labels = samples((x, y)); ..."
        ) from None
    return closure(samples)
