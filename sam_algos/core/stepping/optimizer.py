"""The step: the only place where a sharpness-aware method takes one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sam_algos.core.objective.context import Context
from sam_algos.core.objective.evaluation import NoOutcome
from sam_algos.core.objective.radii import check_radius
from sam_algos.core.parts import Parts
from sam_algos.core.passes.contract import Passes
from sam_algos.core.stepping.activity import Activity
from sam_algos.core.stepping.attempt import Attempt
from sam_algos.core.stepping.compilation import bookkeeping
from sam_algos.core.stepping.figures import Figures
from sam_algos.core.stepping.handover import Handover, refuse_private
from sam_algos.core.stepping.memory import fresh, restored
from sam_algos.core.stepping.pending import Pending
from sam_algos.core.stepping.wrapper import WrappedOptimizer
from sam_algos.core.tensors.gradients import are_finite, stand_still
from sam_algos.core.tensors.scaling import scale_, takes_the_step

__all__ = ["MethodMemory", "SharpnessAwareOptimizer"]

_REQUIRED: Any = object()


class SharpnessAwareOptimizer(WrappedOptimizer):
    """A base optimizer whose steps follow the sharpness-aware gradient.

    To everything around it, it is the base optimizer: parameter groups, state, hooks and checkpoint are the base
    optimizer's own objects, and its class carries the base optimizer's name, under which Composer stores the
    state. A checkpoint written with a method therefore loads without one, and the other way round.

    Users make one with ``wrap`` of a method, e.g. ``AESAM(rho=0.05).wrap(optimizer, model=model,
    total_steps=1000)``, or by giving the method to Composer's Trainer.

    Args:
        base_optimizer (torch.optim.Optimizer): Takes the actual step, always from the unperturbed weights.
        parts (Parts): When, how, what and on which samples: see `sam_algos.core.parts`.
        passes (Passes): How to run the passes.
        synchronize (bool): Whether data-parallel processes average the gradients of the ascent even where no part
            needs it. Default: ``False``, each process climbs by its own (m-sharpness).
        nonfinite (str): What to do with a gradient that is not finite: ``'pass'`` it to the base optimizer, or
            ``'skip'`` the step on all processes, at one more norm and host synchronisation per step.
            Default: ``'pass'``.

    Attributes:
        base_optimizer (torch.optim.Optimizer): The wrapped optimizer.
        metrics (dict): The figures of the last step, computed when they are read: ``sam/applied`` (1 if a gradient was
            taken at displaced weights), ``sam/fraction`` (of the steps taken so far), ``sam/gradients`` (what the step
            cost: one for each gradient, a quarter for one on a quarter of the samples), ``sam/forwards`` (the same for
            forward passes without a gradient, where a part asks for any), ``sam/grad_norm`` (of the first gradient,
            before any clipping; NaN if the gradient was changed before anybody asked), ``sam/nonfinite`` (how many
            gradients so far were not finite, among those whose norm was computed: the first of each step with
            ``'pass'``, the final one with ``'skip'``), ``sam/rho`` (where a schedule sets it), and those of the policy.
            Once read, the norm is computed in every step.

    Raises:
        ValueError: If the base optimizer is already sharpness-aware or calls its closure itself, as LBFGS does, a
            part cannot work with it, or a parameter group's ``rho`` is not a finite number >= 0.
    """

    _step_supports_amp_closure = True  # Composer's Trainer then passes a closure, and scales gradients around it
    _step_supports_amp_scaling = False  # a GradScaler would tell the fused step underneath nothing

    def __init__(
        self,
        base_optimizer: Optimizer,
        parts: Parts,
        passes: Passes,
        *,
        synchronize: bool = False,
        nonfinite: Literal["pass", "skip"] = "pass",
    ) -> None:
        super().__init__(base_optimizer)
        for part in parts.all():
            part.check(base_optimizer)
        refuse_private(base_optimizer, parts)
        self._parts = parts
        self._context = Context.around(base_optimizer, passes, parts.needs(synchronize=synchronize))
        self._nonfinite = nonfinite
        self._handover = Handover(parts)
        self._activity = Activity(parts, passes)
        self._memory: dict[str, Any] = fresh(parts)
        self._pending = Pending()
        self._seeks_scaler = parts.reader("reads_scale") is not None
        self._paused: float | None = None  # since when the program has been doing something else amid a step
        self._figures: Figures | None = None
        self._metrics: dict[str, float] = {}
        self._watched = True  # whether somebody reads the figures, as far as one can tell before the first step

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the last step, by name."""
        if self._figures is not None:
            self._watched = True
            self._metrics = self._figures.read()
        return self._metrics

    @bookkeeping
    def step(self, closure: Callable[..., Any] | None = _REQUIRED) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure (callable): Zeroes the gradients, runs forward and backward, returns the loss; or returns the
                loss of each sample, and leaves the rest to the step. ``None`` is for distributed checkpointing, which
                creates the optimizer's state by a step with every learning rate at zero.

        Returns:
            The loss of the first pass, at the clean weights where the method has one there; None if a pass
            overflowed under Composer and the step was skipped.

        Raises:
            TypeError: If no closure is given, or it returns nothing.
            RuntimeError: If the closure leaves no gradient, or adds to gradients of before.
        """
        if closure is None or closure is _REQUIRED:
            return self._step_without_closure(closure)
        attempt = self._begin(closure)
        passes, evaluation = self._context.passes, attempt.evaluation
        try:
            attempt.ask()
            finite = self._may_step(attempt)
            # Before anybody writes into the gradient. With shards always: the norm takes all processes.
            if self._watched or evaluation.sharded or passes.log is not None:
                evaluation.norm()
            self._finish()
            if finite:
                stepped = attempt.stepped()
                if self._handover.watches:
                    self._handover.give(self.base_optimizer, evaluation.params)
                passes.work("sam/base step", self.base_optimizer.step)
                self._remember(attempt, stepped)
            loss = evaluation.loss
        except NoOutcome:
            self._finish()
            loss = None
        finally:
            passes.settle(evaluation.params)
        self._report(attempt)
        return loss

    @bookkeeping
    def accumulate(self, closure: Callable[..., Any]) -> Any:
        """Run one of a step's first microbatches, in a loop that gets them one at a time.

        ``accumulate`` takes each microbatch but the last, for which ``step(closure)`` or ``backward(closure)`` ends the
        step. The first pass of the step runs on each microbatch as it comes, like plain gradient accumulation. The
        later passes run all closures again, so the step is that of one closure which loops over the microbatches.
        Closures, with the batches that they hold, are kept until the step ends, where passes may follow::

            for i, (x, y) in enumerate(data):
                closure = partial(microbatch, x, y)  # runs backward on loss / 4
                if (i + 1) % 4:
                    optimizer.accumulate(closure)
                else:
                    optimizer.step(closure)
                    optimizer.zero_grad()

        Args:
            closure (callable): Runs forward and backward, and returns the loss, both times as its share of the step's
                loss. It does not zero gradients, except for the first of the step.

        Returns:
            What the closure returned.

        Raises:
            TypeError: If the closure returns nothing, or a vector.
            ValueError: If the method runs passes on some of the samples.
            RuntimeError: If gradients of before were not zeroed, or this closure zeroed those of the step.
        """
        why = None
        if self._parts.samples.selects or self._parts.reader("reads_losses") is not None:
            why = f"{self._parts.samples!r} runs passes on some of the samples"
        elif self._context.private:
            why = f"{type(self.base_optimizer).__name__} keeps the gradients of samples of its own"
        if why is not None:
            raise ValueError(
                f"optimizer.accumulate(): {why}. Let the closure of optimizer.step(closure) run all microbatches."
            )
        attempt, passes = self._begin(closure, accumulating=True), self._context.passes
        try:
            attempt.ask()  # up to its first pass: parts change nothing before they are told to remember
        except NoOutcome:
            self._paused = passes.clock()
        except BaseException:
            passes.settle([])
            raise
        return attempt.evaluation.loss

    @bookkeeping
    def backward(self, closure: Callable[..., Any], *, scaler: GradScaler | None = None) -> Any:
        """Run the passes of a step and leave its gradient on the parameters, for loops that take the step themselves.

        It stands where ``loss.backward()`` stands without a method, and costs what `step` does. The weights are where
        they were; clipping and all that works on gradients may follow; then ``step()`` takes the step, of this
        optimizer, of the base optimizer, or through whatever a framework put around that. The method's
        memory is updated only if that step is taken: not if a ``GradScaler`` skips it, nor if the gradient is zeroed
        first. Graphs built before this call cannot be used after it, as autograd counts the displacement as a change
        of the weights.

        Args:
            closure (callable): As for `step`. It need not zero gradients that ``zero_grad`` has removed.
            scaler (torch.amp.GradScaler, optional): What the closure scales its loss by. The method sees gradients
                without the scale; the one that is left has it, as ``scaler.unscale_`` and ``scaler.step`` expect.
                Default: ``None``.

        Returns:
            The loss of the first pass.

        Raises:
            TypeError: If the closure returns nothing.
            RuntimeError: If the closure leaves no gradient, or adds to gradients of before; those of a ``backward``
                that no step followed are such, too.
        """
        if not hasattr(self.base_optimizer, "_optimizer_step_post_hooks"):
            raise TypeError(
                f"optimizer.backward(): {type(self.base_optimizer).__name__} calls no hooks of its step, which would "
                "not be seen. Use optimizer.step(closure)."
            )
        attempt = self._begin(closure, scaler=scaler)
        passes, evaluation = self._context.passes, attempt.evaluation
        try:
            attempt.ask()
            finite = self._may_step(attempt, scaler)
            evaluation.norm()  # before the program clips the gradient
            self._finish()
        finally:
            passes.settle(evaluation.params)
        if finite:
            if scaler is not None:
                scale_(evaluation.params, scaler)
            self._handover.give(self.base_optimizer, evaluation.params)
            then = partial(self._taken, attempt, passes.clock(), scaler)
        else:
            self.zero_grad()  # make the caller's step() a no-op
            then = None
            self._report(attempt)
        self._pending.wait(self.base_optimizer, evaluation.params, then)
        return evaluation.loss

    def _taken(self, attempt: Attempt, began: float, scaler: GradScaler | None) -> None:
        """Remember a step that somebody took with the gradient of `backward`."""
        if self._seeks_scaler and scaler is None:
            self._warn_of_scaler()
        passes = self._context.passes
        passes.seconds += passes.clock() - began  # clipping and the step are the program's
        self._remember(attempt, attempt.stepped())
        self._report(attempt)
        passes.settle(attempt.evaluation.params)
        self._opt_called = True  # what schedulers of this optimizer look for, where the base optimizer was stepped

    def _warn_of_scaler(self) -> None:
        """Warn if the first step is taken by a ``GradScaler`` that `backward` was not told of."""
        self._seeks_scaler = False
        if takes_the_step():
            warnings.warn(
                f"A GradScaler takes the step, and backward() was not told of it, so "
                f"{self._parts.reader('reads_scale')!r} takes the scale of the loss for the gradient's own. Call "
                "optimizer.backward(closure, scaler=scaler).",
                stacklevel=2,
            )

    def _begin(
        self, closure: Callable[..., Any], *, scaler: GradScaler | None = None, accumulating: bool = False
    ) -> Attempt:
        """Begin a step, whatever became of the one before."""
        context, passes = self._context, self._context.passes
        if self._figures is not None:
            self._figures.close()
        if self._pending.watches and self._pending.drop():
            passes.settle([])  # its gradients were never used: the closure has to zero them
        if self._paused is not None:
            passes.seconds += passes.clock() - self._paused  # data and what else is the program's
            self._paused = None
        if context.stopwatch is not None and not passes.begun:
            context.stopwatch.start(self._memory["seconds"])
        context.radii.read(self.base_optimizer)
        return Attempt(
            context,
            self._parts,
            self.base_optimizer,
            closure,
            self._memory,
            scaler=scaler,
            accumulating=accumulating,
        )

    def _may_step(self, attempt: Attempt, scaler: GradScaler | None = None) -> bool:
        """Whether a step may be taken on the gradient; a scaler leaves out those that are not finite by itself."""
        if self._nonfinite == "pass" or (scaler is not None and scaler.is_enabled()):
            return True
        finite = are_finite(attempt.evaluation.params)
        self._memory["nonfinite"] += not finite
        return finite

    def _finish(self) -> None:
        """Let the program act on the final gradient."""
        passes = self._context.passes
        if passes.finish is not None:
            with torch.enable_grad():
                passes.work("sam/finish", passes.finish)

    def _remember(self, attempt: Attempt, stepped: set[int]) -> None:
        """The base optimizer has stepped."""
        attempt.remember(stepped)
        if not attempt.still:
            evaluation = attempt.evaluation
            self._activity.note(attempt.decision.sharp, evaluation.climbed, evaluation.progress)

    def _report(self, attempt: Attempt) -> None:
        """Hand out the figures of the step, and stop its watch if it was taken."""
        evaluation, context = attempt.evaluation, self._context
        self._watched &= self._figures is not None or context.passes.log is not None
        self._figures = Figures(
            evaluation,
            attempt.decision.log,
            self._memory,
            counts=self._nonfinite == "pass",
            rho=not context.needs.constant_radius,
            losses=context.needs.losses,
        )
        if context.passes.log is not None:
            context.passes.log(self._figures.read())
        if context.stopwatch is not None and self._memory["step"] > evaluation.index:
            context.stopwatch.stop(evaluation.climbed)

    def _step_without_closure(self, closure: object | None) -> None:
        """Take the step that `backward` prepared; or one where nothing moves, which creates the state of a step."""
        if self._pending:
            self.base_optimizer.step()
            return
        if closure is _REQUIRED or not stand_still(self.param_groups):
            raise TypeError(
                "A sharpness-aware optimizer needs the closure: optimizer.step(closure), or "
                "optimizer.backward(closure) and then optimizer.step(). A loop that calls step() alone would train "
                "without the method."
            )
        self.base_optimizer.step()
        for name in self._parts.buffers():
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                self.state[p].setdefault(name, torch.zeros_like(p))

    def count_once(self, objects: Callable[[], Iterable[object]]) -> None:
        """Name objects of the program that closures change, such as counters and logs.

        Of the model's modules a step counts one pass, as training without a method does. Other objects count every
        pass, unless they are named here: their attributes (numbers, lists, dictionaries, sets, generators, small
        tensors) are then treated like those of modules.

        Args:
            objects (callable): Gives the objects; called in every step.

        Example:
            >>> import torch
            >>> from types import SimpleNamespace
            >>> from sam_algos import SAM
            >>> model, seen = torch.nn.Linear(2, 1), SimpleNamespace(samples=0)
            >>> optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
            >>> optimizer.count_once(lambda: [seen])
            >>> def closure():
            ...     seen.samples += 4
            ...     return model(torch.ones(4, 2)).square().mean(1)
            >>> loss = optimizer.step(closure)  # two passes
            >>> seen.samples
            4
        """
        self._context.passes.count_once(objects)

    def method_state_dict(self) -> dict[str, Any]:
        """What the method remembers between steps, in Python numbers; ``state_dict`` holds all the rest.

        A hand-written loop saves it beside ``state_dict()``. Composer's Trainer and the mixins of
        ``sam_algos.integrations`` do so by themselves; other programs can be given `method_memory` to save.
        """
        if self._figures is not None:
            self._figures.read()  # counts the last gradient if it is not finite
        return copy.deepcopy(self._memory)

    def load_method_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `method_state_dict` returned; the counters also where another method wrote it."""
        self._memory.update(restored(self._parts, state))

    def warn_if_idle(self) -> None:
        """Warn if no step was sharpness-aware, though the method was to act: its turn never came, or it could not.

        To be called at the end of training, as Composer's Trainer and ``sam_algos.integrations`` do. It says nothing
        where the options say that no step will be: a radius or a probability of 0, ``LateSAM(start=1)``.

        Example:
            >>> import warnings
            >>> from sam_algos import LateSAM
            >>> model = torch.nn.Linear(2, 1)
            >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> optimizer = LateSAM(start=0.9).wrap(base, model=model, total_steps=10)
            >>> for _ in range(5):
            ...     loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
            >>> with warnings.catch_warnings(record=True) as found:
            ...     warnings.simplefilter("always")
            ...     optimizer.warn_if_idle()
            >>> print(found[0].message)  # doctest: +NORMALIZE_WHITESPACE
            None of 5 steps was sharpness-aware, so this was training without the method: Late(start=0.9) asked for
            none, the last at 40% of training.
        """
        self._activity.end(self._memory)

    @property
    def method_memory(self) -> MethodMemory:
        """What the method remembers, for programs that save and load any object with a ``state_dict``.

        So do accelerate, ``accelerator.register_for_checkpointing(optimizer.method_memory)``, and distributed
        checkpoints.
        """
        return MethodMemory(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the base optimizer's parameters."""
        if self._figures is not None and self._figures.lies_on:
            self._figures.before_zeroing()
        self.base_optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; an entry ``rho`` is the group's own radius."""
        if "rho" not in self.defaults:
            check_radius(param_group)
        self.base_optimizer.add_param_group(param_group)

    def __reduce__(self) -> Any:
        """Pickle the figures as they read now."""
        kind, arguments, attributes = super().__reduce__()
        metrics = self._metrics if self._figures is None else self._figures.read()
        return kind, arguments, {**attributes, "_figures": None, "_metrics": metrics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes over, and watch the base optimizer, which leaves its hooks behind."""
        super().__setstate__(state)
        self._context.radii.watch(self.base_optimizer)

    def __repr__(self) -> str:
        """The parts around the base optimizer."""
        return f"{self._parts!r} around {self.base_optimizer!r}"


class MethodMemory:
    """What a method remembers between steps, as an object that a checkpoint can hold.

    Args:
        optimizer (SharpnessAwareOptimizer): The optimizer this memory belongs to.
    """

    def __init__(self, optimizer: SharpnessAwareOptimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's ``method_state_dict()``."""
        return self._optimizer.method_state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The optimizer's ``load_method_state_dict()``."""
        self._optimizer.load_method_state_dict(state_dict)
