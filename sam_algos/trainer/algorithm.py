"""Methods as Composer algorithms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from composer.algorithms import SAM as ComposerSAM
from composer.algorithms.sam import SAMOptimizer as ComposerSAMOptimizer
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from sam_algos.core.refusals import refuse_fsdp1
from sam_algos.core.stepping.wrapper import WrappedOptimizer
from sam_algos.trainer.instances import refuse_class
from sam_algos.trainer.passes import TrainerPasses
from sam_algos.trainer.sharded import load_without, will_be_fsdp1

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sam_algos.core.parts import Parts
    from sam_algos.core.passes.contract import Passes
    from sam_algos.core.stepping.optimizer import SharpnessAwareOptimizer

__all__ = ["SharpnessAwareMemory", "WrapsOptimizer"]


class WrapsOptimizer(Algorithm):
    """Makes a method a Composer algorithm, which wraps the optimizer on :attr:`.Event.INIT`."""

    if TYPE_CHECKING:  # provided by `Method`

        def composition(self) -> Parts: ...  # noqa: D102
        def _wrap(self, optimizer: Optimizer, passes: Passes) -> SharpnessAwareOptimizer: ...

    @refuse_class
    def match(self, event: Event, state: State) -> bool:
        """Run on :attr:`.Event.INIT`."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> int | None:
        """Wrap the optimizer; give this Trainer its own instance, and an algorithm that saves the method's memory."""
        _refuse_conflicts(self, state)
        _refuse_checkpoints_of_composers_sam(type(self).__name__, state)
        parts = self.composition()
        passes = TrainerPasses(state, logger, selects=parts.samples.selects)
        optimizer = self._wrap(state.optimizers[0], passes)
        state.optimizers = (optimizer,)
        load_without(parts.buffers(), state)
        method: Any = self  # a dataclass
        own = replace(method)
        state.algorithms = [*(own if a is self else a for a in state.algorithms), SharpnessAwareMemory(optimizer)]
        return None

    def state_dict(self) -> dict[str, Any]:
        """The arguments. `SharpnessAwareMemory` holds the method's memory."""
        return {"repr": repr(self)}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Load nothing: the run's own arguments apply."""


class SharpnessAwareMemory(Algorithm):
    """Saves and loads a method's memory between steps, as Python primitives; warns at the end of fit if it was idle.

    Composer stores an algorithm's state under the name of its class. All methods share this class, so that the counters
    survive a change of method.

    Args:
        optimizer (SharpnessAwareOptimizer): The run's optimizer.
    """

    def __init__(self, optimizer: SharpnessAwareOptimizer) -> None:
        self._optimizer = optimizer

    def match(self, event: Event, state: State) -> bool:
        """Run on :attr:`.Event.FIT_END`."""
        return event == Event.FIT_END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Warn if the method never acted."""
        self._optimizer.warn_if_idle()

    def state_dict(self) -> dict[str, Any]:
        """The method's memory."""
        return {"repr": repr(self), "memory": self._optimizer.method_state_dict()}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore the method's memory."""
        if isinstance(state.get("memory"), dict):
            self._optimizer.load_method_state_dict(state["memory"])

    def __repr__(self) -> str:
        """A string that can be evaluated, as Composer stores it."""
        return "SharpnessAwareMemory()"


def _refuse_conflicts(method: WrapsOptimizer, state: State) -> None:
    name = type(method).__name__
    refuse_fsdp1(name, state.model, configured=will_be_fsdp1(state))
    others = [a for a in state.algorithms if isinstance(a, (WrapsOptimizer, ComposerSAM)) and a is not method]
    if others:
        raise ValueError(f"{name}: a run takes one sharpness-aware method; this one also has {others[0]!r}.")
    if len(state.optimizers) != 1:
        raise ValueError(f"{name}: a run takes one optimizer; this one has {len(state.optimizers)}.")
    if isinstance(state.optimizers[0], WrappedOptimizer):
        raise ValueError(f"{name}: the Trainer's optimizer is already sharpness-aware; give it the base optimizer.")


def _refuse_checkpoints_of_composers_sam(name: str, state: State) -> None:
    """Refuse to load such a checkpoint: it has no momentum, and Composer would only warn and go on without."""
    load = state.load_optim_state

    def load_or_refuse(state_dict: dict[str, Any], strict: bool = True) -> None:
        if ComposerSAMOptimizer.__qualname__ in (state_dict["optimizers"] or ()):
            raise ValueError(
                f"{name}: this checkpoint was written under Composer's SAM, which does not save the base optimizer's "
                "state, such as momentum. To start with fresh state, use "
                'Trainer(load_ignore_keys=["state/optimizers"]); to load only the weights, use load_weights_only=True.'
            )
        load(state_dict, strict)

    state.load_optim_state = load_or_refuse
