"""Momentum-SAM: Becker, Altrock and Risse, *Momentum-SAM: Sharpness Aware Minimization without Computational
Overhead*, 2024, https://arxiv.org/abs/2401.12033.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, NameOrNone, Part, Parts, Perturbation, Radius, Step, Vector, buffers_of

__all__ = ["Momentum", "MomentumSAM"]

BUFFERS = ("momentum_buffer", "exp_avg", "momentum", "moments")
"""Names of averaged gradients in optimizer states: SGD and its relatives, Adam, SGDP and NovoGrad."""


@dataclass(frozen=True, repr=False)
class Momentum(Perturbation):
    """Climb against the base optimizer's momentum: ``ε = -ρ v / ‖v‖``, which needs no gradient.

    ``v`` is the momentum before the step, an average of past gradients. While there is no momentum yet, steps are
    plain.

    For each parameter the momentum is a tensor of the parameter's shape in the base optimizer's state. Its name there
    is ``buffer``, or else the first one found of ``momentum_buffer`` (SGD and its relatives), ``exp_avg`` (Adam and its
    relatives), ``momentum`` (SGDP) and ``moments`` (NovoGrad). Optimizers without momentum are refused, including
    schedule-free ones.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``3.0``.
        buffer (str, optional): The entry of the base optimizer's state that averages gradients. Put a minus before the
            name if the entry points downhill, as a velocity ``u ← μ u - η g`` does: ``buffer='-velocity'``. Default:
            ``None``, one of the names above.
    """

    own_pass: ClassVar[bool] = False

    rho: Radius = 3.0
    buffer: NameOrNone = field(default=None, kw_only=True)

    def ascend(self, step: Step) -> Ascent | None:
        """``-v``."""
        names = BUFFERS if self.buffer is None else (self.buffer.removeprefix("-"),)
        moments = [(p, _moment(p, state, names), state) for p, state in step.states()]
        # Skip the first step: until then some optimizers have other entries, but no momentum.
        for p, moment, state in moments if step.index else ():
            if moment is None and (others := state.keys() - buffers_of(Part)) and step.moves(p):
                raise ValueError(self._unreadable(p, others))
        found = [(p, moment) for p, moment, _ in moments if moment is not None]
        if not found:
            return None
        v = Vector([p for p, _ in found], shards.local_parts([moment for _, moment in found]))
        downhill = self.buffer is not None and self.buffer.startswith("-")
        inverse = tensors.reciprocal(v.norm())
        return Ascent(v, inverse if downhill else -inverse)

    def check(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer without momentum, as far as its options show.

        Raises:
            ValueError: If a group that climbs has momentum 0 or a first beta of 0, or has neither option and ``buffer``
                is not given.
        """
        own = "rho" not in optimizer.defaults
        for group in optimizer.param_groups:
            stays = (group.get("rho", self.rho) if own else self.rho) == 0
            declared = "momentum" in group or "betas" in group
            if not stays and not _decay(group) and (declared or self.buffer is None):
                raise ValueError(
                    f"{type(self).__name__}: the base optimizer must have momentum to climb against, such as SGD's "
                    f"momentum > 0 or Adam's first moment; this {type(optimizer).__name__} has none. If its state "
                    "averages gradients although no option shows it, name the entry: buffer='...'."
                )

    def _unreadable(self, p: Tensor, names: set[str]) -> str:
        name = type(self).__name__
        wanted = "none under a known name" if self.buffer is None else f"none under buffer={self.buffer!r}"
        return (
            f"{name}: the base optimizer must keep an average of gradients to climb against, but its state has "
            f"{wanted}. For a parameter of shape {tuple(p.shape)} it has {', '.join(sorted(map(str, names)))}. {name} "
            f"looks for a tensor of the parameter's shape under {', '.join(BUFFERS)}. If another entry averages "
            "gradients, name it: buffer='...'. Otherwise use SGD with momentum or Adam."
        )


def _moment(p: Tensor, state: Mapping[str, Any], names: Sequence[str]) -> Tensor | None:
    """A parameter's momentum, cast to the parameter's dtype; None if no entry has one of these names."""
    for name in names:
        found = state.get(name)
        if isinstance(found, Tensor) and found.shape == p.shape and (found.is_floating_point() or found.is_complex()):
            return found if found.dtype == p.dtype else found.to(p.dtype)
    return None


def _decay(group: Mapping[str, Any]) -> Any:
    """The fraction of its momentum that a parameter group keeps per step; 0 or None without momentum."""
    return group.get("momentum") or next(iter(group.get("betas", ())), None)


@dataclass(frozen=True, repr=False)
class MomentumSAM(Method):
    """SAM at the cost of a plain step (`Becker et al., 2024 <https://arxiv.org/abs/2401.12033>`_).

    **Idea.** The momentum that the base optimizer keeps anyway is an average of past gradients. Climb against it, not
    along a gradient that costs a pass.

    **Equation.** ``w ← w - η ∇L(w - ρ v / ‖v‖)``, where ``v`` is the momentum buffer before the step.

    **Cost.** 1 gradient per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs recalibration: no pass is at the clean weights, and statistics gathered that far away do not fit
    the network that is evaluated. Recompute them after training with `sam_algos.recalibrate`, or in Composer's
    Trainer with `sam_algos.trainer.RecalibrateBatchNorm`.

    **Use it** where a second gradient is out of the question. Loss and metrics are also measured at the displaced
    weights. Callbacks within a pass see these weights; evaluation, checkpoints and weight averages do not.

    Args:
        rho (float | Schedule): Radius of the perturbation, far larger than SAM's. Default: ``3.0`` (the paper, for
            CIFAR with momentum 0.9).
        buffer (str, optional): The entry of the base optimizer's state that holds its momentum, if it has an unusual
            name: see `Momentum`. Default: ``None``, recognised as ``momentum_buffer``, ``exp_avg``, ``momentum`` or
            ``moments``.

    Raises:
        ValueError: If an argument is outside its range. When wrapping, if the base optimizer has no momentum. In a
            step, if the base optimizer's state has entries but none that can be read as momentum.

    Example:
        >>> import torch
        >>> from sam_algos import MomentumSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = MomentumSAM(rho=0.5).wrap(base, model=model)
        >>> for _ in range(2):
        ...     loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/applied"], optimizer.metrics["sam/gradients"]
        (1.0, 1.0)
    """

    title: ClassVar[str] = "Momentum-SAM"

    rho: Radius = 3.0
    buffer: NameOrNone = field(default=None, kw_only=True)

    def parts(self) -> Parts:
        """Every step, against the momentum, the gradient found there."""
        return Parts(Interval(1), Momentum(self.rho, buffer=self.buffer), SharpGradient())
