"""The radii that parameter groups have of their own."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch.optim import Optimizer

from sam_algos.core.options import is_number

__all__ = ["OwnRadii", "check_radius"]


def check_radius(group: dict[str, Any]) -> None:
    """Refuse a parameter group whose ``rho`` is no radius.

    Raises:
        ValueError: If so.
    """
    rho = group.get("rho", 0.0)
    if not (is_number(rho) and 0 <= rho < math.inf):
        raise ValueError(f"Parameter group with rho={rho!r}: rho must be a finite number >= 0.")


class OwnRadii:
    """The entries ``rho`` of a base optimizer's parameter groups, read at every step.

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
        before = self._radii
        self._keep(optimizer)
        if self._radii != before:
            for group in self._groups if self._ours else ():
                check_radius(group)

    def still(self, radius: float) -> bool:
        """Whether no parameter moves, the others having this radius."""
        return not any(radius if own is None else own for own in self._radii)

    def by_parameter(self) -> dict[int, float]:
        """The radius of each parameter whose group has its own, by ``id``."""
        found = zip(self._groups, self._radii, strict=True)
        return {id(p): rho for group, rho in found if rho is not None for p in group["params"]}

    def _keep(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        if len(groups) != len(self._groups) or not all(map(operator.is_, groups, self._groups)):
            own, known = self.by_parameter(), set(map(id, self._groups))
            for group in groups if own else ():
                first = id(group["params"][0]) if group["params"] else None
                if id(group) not in known and "rho" not in group and first in own:
                    group["rho"] = own[first]
            self._groups = list(groups)
        self._radii = [group.get("rho") for group in groups] if self._ours else [None] * len(groups)
