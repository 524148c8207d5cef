"""LookSAM and LookLayerSAM: Liu, Mai, Chen, Hsieh and You, *Towards Efficient and Scalable Sharpness-Aware
Minimization*, CVPR 2022, https://arxiv.org/abs/2203.02714.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, PNorm
from sam_algos.parts import (
    Ascent,
    Descent,
    Memory,
    NonNegative,
    Parts,
    Perturbation,
    PositiveInt,
    Radius,
    Step,
    Update,
    Vector,
)

__all__ = ["LayerScaled", "LookLayerSAM", "LookSAM", "Reuse"]

DIRECTION = "looksam_direction"


@dataclass(frozen=True, repr=False)
class Reuse(Descent):
    """Reuse, on flat steps, what the last sharp step added to the plain gradient.

    On a sharp step the optimizer gets ``g_s``, and the part of it orthogonal to ``g`` is remembered:
    ``g_v = g_s - (⟨g_s, g⟩ / ‖g‖²) g``. On a flat step it gets ``g + α ‖g‖ g_v / ‖g_v‖``, or ``g`` while there is
    no ``g_v`` yet. Norms and inner products are over all parameters.

    What is kept is ``g_v / ‖g_v‖``, so that a flat step need not compute the norm again.

    Args:
        alpha (float): ``α``, the length of the reused direction in units of ``‖g‖``. Default: ``0.3`` (see `LookSAM`).
        max_age (int, optional): For how many steps after the sharp one it is reused; afterwards steps are plain until
            the next sharp one. Default: ``None``, without limit.
    """

    reads_gradient: ClassVar[bool] = True
    buffers: ClassVar[tuple[str, ...]] = (DIRECTION,)

    alpha: NonNegative = 0.3
    max_age: PositiveInt | None = None

    def initial(self) -> Memory:
        """No direction was found on any step yet."""
        return {"looksam_found": -1}

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``g_s``; remember ``g_v / ‖g_v‖``, built in the plain gradient's own memory."""
        inverse_norm = tensors.reciprocal(step.gradient.norm())
        parallel = g_s.dot(step.gradient) * inverse_norm
        g_v = step.scratch().subtract_from_(g_s, parallel * inverse_norm)
        # Where g_s is parallel to g, what is left are rounding errors, and no direction to follow.
        is_direction = g_v.norm() > _rounding(g_v.values, g_v.norm()) * parallel.abs()
        unit = g_v.mul_(tensors.reciprocal(g_v.norm()) * is_direction)
        return Update(g_s, {DIRECTION: unit, "looksam_found": step.index})

    def flat(self, step: Step) -> Update:
        """``g + α ‖g‖ g_v / ‖g_v‖``."""
        too_old = self.max_age is not None and step.index - step.memory["looksam_found"] > self.max_age
        direction = step.recall(DIRECTION)
        if not direction or not self.alpha or too_old:
            return Update(step.gradient)
        length = self.alpha * step.gradient.norm()
        g = step.scratch()
        return Update(g.add_(direction.among(g.params), length))


def _rounding(values: list[Tensor], accumulated: Tensor) -> float:
    """Relative error of a sum of ``values``, and of an inner product of them accumulated like ``accumulated``."""
    return max(8 * torch.finfo(accumulated.dtype).eps, *(torch.finfo(v.dtype).eps for v in values))


@dataclass(frozen=True, repr=False)
class LayerScaled(Perturbation):
    """Each parameter tensor climbs along its own gradient, by a share of its length: ``ε_l = ρ (‖w_l‖/‖g_l‖) g_l``.

    The ratio is that by which LARS scales a layer's step. A tensor that is zero, or whose gradient is, stays where it
    is; one whose gradient is nothing but rounding errors, as that of a bias before BatchNorm, follows these.

    Re-derived from second-hand descriptions, which agree on the ratio ``‖w_l‖/‖g_l‖``; the paper's own formula and its
    normalisation could not be verified. One port scales by ``ρ/‖g_l‖`` instead.

    Args:
        rho (float | Schedule): Radius ``ρ``, as a share of each tensor's length. Default: ``0.05``.
    """

    def ascend(self, step: Step) -> Ascent | None:
        """``(‖w_l‖/‖g_l‖) g_l``, in the gradient's memory."""
        d = step.scratch()
        if not d:
            return None
        lengths = tensors.norms(d.values, d.params)
        ratios = tensors.norms(step.weights(d.params), d.params) * tensors.reciprocal(lengths) * (lengths != 0)
        torch._foreach_mul_(d.values, [ratio.to(v.device) for ratio, v in zip(ratios, d.values, strict=True)])
        return Ascent(d, torch.ones_like(lengths[0]), disposable=True)


@dataclass(frozen=True, repr=False)
class LookSAM(Method):
    """SAM every k-th step, its direction reused in between (`Liu et al., 2022 <https://arxiv.org/abs/2203.02714>`_).

    **Idea.** The part of SAM's gradient that is orthogonal to the plain one is what leads to flat minima, and it
    changes slowly: compute it every ``k`` steps and reuse it in between.

    **Equation.** On steps with ``t % k == 0`` a SAM step, and ``g_v = g_s - (⟨g_s, g⟩ / ‖g‖²) g``. On the others
    ``w ← w - η (g + α (‖g‖ / ‖g_v‖) g_v)``.

    **Cost.** ``1 + 1/k`` gradients per step. One tensor per parameter between steps, kept in the optimizer's
    state and its checkpoint (4 bytes per parameter in float32); during a sharp step two copies of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM helps but its time hurts. ``alpha`` needs care: too large, and training fails.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        k (int): Steps from one sharp step to the next. Default: ``5`` (the paper).
        alpha (float): Length of the reused direction in units of ``‖g‖``. Default: ``0.3``, on validation images the
            best of 0.05 … 0.5 for long training with noisy labels (24 epochs of the digits, 48 of CIFAR-10:
            ``benchmarks/results/study-*-alpha.md``). For short training 0.1 was chosen (``study-digits.md``), and with
            strong weight decay larger values fail. Directions found five steps apart have a cosine of only 0.1 to 0.2
            there, so most of a reused one is the noise of another batch. The paper's 0.7 is for large-batch vision
            transformers.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import LookSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LookSAM(k=2).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure():
        ...     return model(torch.ones(4, 2)).square().mean(1)
        >>> [(optimizer.step(closure), optimizer.metrics["sam/applied"])[1] for _ in range(4)]
        [1.0, 0.0, 1.0, 0.0]
    """

    rho: Radius = 0.05
    k: PositiveInt = 5
    alpha: NonNegative = 0.3

    def parts(self) -> Parts:
        """Every ``k`` steps, the Euclidean ball, the reused direction."""
        return Parts(Interval(self.k), PNorm(self.rho), Reuse(self.alpha))


@dataclass(frozen=True, repr=False)
class LookLayerSAM(Method):
    """LookSAM whose ascent is scaled layer by layer (`Liu et al., 2022 <https://arxiv.org/abs/2203.02714>`_).

    **Idea.** With large batches, layers whose gradients are large beside their weights dominate SAM's ascent. Let every
    layer climb in proportion to its weights, as LARS and LAMB let it step.

    **Equation.** LookSAM's, with ``ε_l = ρ (‖w_l‖/‖g_l‖) g_l`` for each parameter tensor: see `LayerScaled`. This form
    is re-derived from second-hand descriptions; the paper's own normalisation could not be verified.

    **Cost.** That of `LookSAM`: ``1 + 1/k`` gradients per step, one tensor per parameter between steps, during a sharp
    step two copies of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** for large batches, beside a base optimizer that scales layer by layer as well.

    Args:
        rho (float | Schedule): Radius of the perturbation, as a share of each tensor's length. Default: ``0.05`` (SAM's
            number; nothing is known of a good one in this form).
        k (int): Steps from one sharp step to the next. Default: ``5`` (the paper).
        alpha (float): Length of the reused direction in units of ``‖g‖``. Default: ``0.3`` (as LookSAM).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import LookLayerSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LookLayerSAM(k=2).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure():
        ...     return model(torch.ones(4, 2)).square().mean(1)
        >>> [(optimizer.step(closure), optimizer.metrics["sam/gradients"])[1] for _ in range(4)]
        [2.0, 1.0, 2.0, 1.0]
    """

    rho: Radius = 0.05
    k: PositiveInt = 5
    alpha: NonNegative = 0.3

    def parts(self) -> Parts:
        """Every ``k`` steps, each layer in proportion to its weights, the reused direction."""
        return Parts(Interval(self.k), LayerScaled(self.rho), Reuse(self.alpha))
