"""Whether the base optimizer steps by the gradient that it is given, and not by one of its own."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_algos.core.parts import Descent, Parts, WholeBatch
from sam_algos.core.refusals import is_private

__all__ = ["Handover", "refuse_private"]


class Handover:
    """Watches the base optimizer's first step, where the gradient is one that the method has computed.

    An optimizer that puts another gradient in its place would step without the method. It may also put one there that
    it computes from the method's, by centralization for example: a trial tells which.

    Args:
        parts (Parts): The method's.

    Attributes:
        watches (bool): Whether a step is still to be seen.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._handle: Any = None
        self._given: tuple[Tensor, Tensor] | None = None
        self._seen = False
        self.watches = _computes(parts) is not None

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: hooks stay with the original."""
        return Handover, (self._parts,)

    def give(self, optimizer: Optimizer, params: Iterable[Tensor]) -> None:
        """The method's gradient lies on ``params``: watch the step that follows, unless one was seen."""
        if self._seen:
            if self._handle is not None:
                self._handle.remove()
                self._handle = None
            self.watches = False
            return
        self._given = next(((p, p.grad) for p in params if p.grad is not None), None)
        if self._handle is None and hasattr(optimizer, "_optimizer_step_post_hooks"):
            self._handle = optimizer.register_step_post_hook(self._after)

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self._given is None:
            return
        (param, given), self._given, self._seen = self._given, None, True
        if param.grad is not None and param.grad is not given and _ignores_gradients(optimizer, param):
            raise RuntimeError(
                f"{type(optimizer).__name__} replaced the gradient by one of its own and stepped by that, so the "
                "method's was lost. Methods that hand over a gradient which they compute cannot work with it; those "
                "whose last pass leaves it, such as SAM(), can."
            )


def _ignores_gradients(optimizer: Optimizer, param: Tensor) -> bool:
    """Whether two different gradients on a copy of ``param`` end as the same, or the copy cannot be stepped at all.

    A shallow copy of the optimizer takes these steps, without state and hooks. One that steps through another optimizer
    gets no trial, as it would step that one's parameters.
    """
    if "param_groups" not in vars(optimizer) or any(isinstance(value, Optimizer) for value in vars(optimizer).values()):
        return True
    group = next(g for g in optimizer.param_groups if any(p is param for p in g["params"]))
    left = []
    for factor in (1.0, -2.0):
        try:
            stand_in = nn.Parameter(param.detach().clone())
            ramp = torch.arange(1.0, param.numel() + 1, device=param.device).view(param.shape)
            stand_in.grad = (factor * ramp.square()).to(param)
            trial = object.__new__(type(optimizer))  # as `copy.copy` would leave the attributes of subclasses behind
            trial.__dict__.update(
                vars(optimizer),
                param_groups=[{**group, "params": [stand_in]}],
                state=defaultdict(dict),
                _optimizer_step_pre_hooks=OrderedDict(),
                _optimizer_step_post_hooks=OrderedDict(),
            )
            type(optimizer).step(trial)
        except Exception:  # shards, or a copy does not have what the optimizer's own gradient comes from
            return True
        left.append(stand_in.grad)
    return left[0] is not None and left[1] is not None and bool((left[0] == left[1]).all())


def _computes(parts: Parts) -> str | None:
    """The part whose gradient is not that of the last pass on the batch; None if there is none."""
    descent = type(parts.descent)
    if descent.sharp is not Descent.sharp or descent.flat is not Descent.flat:
        return repr(parts.descent)
    return None if type(parts.samples) is WholeBatch else repr(parts.samples)


def refuse_private(optimizer: Optimizer, parts: Parts) -> None:
    """Refuse an optimizer of Opacus for methods that compute a gradient; warn about the others.

    Raises:
        ValueError: If the gradient would be lost.
    """
    if not is_private(optimizer):
        return
    name = type(optimizer).__name__
    if (part := _computes(parts)) is not None:
        raise ValueError(
            f"{part} computes a gradient, and Opacus' {name} steps by those of single samples that the last pass left: "
            "it would be lost. Use a method whose last pass leaves the gradient, such as SAM()."
        )
    warnings.warn(
        f"The gradient that {name} steps by is clipped and noised, but the ascent to the weights where it is computed "
        f"({parts.perturbation!r}) is not private: the accountant's epsilon does not cover it.",
        UserWarning,
        stacklevel=4,
    )
