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

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sam_algos.core.objective.view import Step
from sam_algos.core.part import Memory, Part
from sam_algos.core.schedules import Radius
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
    "Samples",
    "Update",
    "WholeBatch",
]

_NOTHING: Memory = {}


class Decision(NamedTuple):
    """A policy's answer for one step.

    Attributes:
        sharp: Whether the step is sharpness-aware.
        remember: What the policy will remember if the step succeeds.
        log: Figures to log with the step, by name.
    """

    sharp: bool
    remember: Memory = _NOTHING
    log: Mapping[str, float] = _NOTHING


class Ascent(NamedTuple):
    """A perturbation, in units of the radius if not said otherwise: ``ε = ρ · scale · direction``.

    Attributes:
        direction: Parameters that are not in it stay where they are, at no cost.
        scale: A scalar tensor, left on its device.
        disposable: Whether the direction was made for this step, so that its memory may hold the displaced weights.
            (Gradients belong to the loop, which knows whether they are read again.)
        remember: What the perturbation will remember if the step succeeds.
        absolute: Whether ``ε = scale · direction``, whatever the radius is.
    """

    direction: Vector
    scale: Tensor
    disposable: bool = False
    remember: Memory = _NOTHING
    absolute: bool = False


class Update(NamedTuple):
    """The gradient for the base optimizer.

    Attributes:
        gradient: It; a parameter that is not in it is not stepped.
        remember: What the part will remember if the step succeeds.
    """

    gradient: Vector
    remember: Memory = _NOTHING


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

    def conflict(self) -> str | None:
        """Why these parts cannot be combined; None if they can."""
        numbers = [(axis, name) for axis, part in self._asdict().items() for p in part.tree() for name in p.initial()]
        for names, what in ((numbers, "number"), (self.buffers(), "vector")):
            if len(set(names)) < len(names):
                return f"two parts would remember a {what} under one name"
        found = ((part, why) for part in self.all() if (why := part.conflict(self)))
        return next((f"{part!r} cannot be combined {why}" for part, why in found), None)
