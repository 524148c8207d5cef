"""How an optimizer takes its place: in a bare loop, or in Composer's Trainer for one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer import Algorithm, Event, Logger, State
from torch import nn
from torch.optim import Optimizer

from benchmarks.timing import Span
from sam_algos import SharpnessAwareOptimizer


class Delegate:
    """Stands in for an optimizer: whatever is not defined here is that one's.

    Args:
        optimizer: The one.
    """

    _step_supports_amp_closure = True

    def __init__(self, optimizer: Any) -> None:
        """Stand in for ``optimizer``."""
        self.inner = optimizer

    def __getattr__(self, name: str) -> Any:
        """The optimizer's own."""
        return getattr(self.inner, name)


class Floor(Delegate):
    """Two closures and one base step: what any SAM step has to do at least.

    Attributes:
        base: The last base step.
    """

    base: Span

    def __init__(self, base: Optimizer, _: nn.Module) -> None:
        """Run it with ``base``."""
        super().__init__(base)

    def step(self, closure: Callable[..., Any]) -> Any:
        """Both passes and the step, and nothing in between."""
        closure = torch.enable_grad()(closure)
        loss = closure()
        closure(loss_dict={})
        self.base = Span()
        self.inner.step()
        self.base.end()
        return loss


class FirstPassOutside(Delegate):
    """An optimizer of pytorch_optimizer, whose caller runs the first pass.

    Args:
        cls: The optimizer's class.
        base: It makes a base optimizer of its own like this one, which here shares this one's state.
        **options: Its arguments.
    """

    def __init__(self, cls: Any, base: Optimizer, **options: Any) -> None:
        """Make it around one like ``base``."""
        groups = [{"params": group["params"]} for group in base.param_groups]
        super().__init__(cls(groups, lambda params, **_: type(base)(params, **base.defaults), **options))
        self.inner.base_optimizer.state = base.state

    def step(self, closure: Callable[..., Any]) -> Any:
        """The first pass, then the optimizer's step."""
        with torch.enable_grad():
            loss = closure()
        self.inner.step(closure)
        return loss


class Seat(Delegate):
    """An optimizer whose closures are counted.

    Attributes:
        passes: How many its last step ran.
    """

    passes = 0

    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Step, and count."""
        if closure is None:
            self.passes = 1
            return self.inner.step()
        self.passes = 0

        def counted(**arguments: Any) -> Any:
            self.passes += 1
            return closure(**arguments)

        return self.inner.step(closure=counted)

    def figures(self) -> dict[str, float | Span]:
        """What to keep of the last step besides its time."""
        base = {"base": self.inner.base} if isinstance(self.inner, Floor) else {}
        ours = isinstance(self.inner, SharpnessAwareOptimizer)
        second = self.inner._ascent_fraction if ours else 1.0  # what the ascent adds to a step's one gradient
        return {"passes": 1.0 + second * (self.passes - 1), **base}


@dataclass(frozen=True)
class Contender:
    """One implementation with its settings.

    Args:
        name: What the tables call it.
        line: Which of its kin it stands on one line with in the plot.
        package: Whose it is.
        wrap: Makes the optimizer from the base optimizer and the model, for the bare loop.
        algorithm: Makes the algorithm that does so in the Trainer; without it `wrap` serves there too.
        modes: The loops in which it can be used, or tells something; all if empty.
        essential: Whether it is compared on large models too.
    """

    name: str
    line: str
    package: str
    wrap: Callable[[Optimizer, nn.Module], Any]
    algorithm: Callable[[], Algorithm] | None = None
    modes: tuple[str, ...] = ()
    essential: bool = False


@dataclass(frozen=True)
class Place:
    """A contender in the Trainer: what of its state is the contender's own."""

    seat: Any
    algorithms: list[Algorithm]
    scaler: Any

    @classmethod
    def make(cls, contender: Contender, state: State, logger: Logger, seat: Callable[[Any], Any] = Seat) -> Place:
        """Let a contender set itself up in the Trainer, whose state is afterwards as it was."""
        before = tuple(state.optimizers), list(state.algorithms), state.scaler
        if contender.algorithm is None:
            optimizer: Any = contender.wrap(state.optimizers[0], state.model)
        else:
            algorithm = contender.algorithm()
            state.algorithms = [*before[1], algorithm]
            for event in (Event.INIT, Event.AFTER_LOAD):
                if algorithm.match(event, state):
                    algorithm.apply(event, state, logger)
            optimizer = state.optimizers[0]
        place = cls(seat(optimizer), list(state.algorithms), state.scaler)
        state.optimizers, state.algorithms, state.scaler = before  # pyright: ignore[reportAttributeAccessIssue]
        return place

    def take(self, state: State) -> None:
        """The next step is this contender's."""
        state.optimizers = (self.seat,)  # pyright: ignore[reportAttributeAccessIssue]
        state.algorithms, state.scaler = self.algorithms, self.scaler
