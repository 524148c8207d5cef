"""SAM-ON: Mueller, Vlaar, Rolnick and Hein, *Normalization Layers Are All That Sharpness-Aware Minimization Needs*,
NeurIPS 2023, https://arxiv.org/abs/2306.04226.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.parameters import Name
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, Parts, Perturbation, Radius, Step

__all__ = ["SAMON", "NormLayers"]


def is_normalisation(name: Name) -> bool:
    """Whether a parameter belongs to a normalisation layer: its class or a base class has "norm" in its name."""
    return any("norm" in cls.__name__.lower() for cls in type(name.layer).__mro__)


@dataclass(frozen=True, repr=False)
class NormLayers(Perturbation):
    """Only the parameters of normalisation layers climb: ``ε = ρ g_N / ‖g_N‖``, zero elsewhere.

    The class of a normalisation layer has "norm" in its name: BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm
    and similar names in libraries. All other weights cost nothing: they are not copied, moved or read.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
    """

    def ascend(self, step: Step) -> Ascent:
        """``g_N``."""
        names = step.names(step.params)
        climbing = [p for p, name in zip(step.params, names, strict=True) if is_normalisation(name)]
        if step.params and not climbing:
            raise ValueError(
                f"{type(self).__name__}: the model must have a normalisation layer (a layer with 'norm' in the name of "
                "its class) with trained parameters; this model has none."
            )
        g = step.among(climbing).gradient
        return Ascent(g, tensors.reciprocal(g.norm()))


@dataclass(frozen=True, repr=False)
class SAMON(Method):
    """SAM on normalisation layers only (`Mueller et al., 2023 <https://arxiv.org/abs/2306.04226>`_).

    **Idea.** It is enough to perturb the scales and shifts of normalisation layers, a tiny fraction of a network's
    parameters.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ g_N / ‖g_N‖`` on the parameters ``N`` of normalisation layers and
    ``ε = 0`` on all others. All parameters are stepped. See `NormLayers`.

    **Cost.** 2 gradients per step. No memory between steps, and almost none during a step.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** for networks with normalisation layers, above all where memory is short.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).

    Raises:
        ValueError: If an argument is outside its range; in the first step, if the model has no normalisation layer
            with trained parameters.

    Example:
        >>> import torch
        >>> from sam_algos import SAMON
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
        >>> optimizer = SAMON().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    title: ClassVar[str] = "SAM-ON"

    rho: Radius = 0.05

    def parts(self) -> Parts:
        """Every step, the normalisation layers, the sharp gradient."""
        return Parts(Interval(1), NormLayers(self.rho), SharpGradient())
