"""The radius of each parameter: that of the step, or that of its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import methodcaller
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sam_algos.core.objective.answers import Ascent
from sam_algos.core.options import is_number

__all__ = ["OwnRadii", "check_radius"]


_RHO = methodcaller("get", "rho")


def check_radius(group: dict[str, Any]) -> None:
    """Refuse a parameter group whose ``rho`` is no radius.

    Raises:
        ValueError: If so.
    """
    rho = group.get("rho", 0.0)
    if not (is_number(rho) and 0 <= rho < math.inf):
        raise ValueError(f"Parameter group with rho={rho!r}: rho must be a finite number >= 0.")


class OwnRadii:
    """The entries ``rho`` of a base optimizer's parameter groups, read at every step, and what moves by which radius.

    PyTorch's ``load_state_dict`` puts the checkpoint's groups in the place of the optimizer's. A ``rho`` in the
    checkpoint then counts, as its ``lr`` does. Where the checkpoint has none, as after plain training, the group keeps
    its own: it is put back as soon as the groups are found replaced, however they were loaded.

    Args:
        optimizer (torch.optim.Optimizer): The base optimizer. If ``rho`` is an option of its own, as Adadelta's is, no
            group has a radius of its own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._ours = "rho" not in optimizer.defaults
        self._groups: list[dict[str, Any]] = []
        self._radii: list[Any] = []
        self._any = False  # whether any group has a radius of its own
        self._checked: list[Any] | None = None
        self._hook: Any = None
        self.read(optimizer)
        self.watch(optimizer)

    def watch(self, optimizer: Optimizer) -> None:
        """Put radii back right after a checkpoint is loaded; an optimizer that calls no hooks gets them at its step."""
        if hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
            self._hook = optimizer.register_load_state_dict_post_hook(self._keep)

    def forget(self) -> None:
        """Put nothing back any more."""
        if self._hook is not None:
            self._hook.remove()

    def read(self, optimizer: Optimizer) -> None:
        """Take in the groups as they are when a step begins.

        Raises:
            ValueError: If a ``rho`` is not a finite number >= 0.
        """
        self._keep(optimizer)
        if self._radii is not self._checked:
            for group in self._groups if self._ours else ():
                check_radius(group)
            self._checked = self._radii

    def still(self, radius: float | Tensor) -> bool:
        """Whether no parameter moves, the others having this radius; no tensor is waited for."""
        if isinstance(radius, Tensor):
            return False
        return not (any(radius if own is None else own for own in self._radii) if self._any else radius)

    def moving(self, params: Sequence[Tensor], radius: float | Tensor) -> list[Tensor]:
        """The parameters whose radius is above 0, the others having this radius; a tensor is not waited for."""
        own, others = self.by_parameter(), 1.0 if isinstance(radius, Tensor) else radius
        return [p for p in params if own.get(id(p), others) > 0]

    def scales(self, ascent: Ascent, radius: float | Tensor) -> list[Tensor]:
        """``ρ · scale`` for each parameter of an ascent, with its group's own radius where it has one."""
        params, scale = ascent.direction.params, ascent.scale
        if ascent.absolute:
            return [scale] * len(params)
        shared = scale * (radius.to(scale.device) if isinstance(radius, Tensor) else radius)
        if not self._any:
            return [shared] * len(params)
        own = self.by_parameter()
        scaled = {rho: scale * rho for rho in {*own.values()}}
        if not isinstance(radius, Tensor):
            shared = scaled.get(radius, shared)  # one tensor for one radius, so that its parameters move together
        return [scaled[own[id(p)]] if id(p) in own else shared for p in params]

    def by_parameter(self) -> dict[int, float]:
        """The radius of each parameter whose group has its own, by ``id``."""
        found = zip(self._groups, self._radii, strict=True)
        return {id(p): rho for group, rho in found if rho is not None for p in group["params"]}

    def _keep(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        if list(map(id, groups)) != list(map(id, self._groups)):
            own, known = self.by_parameter(), set(map(id, self._groups))
            for group in groups if own else ():
                first = id(group["params"][0]) if group["params"] else None
                if id(group) not in known and "rho" not in group and first in own:
                    group["rho"] = own[first]
            self._groups = list(groups)
        radii = list(map(_RHO, groups)) if self._ours else [None] * len(groups)
        if radii != self._radii:
            self._radii, self._any = radii, any(rho is not None for rho in radii)
