"""Whether the base optimizer steps by the gradient that it is given, and not by one of its own."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import Optimizer

from sam_algos.core.parts import Descent, Parts, WholeBatch

__all__ = ["Handover", "is_private", "refuse_private"]


class Handover:
    """Watches one step of the base optimizer, where the gradient is one that the method has computed.

    An optimizer that puts another gradient in its place would step without the method.

    Args:
        parts (Parts): The method's.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._handles: list[Any] = []
        self._given: Any = None
        self._seen = _computes(parts) is None  # or of no interest

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: hooks stay with the original."""
        return Handover, (self._parts,)

    def watch(self, optimizer: Optimizer) -> None:
        """Watch the next step, unless one was seen; the one within which passes run changes the gradient rightly."""
        self._given = None
        if self._seen:
            for handle in self._handles:
                handle.remove()
            self._handles = []
        elif not self._handles and hasattr(optimizer, "_optimizer_step_post_hooks"):
            self._handles = [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if self._seen or self._given is not None:  # a class may step through its base's step, which calls hooks again
            return
        params = (p for group in optimizer.param_groups for p in group["params"])
        self._given = next(((p, p.grad) for p in params if p.grad is not None), None)

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self._given is None:
            return
        (param, given), self._given, self._seen = self._given, None, True
        if param.grad is not None and param.grad is not given:
            raise RuntimeError(
                f"{type(optimizer).__name__} replaced the gradient by one of its own and stepped by that, so the "
                "method's was lost. Methods that hand over a gradient which they compute cannot work with it; those "
                "whose last pass leaves it, such as SAM(), can."
            )


def _computes(parts: Parts) -> str | None:
    """The part whose gradient is not that of the last pass on the batch; None if there is none."""
    descent = type(parts.descent)
    if descent.sharp is not Descent.sharp or descent.flat is not Descent.flat:
        return repr(parts.descent)
    return None if type(parts.samples) is WholeBatch else repr(parts.samples)


def is_private(optimizer: Optimizer) -> bool:
    """Whether it is one of Opacus, which steps by the gradients of samples that the last backward pass left."""
    return any(cls.__module__.partition(".")[0] == "opacus" for cls in type(optimizer).__mro__)


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
