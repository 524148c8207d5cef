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
"""What optimizers call an average of gradients: SGD's and its kin's, Adam's, SGDP's and NovoGrad's."""


@dataclass(frozen=True, repr=False)
class Momentum(Perturbation):
    """Climb against the base optimizer's momentum: ``ε = -ρ v / ‖v‖``, which needs no gradient.

    ``v`` is the momentum before the step, an average of past gradients along which the weights come down. A step
    without momentum yet is a plain one.

    It is looked for in the base optimizer's state of each parameter, as a tensor of the parameter's shape: under
    ``buffer``, or under the first that is there of ``momentum_buffer`` (SGD and its kin), ``exp_avg`` (Adam's kin),
    ``momentum`` (SGDP) and ``moments`` (NovoGrad). Optimizers without one are refused, schedule-free ones among them.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``3.0``.
        buffer (str, optional): The entry of the base optimizer's state that averages gradients. A leading minus says
            that it points downhill, as a velocity ``u ← μ u - η g`` does: ``buffer='-velocity'``. Default: ``None``,
            one of the names above.
    """

    own_pass: ClassVar[bool] = False

    rho: Radius = 3.0
    buffer: NameOrNone = field(default=None, kw_only=True)

    def ascend(self, step: Step) -> Ascent | None:
        """``-v``."""
        names = BUFFERS if self.buffer is None else (self.buffer.removeprefix("-"),)
        moments = [(p, _moment(p, state, names), state) for p, state in step.states()]
        for p, moment, state in moments if step.index else ():  # some have other entries before their first step
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
        """Refuse an optimizer without momentum, as far as its options tell.

        Raises:
            ValueError: If a group that climbs has a momentum or a first beta of 0; or none, and ``buffer`` is not
                given.
        """
        own = "rho" not in optimizer.defaults
        for group in optimizer.param_groups:
            stays = (group.get("rho", self.rho) if own else self.rho) == 0
            declared = "momentum" in group or "betas" in group
            if not stays and not _decay(group) and (declared or self.buffer is None):
                raise ValueError(
                    f"{type(self).__name__}: the base optimizer must have momentum to climb against, a momentum > 0 as "
                    f"of SGD or a first moment as of Adam; this {type(optimizer).__name__} has none. If its state "
                    "averages gradients without an option that says so, name the entry: buffer='...'."
                )

    def _unreadable(self, p: Tensor, names: set[str]) -> str:
        name = type(self).__name__
        wanted = "none under a name that is known" if self.buffer is None else f"none under buffer={self.buffer!r}"
        return (
            f"{name}: the base optimizer must keep an average of gradients to climb against, and its state has "
            f"{wanted}. Of a parameter of shape {tuple(p.shape)} it has {', '.join(sorted(map(str, names)))}. {name} "
            f"looks for a tensor of the parameter's shape under {', '.join(BUFFERS)}. If another entry is one, name "
            "it: buffer='...'; else take SGD with momentum or Adam."
        )


def _moment(p: Tensor, state: Mapping[str, Any], names: Sequence[str]) -> Tensor | None:
    """The momentum of a parameter, in its precision; None if there is none under these names."""
    for name in names:
        found = state.get(name)
        if isinstance(found, Tensor) and found.shape == p.shape and (found.is_floating_point() or found.is_complex()):
            return found if found.dtype == p.dtype else found.to(p.dtype)
    return None


def _decay(group: Mapping[str, Any]) -> Any:
    """How much of its momentum a parameter group keeps; 0 or None if it has none."""
    return group.get("momentum") or next(iter(group.get("betas", ())), None)


@dataclass(frozen=True, repr=False)
class MomentumSAM(Method):
    """SAM at the cost of a plain step (`Becker et al., 2024 <https://arxiv.org/abs/2401.12033>`_).

    **Idea.** The momentum that the base optimizer keeps anyway is an average of past gradients: climb by it instead of
    by a gradient that costs a pass.

    **Equation.** ``w ← w - η ∇L(w - ρ v / ‖v‖)``, ``v`` the momentum buffer before the step.

    **Cost.** 1 gradient per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs recalibration: no pass is at the clean weights, and statistics of weights so far away are not
    those of the network that is evaluated. Gather them anew after training with `sam_algos.recalibrate`, or in
    Composer's Trainer with `sam_algos.trainer.RecalibrateBatchNorm`.

    **Use it** where a second gradient is out of the question. Loss and metrics, too, are those at the displaced
    weights. Callbacks within a pass see them; evaluation, checkpoints and averages of weights do not.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``3.0`` (the paper, for CIFAR with momentum 0.9).
            It is not SAM's: far larger.
        buffer (str, optional): The entry of the base optimizer's state that is its momentum, where it has an unusual
            name: see `Momentum`. Default: ``None``, recognised as ``momentum_buffer``, ``exp_avg``, ``momentum`` or
            ``moments``.

    Raises:
        ValueError: If an argument is outside its range; when wrapping, if the base optimizer has no momentum; in the
            first step with its state, if that has no entry that can be read as momentum.

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
