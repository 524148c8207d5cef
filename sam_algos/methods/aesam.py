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
    """Sharp where the squared gradient norm is large for its recent past.

    With ``x = ‖g‖²``, each step first updates ``μ ← δ μ + (1-δ) x`` and then ``σ² ← δ σ² + (1-δ) (x - μ)²``, and is
    sharp iff ``x ≥ μ + c σ``, where ``c`` goes from ``λ₂`` to ``λ₁`` as training goes on:
    ``c = (t/T) λ₁ + (1 - t/T) λ₂``. A gradient that is not finite gives a flat step and is forgotten.

    Args:
        delta (float): Forgetting factor ``δ`` in [0, 1). Default: ``0.9``.
        lambda_1 (float): ``c`` at the end of training. Default: ``-1.0``.
        lambda_2 (float): ``c`` at its beginning. Default: ``1.0``.
        variance (float): ``σ²`` before the first step. It is absolute: lower it for a network whose squared
            gradient norms are below its root. Default: ``exp(-10)``.
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
        x = step.gradient_norm * step.gradient_norm
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

    **Idea.** SAM's second gradient is worth its price where the loss is sharp. The squared gradient norm of the
    mini-batch tells where that is, at the price of reading the gradient once.

    **Equation.** A SAM step iff ``‖g‖² ≥ μ + c_t σ``, a plain step otherwise, with ``μ`` and ``σ²`` exponential
    moving averages of ``‖g‖²`` and its variance, ``c_t = (t/T) λ₁ + (1 - t/T) λ₂``: see `GradientNorm`.

    **Cost.** ``1 + f`` gradients per step, ``f`` the fraction of sharp steps (logged as ``sam/fraction``): about
    0.5 where ``‖g‖²`` is normally distributed and less where its tail is heavy. No memory between steps but two
    numbers; during a sharp step one copy of the parameters.

    **A cost you can ask for.** ``target_fraction=0.2`` puts a fifth of the steps under SAM, whatever the gradients:
    within 1 % from the hundredth step on, by a factor ``c_t`` that follows the count (`TargetFraction`).
    ``target_overhead=0.1`` takes 10 % longer than plain training by the loop's own clock (`TargetOverhead`). Both
    replace ``lambda_1`` and ``lambda_2``, compare ``log ‖g‖²`` in place of ``‖g‖²``, and need no ``total_steps``.

    **BatchNorm** needs no recalibration: its statistics are those of the first pass: whole batches, clean weights.

    **Use it** where SAM pays and its time hurts: SAM's accuracy for three quarters of its gradients, or for a cost you
    ask for.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        delta (float): Forgetting factor of the averages. Default: ``0.9`` (the paper).
        lambda_1 (float): Threshold factor at the end of training. Default: ``-1.0`` (the paper).
        lambda_2 (float): Threshold factor at its beginning. Default: ``1.0`` (the paper).
        target_fraction (float, optional): Fraction of sharp steps, in [0, 1]. Default: ``None``.
        target_overhead (float, optional): Time over plain training, as a share of it, > 0. Default: ``None``.

    Raises:
        ValueError: If an argument is outside its range, or more than one sets the cost.

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
    """LookSAM whose sharp steps are AE-SAM's (`Jiang et al., 2023 <https://openreview.net/forum?id=6Wl7-M2BC->`_).

    **Idea.** Refresh LookSAM's direction where the gradient is large instead of every ``k`` steps.

    **Equation.** Sharp iff ``‖g‖² ≥ μ + c_t σ`` (`GradientNorm`): a SAM step that refreshes ``g_v``. Otherwise
    ``w ← w - η (g + α (‖g‖ / ‖g_v‖) g_v)`` (`Reuse`), or a plain step while there is no ``g_v`` yet.

    **Cost.** ``1 + f`` gradients per step, ``f`` the fraction of sharp steps (logged as ``sam/fraction``), about
    0.2 with the defaults. One tensor per parameter between steps, kept in the optimizer's state and its
    checkpoint (4 bytes per parameter in float32); during a sharp step two copies of the parameters.

    **A cost you can ask for.** ``target_fraction`` and ``target_overhead``, as of `AESAM`.

    **BatchNorm** needs no recalibration: its statistics are those of the first pass: whole batches, clean weights.

    **Use it** where even AE-SAM's time hurts. ``alpha`` needs care: too large, and training fails.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        alpha (float): Length of the reused direction in units of ``‖g‖``. Default: ``0.3`` (as `LookSAM`, from the
            same studies).
        delta (float): Forgetting factor of the averages. Default: ``0.9`` (the paper).
        lambda_1 (float): Threshold factor at the end of training. Default: ``0.0``.
        lambda_2 (float): Threshold factor at its beginning. Default: ``2.0``. This pair is meant to reproduce the
            paper's fraction of about 20 %; the logged fraction says what it does on your data.
        max_age (int, optional): For how many steps after the sharp one ``g_v`` is reused; steps are plain from then on
            until the next sharp one. Default: ``None``, without limit (the paper).
        target_fraction (float, optional): Fraction of sharp steps, in [0, 1]. Default: ``None``.
        target_overhead (float, optional): Time over plain training, as a share of it, > 0. Default: ``None``.

    Raises:
        ValueError: If an argument is outside its range, or more than one sets the cost.

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
    """Where the gradient is large, by the paper's schedule or on as many steps as asked for."""
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
