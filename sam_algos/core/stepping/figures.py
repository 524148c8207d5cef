"""The figures of a step, worked out when somebody reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sam_algos.core.objective.evaluation import Evaluation
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.gradients import marks

__all__ = ["Figures"]


class Figures:
    """The figures of one step.

    The norm of its first gradient is the only one that costs anything. Where the method did not compute it, it is
    computed from the gradient that the step left, as long as that lies there unchanged; else it is NaN.

    Args:
        evaluation (Evaluation): The passes of the step.
        log (Mapping): The figures of the policy.
        memory (dict): The method's memory; takes the count of gradients that are not finite.
        counts (bool): Whether the first gradient is counted if it is not finite.
        rho (bool): Whether to give the radius.
        losses (bool): Whether to give the number of forward passes.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        log: Mapping[str, float],
        memory: dict[str, Any],
        *,
        counts: bool,
        rho: bool,
        losses: bool,
    ) -> None:
        self._step, self._sharp = memory["step"], memory["sharp"]
        self._gradients, self._forwards = evaluation.gradients, evaluation.forwards if losses else None
        self._applied, self._rho = evaluation.climbed, evaluation.radius if rho else None
        self._log, self._memory, self._counts = log, memory, counts
        # Of shards the norm takes all processes, and figures may be read on one of them only.
        self._norm = evaluation.norm() if evaluation.sharded else evaluation.known_norm
        self._params: list[Tensor] = []  # where the first gradient lies, if its norm is not known
        if self._norm is None and (gradient := evaluation.unread_gradient) is not None:
            self._params, self._marks = gradient.params, marks(gradient.values)
        self._read: dict[str, float] | None = None

    def before_zeroing(self) -> None:
        """The gradient that the step left is about to go: compute its norm while it is there."""
        if self._params:
            self._norm, self._params = self._late_norm(), []

    def close(self) -> None:
        """The next step begins: what the gradient that this one left would have told stays unknown."""
        self._params = []
        self._count()

    def read(self) -> dict[str, float]:
        """The figures by name."""
        if self._read is None:
            self.before_zeroing()
            self._count()
            self._read = {
                "sam/applied": float(self._applied),
                "sam/fraction": self._sharp / max(1, self._step),
                "sam/gradients": self._gradients,
                **({} if self._forwards is None else {"sam/forwards": self._forwards}),
                "sam/grad_norm": math.nan if self._norm is None else float(self._norm),
                **({} if self._rho is None else {"sam/rho": float(self._rho)}),
                "sam/nonfinite": float(self._memory["nonfinite"]),
                **{f"sam/{name}": value for name, value in self._log.items()},
            }
        return self._read

    def _count(self) -> None:
        """Count the first gradient if it is not finite, once."""
        if self._counts and self._norm is not None:
            self._counts = False
            self._memory["nonfinite"] += not math.isfinite(float(self._norm))

    def _late_norm(self) -> tensors.HostValue | None:
        """The norm of the gradient that the step left, unless it was changed since."""
        grads: Any = [p.grad for p in self._params]
        if any(g is None for g in grads):
            return None
        values = shards.local_parts(grads)
        if marks(values) != self._marks:
            return None
        return tensors.HostValue(tensors.norm(values, self._params))
