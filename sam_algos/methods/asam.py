"""ASAM: Kwon, Kim, Park and Choi, *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
Deep Neural Networks*, ICML 2021, https://arxiv.org/abs/2102.11600.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sam_algos import tensors
from sam_algos.algorithm import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.options import NonNegative, Positive
from sam_algos.parts import Ascent, Parts, Perturbation, Step

__all__ = ["ASAM", "Adaptive"]

Scope = Literal["element", "filter", "layer"]


@dataclass(frozen=True, repr=False)
class Adaptive(Perturbation):
    """The steepest step in a ball that scales with the weights: ``ε = ρ T² g / ‖T g‖``.

    The normalisation ``T`` is ``|w| + η`` per element; with ``scope='filter'``, ``‖filter‖ + η`` for the weights
    of a convolution; with ``scope='layer'``, ``‖w‖ + η`` of the whole tensor. As in the official code it applies
    to parameters with ``weight`` in their name, normalisation layers included; the others have ``T = 1``, and
    take part in the norm.

    Args:
        rho (float): Radius ``ρ``. Default: ``0.5``.
        eta (float): ``η``, keeps ``T`` from vanishing with a weight. Default: ``0.01``.
        normalize_bias (bool): Apply ``T`` to every parameter. Default: ``False``.
        scope (str): ``'element'``, ``'filter'`` or ``'layer'``. Default: ``'element'``.
    """

    rho: Positive = 0.5
    eta: NonNegative = 0.01
    normalize_bias: bool = False
    scope: Scope = "element"

    def ascend(self, step: Step) -> Ascent:
        """``T² g``, and ``‖T g‖`` from ``⟨T² g, g⟩ = ‖T g‖²``, so that ``T`` need not be kept."""
        directions, products = [], []
        for i, (name, layer) in enumerate(zip(step.names, self._layer_norms(step), strict=True)):
            g = direction = step.grads[i]
            if self.normalize_bias or "weight" in name:
                direction = g if step.spare_grads else torch.empty_like(g)
                products.append(self._normalize(step.weights[i], g, direction, step.params[i], layer))
            else:
                products.append(tensors.inner(g, g))
            directions.append(direction)
        return Ascent(directions, tensors.reciprocal(step.total(products).sqrt()))

    def _normalize(self, w: Tensor, g: Tensor, out: Tensor, p: Tensor, layer: Tensor | None) -> Tensor:
        """Write ``T² g`` into ``out``, which may be ``g``, and return ``⟨T² g, g⟩``."""
        products = []
        for w_, g_, out_ in tensors.pieces(w, g, out) if self.scope == "element" else [(w, g, out)]:
            direction = self._normalization(w_, p, layer).square_() * g_
            products.append(tensors.inner(direction, g_))
            out_.copy_(direction)
        return products[0] if len(products) == 1 else torch.stack(products).sum()

    def _normalization(self, w: Tensor, p: Tensor, layer: Tensor | None) -> Tensor:
        if layer is not None:
            return layer.to(w) + self.eta
        if self.scope == "filter" and w.ndim > 2:
            return tensors.filter_norms(w, p).add_(self.eta)
        return w.abs().add_(self.eta)

    def _layer_norms(self, step: Step) -> list[Tensor | None]:
        if self.scope != "layer":
            return [None] * len(step.weights)
        return list(tensors.norms(step.weights, step.params).unbind())


@dataclass(frozen=True, repr=False)
class ASAM(Method):
    """Adaptive sharpness-aware minimization (`Kwon et al., 2021 <https://arxiv.org/abs/2102.11600>`_).

    **Idea.** Rescaling two ReLU layers by ``τ`` and ``1/τ`` changes nothing in what a network computes, but
    changes its sharpness in a ball of fixed radius. ASAM's ball scales with the weights, so that networks that
    compute the same are equally sharp.

    **Equation.** ``w ← w - η_lr ∇L(w + ε)`` with ``ε = ρ T² g / ‖T g‖`` and ``T = |w| + η``: see `Adaptive`.

    **Cost.** 2 gradients per step. No memory between steps; during a step one copy of the parameters.

    **Use it** as SAM, for networks without strong weight decay or with layers of very different scale. Its radius
    is not SAM's: about ten times larger.

    Args:
        rho (float): Radius of the perturbation. Default: ``0.5`` (the official code for CIFAR-10; 1.0 for
            CIFAR-100). Ports that set ``eta=0`` and normalise biases need about 2.0.
        eta (float): Added to ``|w|``. Default: ``0.01`` (the official code).
        normalize_bias (bool): Normalise biases too. Default: ``False`` (the official code).
        scope (str): ``'element'``, ``'filter'`` or ``'layer'``: what one factor of the normalisation covers.
            Default: ``'element'`` (the official code).
        synchronize (bool): See `Method`. Default: ``False``.
        nonfinite (str): See `Method`. Default: ``'pass'``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import ASAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = ASAM(rho=0.5).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> optimizer.metrics["sam/applied"]
        1.0
    """

    rho: Positive = 0.5
    eta: NonNegative = 0.01
    normalize_bias: bool = False
    scope: Scope = "element"

    def parts(self) -> Parts:
        """Every step, the adaptive ball, the sharp gradient."""
        return Parts(Interval(1), Adaptive(self.rho, self.eta, self.normalize_bias, self.scope), SharpGradient())
