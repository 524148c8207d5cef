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

    On a sharp step the optimizer gets ``g_s``. The part of ``g_s`` orthogonal to ``g`` is remembered:
    ``g_v = g_s - (⟨g_s, g⟩ / ‖g‖²) g``. On a flat step the optimizer gets ``g + α ‖g‖ g_v / ‖g_v‖``, or ``g`` while
    there is no ``g_v`` yet. Norms and inner products are over all parameters.

    ``g_v / ‖g_v‖`` is stored, so that flat steps need not recompute the norm.

    Args:
        alpha (float): ``α``, the length of the reused direction in units of ``‖g‖``. Default: ``0.3`` (see `LookSAM`).
        max_age (int, optional): Reuse the direction for this many steps after a sharp one. Later steps are plain until
            the next sharp one. Default: ``None``, no limit.
    """

    reads_gradient: ClassVar[bool] = True
    buffers: ClassVar[tuple[str, ...]] = (DIRECTION,)

    alpha: NonNegative = 0.3
    max_age: PositiveInt | None = None

    def initial(self) -> Memory:
        """No step has found a direction yet."""
        return {"looksam_found": -1}

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``g_s``; remember ``g_v / ‖g_v‖``, computed in the plain gradient's memory."""
        inverse_norm = tensors.reciprocal(step.gradient.norm())
        parallel = g_s.dot(step.gradient) * inverse_norm
        g_v = step.scratch().subtract_from_(g_s, parallel * inverse_norm)
        # If g_s is parallel to g, only rounding errors are left: do not follow them.
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
    """Relative error of sums of ``values`` and of inner products accumulated in the dtype of ``accumulated``."""
    return max(8 * torch.finfo(accumulated.dtype).eps, *(torch.finfo(v.dtype).eps for v in values))


@dataclass(frozen=True, repr=False)
class LayerScaled(Perturbation):
    """Each parameter tensor climbs along its own gradient, in proportion to its norm: ``ε_l = ρ (‖w_l‖/‖g_l‖) g_l``.

    LARS scales a layer's step by the same ratio. A tensor does not move if it or its gradient is zero. If a gradient is
    nothing but rounding errors, as for a bias before BatchNorm, the tensor follows these errors.

    The equation is re-derived from second-hand descriptions, which agree on the ratio ``‖w_l‖/‖g_l‖``. The paper's own
    formula and its normalisation could not be verified. One port scales by ``ρ/‖g_l‖`` instead.

    Args:
        rho (float | Schedule): Radius ``ρ``, as a fraction of each tensor's norm. Default: ``0.05``.
    """

    def ascend(self, step: Step) -> Ascent | None:
        """``(‖w_l‖/‖g_l‖) g_l``, computed in the gradient's memory."""
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

    **Idea.** The part of SAM's gradient orthogonal to the plain gradient leads to flat minima, and it changes slowly:
    compute it every ``k`` steps and reuse it in between.

    **Equation.** If ``t % k == 0``, a SAM step that also computes ``g_v = g_s - (⟨g_s, g⟩ / ‖g‖²) g``. Otherwise
    ``w ← w - η (g + α (‖g‖ / ‖g_v‖) g_v)``.

    **Cost.** ``1 + 1/k`` gradients per step. One tensor per parameter between steps, kept in the optimizer's
    state and its checkpoint (4 bytes per parameter in float32); during a sharp step two copies of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM helps but takes too long. Choose ``alpha`` with care: training fails if it is too large.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        k (int): Steps from one sharp step to the next. Default: ``5`` (the paper).
        alpha (float): Length of the reused direction in units of ``‖g‖``. Default: ``0.3``, the best of 0.05 … 0.5 on
            validation images for long training with noisy labels (24 epochs of the digits, 48 of CIFAR-10:
            ``benchmarks/results/study-*-alpha.md``). For short training 0.1 was chosen (``study-digits.md``), and with
            strong weight decay larger values fail. In these studies, directions found five steps apart have a cosine of
            only 0.1 to 0.2, so a reused direction is mostly the noise of another batch. The paper's 0.7 is for
            large-batch vision transformers.

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
    """LookSAM with the ascent scaled layer by layer (`Liu et al., 2022 <https://arxiv.org/abs/2203.02714>`_).

    **Idea.** With large batches, layers with large gradients relative to their weights dominate SAM's ascent. Let every
    layer climb in proportion to its weights, just as LARS and LAMB scale its steps.

    **Equation.** LookSAM's, with ``ε_l = ρ (‖w_l‖/‖g_l‖) g_l`` for each parameter tensor: see `LayerScaled`. This form
    is re-derived from second-hand descriptions; the paper's own normalisation could not be verified.

    **Cost.** As `LookSAM`: ``1 + 1/k`` gradients per step. One tensor per parameter between steps; during a sharp step
    two copies of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** for large batches, with a base optimizer that also scales layer by layer.

    Args:
        rho (float | Schedule): Radius of the perturbation, as a fraction of each tensor's norm. Default: ``0.05``
            (SAM's value; a good value for this form is not known).
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
