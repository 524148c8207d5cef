"""The contracts of the parts that a sharpness-aware method is composed of.

A method is a choice on four independent axes:

===============  ========================================================  ==========================================
part             question                                                  examples
===============  ========================================================  ==========================================
`Policy`         WHEN is the sharpness-aware gradient worth its price?     `Interval`, `GradientNorm`
`Perturbation`   HOW do the weights climb?                                 `PNorm`, `Adaptive`, `Momentum`
`Descent`        WHAT gradient goes to the base optimizer?                 `SharpGradient`, `Reuse`
`Samples`        ON WHICH samples is each pass run?                        `WholeBatch`, `AscentFraction`
===============  ========================================================  ==========================================

One step of training (`sam_algos.core.stepping.optimizer.SharpnessAwareOptimizer.step`) is, for weights ``w``::

    if policy.decide(step):
        g_s = samples.sharp(step, climb).gradient  # step.at(climb(step)).gradient: the gradient at w + ε
        gradient for the optimizer = descent.sharp(step, g_s)
    else:
        gradient for the optimizer = descent.flat(step)
    base optimizer steps from w

where ``climb`` asks the perturbation for ``ε``. A part sees a `Step`: a view that can be moved to other points and
other samples. Moving it runs nothing; reading its ``gradient`` or its ``losses`` runs the pass, once. So a step costs
what its parts read, and a perturbation that reads no gradient has no pass of its own.

A part is a frozen dataclass: it holds options and nothing else, or other parts. What it must remember between steps
it returns (``remember=``) with its answer: Python numbers, or a `Vector` under a name in ``buffers``, which is kept
beside the base optimizer's own state of each parameter. Both are kept only if the step succeeds, so an exception or
an overflow leaves no trace, and one part may serve any number of runs.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from sam_algos.core.objective.answers import Ascent, Decision, Memory, Rho, Update
from sam_algos.core.objective.context import Needs
from sam_algos.core.objective.view import Step
from sam_algos.core.options import NonNegative, Options
from sam_algos.core.tensors.vector import Vector

__all__ = [
    "Ascent",
    "Climb",
    "Decision",
    "Descent",
    "Memory",
    "Part",
    "Parts",
    "Perturbation",
    "Policy",
    "Radius",
    "Rho",
    "Samples",
    "Schedule",
    "Update",
    "WholeBatch",
    "buffers_of",
]


class Part(Options, ABC):
    """Base of the parts of every axis.

    Attributes:
        reads_gradient: Whether it reads the plain gradient, that of the whole batch at ``w``, as more than a direction
            to climb: it is then synchronised between processes, as whatever is remembered of it has to be, and what a
            descent reads is kept through later passes (one copy of the parameters).
        reads_progress: Whether it reads ``step.progress``, so that the number of steps has to be known.
        reads_losses: Whether it reads ``step.losses``, so that the loss of each sample has to be known.
        reads_scale: Whether its answer depends on the scale of the gradient, other than in proportion: under a
            ``GradScaler`` the scale then has to be known.
        reads_seconds: Whether it reads ``step.seconds``, so that steps are timed. It reads them on the same steps on
            all processes, which there average their readings.
        buffers: Names of the vectors that it remembers. They live in the base optimizer's state, and so in its
            checkpoint; before the first step they are empty, which is zero.
    """

    reads_gradient: ClassVar[bool] = False
    reads_progress: ClassVar[bool] = False
    reads_losses: ClassVar[bool] = False
    reads_scale: ClassVar[bool] = False
    reads_seconds: ClassVar[bool] = False
    buffers: ClassVar[tuple[str, ...]] = ()

    def initial(self) -> Memory:
        """The numbers that it remembers before the first step: all that it will ever return, by name."""
        return {}

    def check(self, optimizer: Optimizer) -> None:
        """Refuse a base optimizer that it cannot work with.

        Raises:
            ValueError: If so.
        """

    def conflict(self, others: Parts) -> str | None:
        """Why it cannot be combined with these parts; None if it can."""
        return None

    def tree(self) -> Iterator[Part]:
        """This part and those that it holds."""
        yield self
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(inner := getattr(self, field.name), Part):
                yield from inner.tree()


def buffers_of(kind: type[Part]) -> set[str]:
    """The names of all vectors that parts of a kind remember, any of which a checkpoint may hold."""
    return {*kind.buffers}.union(*map(buffers_of, kind.__subclasses__()))


class Schedule(Part):
    """A radius that changes over training; it stands wherever a perturbation's or a method's ``rho`` does.

    The radius of each step is logged as ``sam/rho``. A parameter group's own ``rho`` stays what it is. A step whose
    radius is zero is the base optimizer's.
    """

    @abstractmethod
    def radius(self, step: Step) -> float | Tensor | Rho:
        """``ρ`` of this step, >= 0.

        It may follow ``step.progress`` and the learning rates, and with ``reads_gradient`` the plain gradient: it is
        then asked after the policy, so that a gradient which both read is computed once. A scalar tensor stays on its
        device; a radius of zero that is a tensor costs what any other does. ``Rho`` remembers numbers, which
        ``step.memory`` holds in the next step.
        """


Radius: TypeAlias = NonNegative | Schedule
"""The range of a ``rho``: a constant, 0 for the base optimizer alone, or a `Schedule`."""


class Policy(Part):
    """WHEN a step is sharpness-aware.

    Attributes:
        never (bool): Whether its options say that no step will be, so that nobody is warned if none was.
    """

    @property
    def never(self) -> bool:
        """False, unless a policy can be told never to act."""
        return False

    @abstractmethod
    def decide(self, step: Step) -> Decision:
        """Decide for ``step``; ``step.memory`` holds what was remembered after the last successful one."""


@dataclass(frozen=True, repr=False)
class Perturbation(Part):
    """HOW the weights climb: ``ε`` in a ball of radius ``rho``.

    A parameter group of the base optimizer that has an entry ``rho`` uses that number instead, schedule or not. On a
    step whose radius is zero for every group no part but the policy is asked: the base optimizer gets the plain
    gradient.

    Args:
        rho (float | Schedule): Radius ``ρ`` of the perturbation, >= 0.

    Attributes:
        own_pass: Whether it reads a gradient, at the price of a pass of its own.
    """

    own_pass: ClassVar[bool] = True

    rho: Radius = 0.05

    @abstractmethod
    def ascend(self, step: Step) -> Ascent | None:
        """The perturbation of unit radius at ``step``; None where there is no direction, for a plain step.

        ``step.gradient`` is that of this process's samples unless ``reads_gradient`` of some part says otherwise.
        """


class Descent(Part):
    """WHAT gradient goes to the base optimizer."""

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """The gradient on a sharp step, from ``g_s``, which may be written into; ``reads_gradient`` for more."""
        return Update(g_s)

    def flat(self, step: Step) -> Update:
        """The gradient on a plain step."""
        return Update(step.gradient)


Climb = Callable[[Step], Ascent]
"""Asks the perturbation how to climb from a view."""


class Samples(Part):
    """ON WHICH samples each pass is run.

    Attributes:
        selects: Whether some pass is run on some of the samples only.
    """

    selects: ClassVar[bool] = False

    @abstractmethod
    def sharp(self, step: Step, climb: Climb) -> Update:
        """The gradient at the displaced weights, for the descent."""


@dataclass(frozen=True, repr=False)
class WholeBatch(Samples):
    """Every pass on the whole batch."""

    def sharp(self, step: Step, climb: Climb) -> Update:
        """The gradient at ``w + ε``."""
        return Update(step.at(climb(step)).gradient)


class Parts(NamedTuple):
    """One choice on each axis."""

    policy: Policy
    perturbation: Perturbation
    descent: Descent
    samples: Samples = WholeBatch()

    def all(self) -> Iterator[Part]:
        """The parts, and those that they hold."""
        for part in self:
            yield from part.tree()

    def reader(self, need: str) -> Part | None:
        """A part that declares ``need``, e.g. ``reads_gradient``; None if none does."""
        return next((part for part in self.all() if getattr(part, need)), None)

    def buffers(self) -> tuple[str, ...]:
        """The names of all vectors that are remembered."""
        return tuple(name for part in self.all() for name in part.buffers)

    def initial(self) -> dict[str, dict[str, Any]]:
        """What the parts of each axis remember before the first step."""
        return {
            axis: {name: value for inner in part.tree() for name, value in inner.initial().items()}
            for axis, part in self._asdict().items()
        }

    def needs(self, *, synchronize: bool = False) -> Needs:
        """What has to be known, kept and averaged for these parts.

        Args:
            synchronize (bool): Average the gradients of the ascent even where no part needs it.
        """
        after_the_ascent = (*self.descent.tree(), *self.samples.tree())
        reads_gradient = self.reader("reads_gradient") is not None
        losses = self.reader("reads_losses") is not None
        rho = self.perturbation.rho
        return Needs(
            synchronized=synchronize or reads_gradient,
            gradient_after_ascent=any(part.reads_gradient for part in after_the_ascent),
            losses=losses,
            seconds=self.reader("reads_seconds") is not None,
            one_pass=not (reads_gradient or losses or self.perturbation.own_pass),
            constant_radius=not isinstance(rho, Schedule),
            schedule_reads_gradient=isinstance(rho, Schedule) and rho.reads_gradient,
        )

    def conflict(self) -> str | None:
        """Why these parts cannot be combined; None if they can."""
        numbers = [(axis, name) for axis, part in self._asdict().items() for p in part.tree() for name in p.initial()]
        for names, what in ((numbers, "number"), (self.buffers(), "vector")):
            if len(set(names)) < len(names):
                return f"two parts would remember a {what} under one name"
        found = ((part, why) for part in self.all() if (why := part.conflict(self)))
        return next((f"{part!r} cannot be combined {why}" for part, why in found), None)
