"""ASAM: Kwon, Kim, Park and Choi, *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
Deep Neural Networks*, ICML 2021, https://arxiv.org/abs/2102.11600.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.blocks import rescale_twice_
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, NonNegative, Parts, Perturbation, Radius, Step

__all__ = ["ASAM", "Adaptive"]

Scope = Literal["element", "filter", "layer"]


@dataclass(frozen=True, repr=False)
class Adaptive(Perturbation):
    """The steepest step in a ball that scales with the weights: ``ε = ρ T² g / ‖T g‖``.

    The normalisation ``T`` is ``|w| + η`` per element; with ``scope='filter'``, ``‖filter‖ + η`` for the weights
    of a convolution; with ``scope='layer'``, ``‖w‖ + η`` of the whole tensor. As in the official code, it applies
    to parameters with ``weight`` in their name, also in normalisation layers. All other parameters have ``T = 1``, and
    still count in the norm.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.5``.
        eta (float): ``η``, keeps ``T`` above zero where a weight is zero. Default: ``0.01``.
        normalize_bias (bool): Apply ``T`` to every parameter. Default: ``False``.
        scope (str): ``'element'``, ``'filter'`` or ``'layer'``. Default: ``'element'``.
    """

    rho: Radius = 0.5
    eta: NonNegative = 0.01
    normalize_bias: bool = False
    scope: Scope = "element"

    def ascend(self, step: Step) -> Ascent:
        """Compute ``T² g``, and ``‖T g‖`` on the way."""
        d = step.scratch()
        names = step.names(d.params)
        normalized = [i for i, (name, _) in enumerate(names) if self.normalize_bias or "weight" in name]
        others = sorted(set(range(len(d.params))).difference(normalized))
        norms = []
        if others:
            norms.append(tensors.norm([d.values[i] for i in others], [d.params[i] for i in others]))
        if normalized:
            like, gradients = [d.params[i] for i in normalized], [d.values[i] for i in normalized]
            factor = self._elementwise if self.scope == "element" else None
            weights = step.weights(like)
            norms.append(rescale_twice_(gradients, self._normalization, weights, like=like, factor=factor))
        return Ascent(d, tensors.reciprocal(tensors.norm(norms, norms)), disposable=True)

    def _elementwise(self, _: Tensor, weight: Tensor) -> Tensor:
        """``T`` for one tensor with ``scope='element'``."""
        return weight.abs().add_(self.eta)

    def _normalization(self, _: Sequence[Tensor], weights: list[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """``T`` for each weight tensor, broadcastable to its shape."""
        if self.scope == "layer":
            return [layer.to(w) + self.eta for w, layer in zip(weights, tensors.norms(weights, like), strict=True)]
        if self.scope == "filter":
            pairs = zip(weights, like, strict=True)
            magnitudes = [tensors.filter_norms(w, p) if w.ndim > 2 else w.abs() for w, p in pairs]
        else:
            magnitudes = list(torch._foreach_abs(weights))
        torch._foreach_add_(magnitudes, self.eta)
        return magnitudes


@dataclass(frozen=True, repr=False)
class ASAM(Method):
    """Adaptive sharpness-aware minimization (`Kwon et al., 2021 <https://arxiv.org/abs/2102.11600>`_).

    **Idea.** Rescaling two ReLU layers by ``τ`` and ``1/τ`` does not change what a network computes, but it does
    change its sharpness in a ball of fixed radius. ASAM's ball scales with the weights, so networks that compute the
    same function are equally sharp.

    **Equation.** ``w ← w - η_lr ∇L(w + ε)`` with ``ε = ρ T² g / ‖T g‖`` and ``T = |w| + η``: see `Adaptive`.

    **Cost.** 2 gradients per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** like SAM, for networks without strong weight decay or with layers of very different scale. Its radius
    is about ten times larger than SAM's.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.5`` (the official code for CIFAR-10; 1.0 for
            CIFAR-100). Ports that set ``eta=0`` and normalise biases need about 2.0.
        eta (float): Added to ``|w|``. Default: ``0.01`` (the official code).
        normalize_bias (bool): Normalise biases too. Default: ``False`` (the official code).
        scope (str): What one normalisation factor covers: ``'element'``, ``'filter'`` or ``'layer'``.
            Default: ``'element'`` (the official code).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import ASAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = ASAM(rho=0.5).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/applied"]
        1.0
    """

    rho: Radius = 0.5
    eta: NonNegative = 0.01
    normalize_bias: bool = False
    scope: Scope = "element"

    def parts(self) -> Parts:
        """Every step, the adaptive ball, the sharp gradient."""
        return Parts(Interval(1), Adaptive(self.rho, self.eta, self.normalize_bias, self.scope), SharpGradient())
