"""A step whose gradient is ready, and which somebody else is to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Pending"]


class Pending:
    """Waits for the base optimizer's step, whoever calls it: a loop, a ``GradScaler``, a framework."""

    def __init__(self) -> None:
        self._waits = False
        self._then: Callable[[], None] | None = None
        self._left: list[Tensor] = []
        self._handle: Any = None

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: gradients are neither copied nor pickled."""
        return Pending, ()

    def __bool__(self) -> bool:
        """Whether a step is to be taken."""
        return self._waits

    def wait(self, optimizer: Optimizer, params: Sequence[Tensor], then: Callable[[], None] | None) -> None:
        """Call ``then`` once, after the optimizer's next step, if it uses the gradients that lie on ``params``."""
        self._waits, self._then = True, then
        self._left = [p for p in params if p.grad is not None]
        self._handle = optimizer.register_step_post_hook(self._stepped)
        # Run before user hooks, which may zero gradients.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._handle.id, last=False)

    def drop(self) -> bool:
        """Wait no longer; whether a step was still to be taken."""
        waited, self._waits, self._then, self._left = self._waits, False, None, []
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        return waited

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        then, left = self._then, self._left  # the hook stays until the next `drop`, as hooks are being iterated over
        self._waits, self._then, self._left = False, None, []
        found_inf = getattr(optimizer, "found_inf", None)  # a GradScaler leaves skipping to a fused optimizer
        zeroed = bool(left) and all(p.grad is None for p in left)
        if then is not None and not zeroed and not (found_inf is not None and bool(found_inf)):
            then()
