"""How the step reaches the training program around it: its passes, its clock and its log."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sam_algos.core.passes.replay import Replay
from sam_algos.core.passes.selection import Selection
from sam_algos.core.profiling import within

__all__ = ["Outcome", "Pass", "Passes"]


class Pass(NamedTuple):
    """How to run a pass.

    Attributes:
        params: The parameters that are trained.
        selection: The samples to run on.
        synchronize: Whether data-parallel processes average its gradient.
        gradient: Whether a gradient is wanted, and not only a forward pass.
        losses: Whether the loss of each sample is wanted.
        repeatable: Whether another pass may follow.
        accumulating: Whether further microbatches of the step will follow the one that runs.
        scaler: What the closure scales its loss by, if it does.
    """

    params: list[Tensor]
    selection: Selection
    synchronize: bool
    gradient: bool
    losses: bool
    repeatable: bool
    accumulating: bool = False
    scaler: GradScaler | None = None


class Outcome(NamedTuple):
    """What a pass left, besides gradients.

    Attributes:
        loss: What the closure returned, or the mean of the losses.
        losses: The loss of each sample if asked for, detached.
        share: The share of the batch that it ran on.
        synchronized: Whether the gradient is the average over all processes.
        complete: Whether the pass has seen the whole batch, and not only its first microbatches.
    """

    loss: Any
    losses: Tensor | None
    share: float
    synchronized: bool
    complete: bool = True


class Passes(ABC):
    """How the loop reaches the training program around it: its passes, its clock and its log.

    Args:
        selects: Whether some pass will run on some of the samples only.

    Attributes:
        clock (callable): Gives the time in seconds.
        seconds (float): How long the program has been `working`, counted where steps are `timed`.
        timed (bool): Whether a part reads how long steps take.
        begun (bool): Whether earlier microbatches of the step have run.
        finish (callable | None): Lets the program act on the final gradient, just before the base optimizer does.
        log (callable | None): Logs the figures of a step; None where the program reads them from the optimizer.
    """

    begun = False

    def __init__(self, selects: bool) -> None:
        self.clock: Callable[[], float] = time.perf_counter
        self.seconds = 0.0
        self.timed = False
        self.finish: Callable[[], None] | None = None
        self.log: Callable[[dict[str, float]], None] | None = None
        self._selects = selects
        self._objects: Callable[[], Iterable[object]] = tuple
        self._replay = Replay()

    def can_repeat(self) -> bool:
        """Whether everything that this step has run so far was kept, so that it can run again."""
        return True

    def count_once(self, objects: Callable[[], Iterable[object]]) -> None:
        """Put back the attributes of the program's ``objects`` after each repetition of a pass."""
        self._objects = objects

    @abstractmethod
    def first(self, closure: Callable[..., Any], plan: Pass) -> Outcome | None:
        """Run the first pass of a step, which counts; None on an overflow."""

    @abstractmethod
    def again(self, closure: Callable[..., Any], plan: Pass) -> Outcome | None:
        """Repeat the first pass without a trace; None on an overflow."""

    @abstractmethod
    def progress(self, index: int) -> float | None:
        """The share of training done before step ``index``, in [0, 1]; None if unknown."""

    def epoch(self) -> int | None:
        """How many steps an epoch has; None if unknown."""
        return None

    @abstractmethod
    def model(self) -> nn.Module:
        """The model that the closure runs."""

    def tensors(self) -> Iterable[Tensor]:
        """All parameters and buffers of the model, some of which may be views of others."""
        model = self.model()
        return (*model.parameters(), *model.buffers())

    def work(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function whose time training without a method would spend, too; a range in a profile.

        The time does not count as the method's own.
        """
        if not self.timed:
            return within(name, function, *args, **kwargs)
        began = self.clock()
        try:
            return within(name, function, *args, **kwargs)
        finally:
            self.seconds += self.clock() - began

    def settle(self, params: list[Tensor]) -> None:
        """The step is over, however it ended."""
        self._replay.forget()

    def _synchronizes(self, plan: Pass) -> bool:
        """Whether data-parallel processes will average the gradient: where it is wanted, and where it has to be."""
        if plan.synchronize:
            return True
        model = self.model()
        # DistributedDataParallel with a static graph cannot begin with a pass under no_sync.
        return not hasattr(model, "no_sync") or bool(getattr(model, "static_graph", False))
