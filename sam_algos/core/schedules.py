"""Schedules of the radius over training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.optim import Optimizer

from sam_algos.core.objective.view import Step
from sam_algos.core.options import NonNegative, Positive
from sam_algos.core.parts import Schedule

__all__ = ["Cosine", "Linear", "Proportional"]


def _between(start: float, end: float, done: float) -> float:
    """From ``start`` at 0 to ``end`` at 1 and never beyond; exactly ``start`` where the two are one."""
    return min(max(start + (end - start) * done, min(start, end)), max(start, end))


@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """``ρ_t = start + (end - start) t/T``.

    Args:
        start (float): Radius at the beginning of training. Default: ``0.05``.
        end (float): Radius at its end. Default: ``0.0``.

    Example:
        >>> from sam_algos import SAM, Linear
        >>> SAM(rho=Linear(0.1, 0.02))
        SAM(rho=Linear(start=0.1, end=0.02), interval=1, p=2.0, steps=1, second_order=False, m=None)
    """

    reads_progress: ClassVar[bool] = True

    start: NonNegative = 0.05
    end: NonNegative = 0.0

    def radius(self, step: Step) -> float:
        """In proportion to the share of training that is done."""
        return _between(self.start, self.end, step.progress or 0.0)


@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """``ρ_t = start + (end - start) (1 - cos(π t/T)) / 2``.

    Args:
        start (float): Radius at the beginning of training. Default: ``0.05``.
        end (float): Radius at its end. Default: ``0.0``.

    Example:
        >>> import torch
        >>> from sam_algos import ASAM, Cosine
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = ASAM(rho=Cosine(1.0, 0.0)).wrap(base, model=model, total_steps=2)
        >>> def closure():
        ...     return model(torch.ones(4, 2)).square().mean(1)
        >>> [(optimizer.step(closure), round(optimizer.metrics["sam/rho"], 3))[1] for _ in range(2)]
        [1.0, 0.5]
    """

    reads_progress: ClassVar[bool] = True

    start: NonNegative = 0.05
    end: NonNegative = 0.0

    def radius(self, step: Step) -> float:
        """Along half a cosine."""
        return _between(self.start, self.end, (1 - math.cos(math.pi * (step.progress or 0.0))) / 2)


@dataclass(frozen=True, repr=False)
class Proportional(Schedule):
    """In proportion to the learning rate (GSAM: Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065).

    ``ρ_t = ρ_min + (ρ - ρ_min) (η_t - η_min) / (η_max - η_min)``, never outside ``[ρ_min, ρ]``, with ``η_t`` the
    learning rate of the first parameter group. In a warm-up the radius rises with it.

    Args:
        rho (float): Radius at the highest learning rate. Default: ``0.05``.
        rho_min (float): Radius at the lowest, at most ``rho``. Default: ``0.0``.
        lr_max (float, optional): The highest learning rate. Default: ``None``, the group's ``max_lr``, which OneCycleLR
            leaves there, or ``initial_lr``, which the other schedulers do, Composer's included; without a scheduler
            the optimizer's own ``lr``. Give it where a schedule rises above the rate that it starts from.
        lr_min (float): The lowest. Default: ``0.0``.

    Raises:
        ValueError: If ``rho_min`` is above ``rho`` or ``lr_min`` is not below ``lr_max``; when wrapping, if the base
            optimizer has no learning rate.

    Example:
        >>> from sam_algos import AESAM, Proportional
        >>> AESAM(rho=Proportional(0.1, rho_min=0.01)).rho
        Proportional(rho=0.1, rho_min=0.01, lr_max=None, lr_min=0.0)
    """

    rho: NonNegative = 0.05
    rho_min: NonNegative = 0.0
    lr_max: Positive | None = None
    lr_min: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Check the arguments, and that each minimum is one."""
        super().__post_init__()
        if self.rho_min > self.rho:
            raise ValueError(f"Proportional(rho_min={self.rho_min!r}): rho_min must be at most rho, {self.rho!r}.")
        if self.lr_max is not None:
            self._check_rates(self.lr_max)

    def _check_rates(self, lr_max: float) -> None:
        if self.lr_min >= lr_max:
            raise ValueError(f"Proportional(lr_min={self.lr_min!r}): lr_min must be below lr_max, {lr_max!r}.")

    def check(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer without a learning rate.

        Raises:
            ValueError: If it has none.
        """
        if "lr" not in optimizer.param_groups[0]:
            raise ValueError(f"{self!r}: the base optimizer must have an lr; this {type(optimizer).__name__} has none.")

    def radius(self, step: Step) -> float:
        """As far between its ends as the learning rate is between its own."""
        lr_max = step.lr_max if self.lr_max is None else self.lr_max
        self._check_rates(lr_max)
        done = min(max((step.lr - self.lr_min) / (lr_max - self.lr_min), 0.0), 1.0)
        return _between(self.rho, self.rho_min, 1 - done)
