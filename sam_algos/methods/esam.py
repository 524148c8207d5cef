"""ESAM: Du, Yan, Feng, Zhou, Zhen, Goh and Tan, *Efficient Sharpness-Aware Minimization for Improved Training of
Neural Networks*, ICLR 2022, https://arxiv.org/abs/2110.03141.
"""  # noqa: D205

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sam_algos.core.tensors import lists as tensors
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import (
    Ascent,
    Climb,
    Fraction,
    Parts,
    Perturbation,
    Radius,
    Samples,
    Seed,
    Step,
    Update,
    WholeBatch,
)

__all__ = ["ESAM", "MostSensitive", "RandomMask"]


@dataclass(frozen=True, repr=False)
class RandomMask(Perturbation):
    """Climb with some of the parameters: ``ε = (ρ/β) m ⊙ g / ‖m ⊙ g‖`` (the paper's stochastic weight perturbation).

    ``m`` keeps each parameter tensor with probability ``β``. The draws are a function of seed and step, the same on all
    processes and after a resume. Tensors that are not kept cost nothing. A step that keeps none is a plain step.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        beta (float): Probability ``β`` that a tensor climbs, in (0, 1]. Default: ``0.6``.
        seed (int): Seed of the draws. Default: ``0``.
    """

    beta: Fraction = 0.6
    seed: Seed = 0

    def ascend(self, step: Step) -> Ascent:
        """``m ⊙ g``."""
        draws = step.random(self.seed)
        kept = [p for p in step.params if draws.random() < self.beta]
        g = step.gradient if len(kept) == len(step.params) else step.among(kept).gradient
        return Ascent(g, tensors.reciprocal(g.norm()) / self.beta)


@dataclass(frozen=True, repr=False)
class MostSensitive(Samples):
    """The sharp gradient on the samples with the largest increase in loss (the paper's sharpness-sensitive selection).

    From a batch of ``B`` samples it takes the ``⌈γB⌉`` with the largest ``L_i(w + ε) - L_i(w)``, and averages over
    them. With several data-parallel processes or microbatches each process chooses among its own samples.

    Args:
        gamma (float): Fraction ``γ`` of the samples, in (0, 1]. Default: ``0.5``.
    """

    selects: ClassVar[bool] = True
    reads_losses: ClassVar[bool] = True

    gamma: Fraction = 0.5

    def sharp(self, step: Step, climb: Climb) -> Update:
        """The gradient at ``w + ε`` on the chosen samples."""
        there = step.at(climb(step))
        growth = there.losses - step.losses
        return Update(there.on_largest(growth, math.ceil(self.gamma * len(growth) * (1 - 1e-9))).gradient)

    def conflict(self, others: Parts) -> str | None:
        """Refuse a perturbation without a pass at ``w``: that pass gives the losses there."""
        if not others.perturbation.own_pass:
            return f"with {type(others.perturbation).__name__}, which has no pass at the clean weights"
        return None


@dataclass(frozen=True, repr=False)
class ESAM(Method):
    """SAM with some of the weights and some of the samples (`Du et al., 2022 <https://arxiv.org/abs/2110.03141>`_).

    **Idea.** It is enough to perturb a random subset of the weights, and to compute the second gradient on the samples
    that make the loss sharp.

    **Equation.** ``w ← w - η ∇L(B⁺; w + ε)`` with ``ε = (ρ/β) m ⊙ g / ‖m ⊙ g‖``. ``m`` is a random mask over the
    parameter tensors, and ``B⁺`` holds the ``⌈γ|B|⌉`` samples with the largest ``L_i(w + ε) - L_i(w)``: see
    `RandomMask` and `MostSensitive`.

    **Cost.** ``1 + γ`` gradients and one forward pass per step (with ``gamma=1``, 2 gradients). No memory between
    steps; during a step one copy of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** to save part of SAM's overhead on every step, if the loss of each sample is available. In a hand-written
    loop the closure takes the samples and returns their losses (see the example). In Composer's Trainer the method
    calls the model's ``loss`` with ``reduction='none'``, as Composer's SelectiveBackprop does. Do not use it with many
    wrong labels: on the digits with 40 % label noise (20 epochs, one seed) ``gamma=0.5`` gave 67 %, ``gamma=1`` 96 %.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        beta (float): Probability that a parameter tensor climbs. Default: ``0.6`` (the official code for ResNet-18;
            0.5 elsewhere).
        gamma (float): Fraction of the samples in the second gradient. Default: ``0.5`` (the official code).
        seed (int): Seed of the mask. Default: ``0``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import ESAM
        >>> model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
        >>> optimizer = ESAM(beta=1.0).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure(samples):
        ...     return model(samples(x)).square().mean(1)
        >>> loss = optimizer.step(closure)
        >>> optimizer.metrics["sam/gradients"], optimizer.metrics["sam/forwards"]
        (1.5, 1.0)
    """

    rho: Radius = 0.05
    beta: Fraction = 0.6
    gamma: Fraction = 0.5
    seed: Seed = 0

    def parts(self) -> Parts:
        """Every step, with a random mask, the sharp gradient of the most sensitive samples."""
        samples = WholeBatch() if self.gamma == 1 else MostSensitive(self.gamma)
        return Parts(Interval(1), RandomMask(self.rho, self.beta, self.seed), SharpGradient(), samples)
