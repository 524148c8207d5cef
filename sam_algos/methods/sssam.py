"""SS-SAM: Zhao, Zhang and Hu, *SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization for Efficiently Training
Deep Neural Networks*, 2022, https://arxiv.org/abs/2203.09962.
"""  # noqa: D205

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from sam_algos.method import Method
from sam_algos.methods.sam import PNorm, SharpGradient
from sam_algos.parts import Decision, Parts, Policy, Probability, Radius, Seed, Step

__all__ = ["SSSAM", "Bernoulli", "ScheduledBernoulli"]


Course = Literal["constant", "piecewise", "linear", "trigonometric"]


@dataclass(frozen=True, repr=False)
class Bernoulli(Policy):
    """Sharp with a given probability, independently on every step.

    The draw is a function of seed and step index. It is the same on all processes and after a resume, and does not
    advance the random streams that training uses.

    Args:
        probability (float): Probability of a sharp step. Default: ``0.5``.
        seed (int): Seed of the draws. Default: ``0``.
    """

    probability: Probability = 0.5
    seed: Seed = 0

    @property
    def never(self) -> bool:
        """True with probability 0."""
        return self.probability == 0

    def decide(self, step: Step) -> Decision:
        """Sharp iff a uniform draw from [0, 1) is below ``probability``."""
        return Decision(step.random(self.seed).random() < self.probability)


@dataclass(frozen=True, repr=False)
class ScheduledBernoulli(Policy):
    """Sharp with a probability that moves from ``start`` to ``end`` over training.

    ``t/T`` is the fraction of training done. ``'piecewise'`` is ``start`` in the first half and ``end`` in the second,
    ``'linear'`` is ``start + (end - start) t/T``, ``'trigonometric'`` is
    ``start + (end - start) (1 - cos(π t/T)) / 2``. With each, the expected fraction of sharp steps is
    ``(start + end) / 2``.

    Args:
        schedule (str): ``'piecewise'``, ``'linear'`` or ``'trigonometric'``. Default: ``'linear'``.
        start (float): Probability of a sharp step at the beginning of training. Default: ``0.0``.
        end (float): Probability at the end of training. Default: ``1.0``.
        seed (int): Seed of the draws, the same draws as `Bernoulli` makes. Default: ``0``.
    """

    reads_progress: ClassVar[bool] = True

    schedule: Literal["piecewise", "linear", "trigonometric"] = "linear"
    start: Probability = 0.0
    end: Probability = 1.0
    seed: Seed = 0

    @property
    def never(self) -> bool:
        """True if the probability is 0 at both ends."""
        return self.start == self.end == 0

    def decide(self, step: Step) -> Decision:
        """Sharp iff a uniform draw from [0, 1) is below the current probability, which is logged."""
        done = step.progress or 0.0
        if self.schedule == "piecewise":
            done = float(done >= 0.5)
        elif self.schedule == "trigonometric":
            done = (1 - math.cos(math.pi * done)) / 2
        probability = self.start + (self.end - self.start) * done
        return Decision(step.random(self.seed).random() < probability, log={"probability": probability})


@dataclass(frozen=True, repr=False)
class SSSAM(Method):
    """SAM on randomly chosen steps (`Zhao et al., 2022 <https://arxiv.org/abs/2203.09962>`_).

    **Idea.** Not every step needs the second gradient; a coin decides which get one.

    **Equation.** A SAM step with probability ``P_t``, a plain step otherwise: constant (`Bernoulli`), or piecewise
    constant, linear or trigonometric in ``t/T`` from ``start`` to ``end`` (`ScheduledBernoulli`). The paper studies
    schedules of these four kinds. Its formulas for the last three were not accessible: the formulas here, and the ends
    0 and 1, are this package's.

    **Cost.** ``1 + P`` gradients per step on average; with a schedule, ``P = (start + end) / 2``. No memory between
    steps; during a sharp step one copy of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** for a known fraction of sharp steps without a fixed period, and as the baseline that an adaptive policy
    has to beat.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        probability (float): Probability of a sharp step with the constant schedule. Default: ``0.5``.
        seed (int): Seed of the draws. Default: ``0``.
        schedule (str): ``'constant'``, ``'piecewise'``, ``'linear'`` or ``'trigonometric'``. Default: ``'constant'``.
        start (float): Probability at the beginning of training with the other schedules. Default: ``0.0``.
        end (float): Probability at the end of training with the other schedules. Default: ``1.0``.

    Raises:
        ValueError: If an argument is outside its range, or has no effect with the chosen schedule.

    Example:
        >>> import torch
        >>> from sam_algos import SSSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SSSAM(schedule="piecewise").wrap(base, model=model, total_steps=4)
        >>> def closure():
        ...     return model(torch.ones(4, 2)).square().mean(1)
        >>> [(optimizer.step(closure), optimizer.metrics["sam/applied"])[1] for _ in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """

    title: ClassVar[str] = "SS-SAM"

    rho: Radius = 0.05
    probability: Probability = 0.5
    seed: Seed = 0
    schedule: Course = "constant"
    start: Probability = 0.0
    end: Probability = 1.0

    def __post_init__(self) -> None:
        """Check the arguments, and that each has an effect with the chosen schedule."""
        super().__post_init__()
        unused = {"start": 0.0, "end": 1.0} if self.schedule == "constant" else {"probability": 0.5}
        for name, default in unused.items():
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"SSSAM({name}={value!r}): {name} must be left at its default, {default!r}, with "
                    f"schedule={self.schedule!r}."
                )

    def parts(self) -> Parts:
        """On random steps, the Euclidean ball, the sharp gradient."""
        policy = (
            Bernoulli(self.probability, self.seed)
            if self.schedule == "constant"
            else ScheduledBernoulli(self.schedule, self.start, self.end, self.seed)
        )
        return Parts(policy, PNorm(self.rho), SharpGradient())
