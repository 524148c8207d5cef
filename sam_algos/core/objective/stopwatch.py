"""How long plain and sharp steps take: measured by the loop itself, the same on all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median_low
from typing import NamedTuple

import torch

from sam_algos.core.passes.contract import Passes
from sam_algos.core.tensors.shards import mean_over_processes

__all__ = ["Known", "Seconds", "Stopwatch", "unknown"]

WINDOW = 31
"""Readings of each kind that are kept."""

LEAST = 2
"""Minimum readings before a time is trusted; one alone may have been a pause."""

Known = Mapping[str, list[float]]
"""The latest readings: seconds, and for sharp steps the ratio to plain ones of that time, as machines change speed."""


class Seconds(NamedTuple):
    """What steps take, in seconds; NaN where none was measured yet.

    Attributes:
        plain: A step without a gradient at displaced weights, from its decision to the next one: with the loading of
            the next batch, and without evaluations, checkpoints and pauses, which most steps have none of.
        sharp: A step with one.
        own: The part of ``plain`` that training without the method would not have: what lies outside the passes, the
            base optimizer's step, the program's own actions on the gradient and the wait for the device.
    """

    plain: float
    sharp: float
    own: float


def unknown() -> Known:
    """What is known before the first step."""
    return {"plain": [], "ratio": [], "own": []}


class Stopwatch:
    """Measures steps from decision to decision, by the program's clock (`Passes.clock`).

    At its decision a policy that has read the gradient's norm has waited for all that the device had to do, so an
    interval belongs to the step that it begins in. The first one of each kind in a process is forgotten: memory is
    allocated in it, and kernels are chosen and compiled.

    Args:
        passes: They know the time, and how much of it was the program's.

    Attributes:
        known (Mapping): The readings, to be remembered if the step succeeds.
    """

    def __init__(self, passes: Passes) -> None:
        self.known = unknown()
        self._passes = passes
        self._began = self._program = 0.0
        self._decided = self._decided_before = math.nan
        self._this: tuple[str, float] | None = None  # the step's kind, and the method's own part of it
        self._last: tuple[str, float] | None = None
        self._warm: set[str] = set()

    def start(self, known: Known) -> None:
        """A step begins; so much is known."""
        self.known = known
        self._began, self._program = self._passes.clock(), self._passes.seconds
        self._decided, self._decided_before = math.nan, self._decided
        self._this, self._last = None, self._this

    def read(self, device: torch.device) -> Seconds:
        """What steps take, with a reading of the last one; called on the same steps by all processes."""
        if math.isnan(self._decided):
            self._decided = self._passes.clock()
            self._add(device)
        plain, ratio, own = (_median(self.known[name]) for name in ("plain", "ratio", "own"))
        return Seconds(plain, ratio * plain, own)

    def stop(self, sharp: bool) -> None:
        """The step ends; one that was not taken is not stopped, and is of neither kind."""
        own = self._passes.clock() - self._began - (self._passes.seconds - self._program)
        self._this = "sharp" if sharp else "plain", own

    def _add(self, device: torch.device) -> None:
        kind, own = self._last or ("plain", math.nan)
        took, own = mean_over_processes([self._decided - self._decided_before, own], device)
        plain = _median(self.known["plain"])
        if math.isnan(took + own) or (kind == "sharp" and math.isnan(plain)):
            return  # so do all processes: what is NaN on one is NaN on all
        if kind not in self._warm:
            self._warm.add(kind)
            return
        new = {"plain": took, "own": own} if kind == "plain" else {"ratio": took / plain}
        added = {name: [*self.known[name], value][-WINDOW:] for name, value in new.items()}
        self.known = {**self.known, **added}


def _median(readings: list[float]) -> float:
    return median_low(readings) if len(readings) >= LEAST else math.nan
