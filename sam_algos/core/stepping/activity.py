"""Whether a method acts: one that never does says so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from sam_algos.core.parts import Parts
from sam_algos.core.passes.contract import Passes

__all__ = ["Activity"]

PATIENCE = (10, 50)
"""An epoch of steps in a row without a direction is no coincidence; a short one might be, and a long one costs much."""


class Activity:
    """Counts the steps that were to be sharp, and warns where none was.

    Steps whose radius is zero are the base optimizer's by choice, and not counted.

    Args:
        parts (Parts): The parts, for what they asked and what their options say.
        passes (Passes): The program, which knows how long an epoch is.
    """

    def __init__(self, parts: Parts, passes: Passes) -> None:
        self._parts = parts
        self._passes = passes
        self._taken = self._asked = self._in_vain = 0
        self._progress: float | None = None
        self._warned = False

    def note(self, asked: bool, sharp: bool, progress: float | None) -> None:
        """A step was taken.

        Args:
            asked: Whether the policy asked for a sharp one.
            sharp: Whether it was one.
            progress: The share of training done before it; None if unknown.
        """
        self._progress = progress
        self._taken += 1
        self._asked += asked
        if sharp:
            self._in_vain = 0
        elif asked:
            self._in_vain += 1
            least, most = PATIENCE
            if self._in_vain >= min(max(self._passes.epoch() or most, least), most):
                self._warn(f"{self._in_vain} steps in a row were to be sharpness-aware and were not: {self._lack()}.")

    def end(self, memory: Mapping[str, Any]) -> None:
        """Training has ended: warn if no step of it was sharp, though the options did not say so."""
        at_first = self._asked == 1  # before the base optimizer has momentum, for one
        if not self._taken or memory["sharp"] or at_first or self._parts.policy.never:
            return
        why = self._lack() if self._asked else f"{self._parts.policy!r} asked for none"
        if not self._asked and self._progress is not None and self._parts.policy.reads_progress:
            why += f", the last at {self._progress:.0%} of training"
        self._warn(f"None of {self._taken} steps was sharpness-aware, so this was training without the method: {why}.")

    def _lack(self) -> str:
        return f"{self._parts.perturbation!r} had no direction to climb in"

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=2)
