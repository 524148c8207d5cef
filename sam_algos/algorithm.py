"""Methods as Composer algorithms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from composer.algorithms import SAM as ComposerSAM
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch.optim import Optimizer

from sam_algos.optimizer import SharpnessAwareOptimizer
from sam_algos.options import Fraction, Options
from sam_algos.parts import Parts
from sam_algos.passes import ClosurePasses, Passes
from sam_algos.sharded import load_without, refuse_fsdp1
from sam_algos.trainer_passes import TrainerPasses

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
        ascent_fraction (float): The fraction of each microbatch, its first samples, that the first pass of a sharp
            step sees; in (0, 1], rounded up to whole samples and to two where there are two. That pass only has to
            find the direction of the ascent, and then costs this fraction of a gradient. Loss, metrics,
            ``sam/grad_norm`` and the statistics of BatchNorm are those of its samples; inputs and labels are as in
            the second pass, dropout is not. Not for samples that depend on one another, such as stacked pairs, nor
            with layers that need more samples (GhostBatchNorm's ghost batch), nor with policies and descents that
            need the plain gradient of the whole batch. Default: ``1.0``, as the papers do.
    """

    synchronize: bool = field(default=False, kw_only=True)
    nonfinite: Literal["pass", "skip"] = field(default="pass", kw_only=True)
    ascent_fraction: Fraction = field(default=1.0, kw_only=True)
    _live: list[SharpnessAwareOptimizer] = field(default_factory=list, init=False, compare=False, kw_only=True)

    @abstractmethod
    def parts(self) -> Parts:
        """When, how and what: the composition that this method is."""

    def __post_init__(self) -> None:
        """Check the arguments, and that they make parts."""
        super().__post_init__()
        policy, _, descent = self.parts()
        if self.ascent_fraction < 1 and (policy.reads_gradient or descent.reads_plain):
            reader = policy if policy.reads_gradient else descent
            raise ValueError(
                f"{type(self).__name__}(ascent_fraction={self.ascent_fraction!r}): ascent_fraction must be 1 with "
                f"{type(reader).__name__}, which needs the plain gradient of the whole batch."
            )

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
            optimizer,
            self.parts(),
            passes,
            synchronize=self.synchronize,
            nonfinite=self.nonfinite,
            ascent_fraction=self.ascent_fraction,
        )

    def match(self, event: Event, state: State) -> bool:
        """Run on :attr:`.Event.INIT`."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        """Wrap the optimizer, and leave in this Trainer an instance that saves and loads for it alone."""
        self._refuse_conflicts(state)
        own = replace(self)
        own._live.append(own._wrap(state.optimizers[0], TrainerPasses(state, logger)))
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
