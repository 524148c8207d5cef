"""AE-SAM and AE-LookSAM: Jiang, Yang, Zhang and Kwok, *An Adaptive Policy to Employ Sharpness-Aware Minimization*,
ICLR 2023, https://openreview.net/forum?id=6Wl7-M2BC-.
"""  # noqa: D205

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.budget import TargetFraction, TargetOverhead
from sam_algos.methods.looksam import Reuse
from sam_algos.methods.sam import PNorm, SharpGradient
from sam_algos.parts import (
    Decision,
    Finite,
    Memory,
    NonNegative,
    Parts,
    Policy,
    PositiveInt,
    PositiveOrNone,
    ProbabilityOrNone,
    Radius,
    Step,
    UnitInterval,
)

__all__ = ["AESAM", "AELookSAM", "GradientNorm"]

INITIAL_VARIANCE = math.exp(-10)


@dataclass(frozen=True, repr=False)
class GradientNorm(Policy):
    """Sharp where the squared gradient norm is large compared with recent steps.

    With ``x = ‖g‖²``, each step first updates ``μ ← δ μ + (1-δ) x`` and then ``σ² ← δ σ² + (1-δ) (x - μ)²``, and is
    sharp iff ``x ≥ μ + c σ``. Over training ``c`` moves from ``λ₂`` to ``λ₁``: ``c = (t/T) λ₁ + (1 - t/T) λ₂``.
    A non-finite gradient gives a flat step and does not enter the averages.

    Args:
        delta (float): Forgetting factor ``δ`` in [0, 1). Default: ``0.9``.
        lambda_1 (float): ``c`` at the end of training. Default: ``-1.0``.
        lambda_2 (float): ``c`` at the beginning of training. Default: ``1.0``.
        variance (float): ``σ²`` before the first step. It is an absolute value: lower it if the network's squared
            gradient norms are below its square root. Default: ``exp(-10)``.
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True
    reads_progress: ClassVar[bool] = True

    delta: UnitInterval = 0.9
    lambda_1: Finite = -1.0
    lambda_2: Finite = 1.0
    variance: NonNegative = INITIAL_VARIANCE

    def initial(self) -> Memory:
        """``μ = 0`` and ``σ² = variance``."""
        return {"mean": 0.0, "variance": float(self.variance)}

    def decide(self, step: Step) -> Decision:
        """``x ≥ μ + c σ``, with ``μ`` and ``σ`` updated by ``x`` before the test."""
        norm = step.gradient_norm
        x = norm * norm
        mean = self.delta * step.memory["mean"] + (1 - self.delta) * x
        variance = self.delta * step.memory["variance"] + (1 - self.delta) * (x - mean) * (x - mean)
        if not math.isfinite(variance):
            return Decision(False)
        done = step.progress or 0.0
        threshold = mean + (done * self.lambda_1 + (1 - done) * self.lambda_2) * math.sqrt(variance)
        return Decision(x >= threshold, {"mean": mean, "variance": variance}, {"statistic": x, "threshold": threshold})


@dataclass(frozen=True, repr=False)
class AESAM(Method):
    """SAM where the gradient is large (`Jiang et al., 2023 <https://openreview.net/forum?id=6Wl7-M2BC->`_).

    **Idea.** SAM's second gradient is worth its cost where the loss is sharp. The squared norm of the mini-batch's
    gradient indicates where that is, and costs only one read of the gradient.

    **Equation.** A SAM step iff ``‖g‖² ≥ μ + c_t σ``, a plain step otherwise. ``μ`` and ``σ²`` are exponential
    moving averages of ``‖g‖²`` and of its variance, and ``c_t = (t/T) λ₁ + (1 - t/T) λ₂``: see `GradientNorm`.

    **Cost.** ``1 + f`` gradients per step, where ``f`` is the fraction of sharp steps (logged as ``sam/fraction``):
    about 0.5 if ``‖g‖²`` is normally distributed, less if its distribution has a heavy tail. Two numbers are kept
    between steps; during a sharp step one copy of the parameters.

    **Set the cost directly.** ``target_fraction=0.2`` makes a fifth of the steps sharp, whatever the gradients are:
    from the hundredth step on within 1 %, by adapting ``c_t`` to the count so far (`TargetFraction`).
    ``target_overhead=0.1`` takes 10 % longer than plain training, as measured in the loop (`TargetOverhead`). Both
    replace ``lambda_1`` and ``lambda_2``, compare ``log ‖g‖²`` instead of ``‖g‖²``, and need no ``total_steps``.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM helps but takes too long: it gives SAM's accuracy for three quarters of SAM's gradients, or for
    a cost that you set.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        delta (float): Forgetting factor of the averages. Default: ``0.9`` (the paper).
        lambda_1 (float): Threshold factor at the end of training. Default: ``-1.0`` (the paper).
        lambda_2 (float): Threshold factor at the beginning of training. Default: ``1.0`` (the paper).
        target_fraction (float, optional): Fraction of sharp steps, in [0, 1]. Default: ``None``.
        target_overhead (float, optional): Extra time, as a fraction of plain training's, > 0. Default: ``None``.

    Raises:
        ValueError: If an argument is outside its range, or if more than one argument sets the cost.

    Example:
        >>> import torch
        >>> from sam_algos import AESAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = AESAM(rho=0.05).wrap(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model=model, total_steps=10)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).sub(3).square().mean(1))
        >>> optimizer.metrics["sam/statistic"] >= optimizer.metrics["sam/threshold"]
        True
    """

    title: ClassVar[str] = "AE-SAM"

    rho: Radius = 0.05
    delta: UnitInterval = 0.9
    lambda_1: Finite = -1.0
    lambda_2: Finite = 1.0
    target_fraction: ProbabilityOrNone = field(default=None, kw_only=True)
    target_overhead: PositiveOrNone = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments, and that one of them sets the cost."""
        super().__post_init__()
        _refuse_two_costs(self)

    def parts(self) -> Parts:
        """Where the gradient is large, the Euclidean ball, the sharp gradient."""
        return Parts(_policy(self), PNorm(self.rho), SharpGradient())


@dataclass(frozen=True, repr=False)
class AELookSAM(Method):
    """LookSAM with AE-SAM's choice of sharp steps (`Jiang et al., 2023 <https://openreview.net/forum?id=6Wl7-M2BC->`_).

    **Idea.** Refresh LookSAM's direction where the gradient is large instead of every ``k`` steps.

    **Equation.** Iff ``‖g‖² ≥ μ + c_t σ`` (`GradientNorm`), a SAM step that refreshes ``g_v``. Otherwise
    ``w ← w - η (g + α (‖g‖ / ‖g_v‖) g_v)`` (`Reuse`), or a plain step while there is no ``g_v`` yet.

    **Cost.** ``1 + f`` gradients per step, where ``f`` is the fraction of sharp steps (logged as ``sam/fraction``),
    about 0.2 with the defaults. One tensor per parameter between steps, kept in the optimizer's state and its
    checkpoint (4 bytes per parameter in float32); during a sharp step two copies of the parameters.

    **Set the cost directly** by ``target_fraction`` or ``target_overhead``, as in `AESAM`.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where even AE-SAM takes too long. Choose ``alpha`` with care: training fails if it is too large.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        alpha (float): Length of the reused direction in units of ``‖g‖``. Default: ``0.3`` (as `LookSAM`, from the
            same studies).
        delta (float): Forgetting factor of the averages. Default: ``0.9`` (the paper).
        lambda_1 (float): Threshold factor at the end of training. Default: ``0.0``.
        lambda_2 (float): Threshold factor at the beginning of training. Default: ``2.0``. This pair is meant to
            reproduce the paper's fraction of about 20 %; the log shows the fraction on your data.
        max_age (int, optional): Reuse ``g_v`` for this many steps after a sharp one. Later steps are plain until the
            next sharp one. Default: ``None``, no limit (the paper).
        target_fraction (float, optional): Fraction of sharp steps, in [0, 1]. Default: ``None``.
        target_overhead (float, optional): Extra time, as a fraction of plain training's, > 0. Default: ``None``.

    Raises:
        ValueError: If an argument is outside its range, or if more than one argument sets the cost.

    Example:
        >>> import torch
        >>> from sam_algos import AELookSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = AELookSAM(rho=0.05).wrap(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model=model, total_steps=10)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).sub(3).square().mean(1))
        >>> optimizer.metrics["sam/applied"]
        1.0
    """

    title: ClassVar[str] = "AE-LookSAM"

    rho: Radius = 0.05
    alpha: NonNegative = 0.3
    delta: UnitInterval = 0.9
    lambda_1: Finite = 0.0
    lambda_2: Finite = 2.0
    max_age: PositiveInt | None = None
    target_fraction: ProbabilityOrNone = field(default=None, kw_only=True)
    target_overhead: PositiveOrNone = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments, and that one of them sets the cost."""
        super().__post_init__()
        _refuse_two_costs(self)

    def parts(self) -> Parts:
        """Where the gradient is large, the Euclidean ball, the reused direction."""
        return Parts(_policy(self), PNorm(self.rho), Reuse(self.alpha, self.max_age))


def _policy(method: AESAM | AELookSAM) -> Policy:
    """The paper's schedule, or the policy that meets the target given."""
    if method.target_fraction is not None:
        return TargetFraction(method.target_fraction, method.delta)
    if method.target_overhead is not None:
        return TargetOverhead(method.target_overhead, method.delta)
    return GradientNorm(method.delta, method.lambda_1, method.lambda_2)


def _refuse_two_costs(method: AESAM | AELookSAM) -> None:
    names = ("target_fraction", "target_overhead")
    given = [name for name in names if getattr(method, name) is not None]
    if not given:
        return
    cls = type(method)
    defaults = {"lambda_1": cls.lambda_1, "lambda_2": cls.lambda_2, **dict.fromkeys(names)}
    for name, default in defaults.items():
        if name != given[0] and (value := getattr(method, name)) != default:
            raise ValueError(
                f"{cls.__name__}({name}={value!r}): {name} must be {default!r} with {given[0]}, which sets the cost."
            )
