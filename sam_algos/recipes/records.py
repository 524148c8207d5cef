"""What a run writes down: a metrics file that can be plotted, and the time each kind of step takes."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from composer import Callback, Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist


class MetricsFile(LoggerDestination):
    """Writes all metrics as JSON lines: one object per training batch and one per evaluation.

    Composer's FileLogger writes text for people. Here ``pandas.read_json(path, lines=True)`` gives a table
    with the columns ``batch``, ``epoch``, ``sam/applied``, ``sam/fraction``, ``step_seconds`` and whatever
    else is logged; a number that is not finite is null.

    Args:
        path (str | Path): The file; it is opened when training starts, on rank 0 only, and appended to.
    """

    def __init__(self, path: str | Path) -> None:
        """Open nothing yet."""
        self._path = Path(path)
        self._file: TextIO | None = None
        self._pending: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add metrics to the line that is being collected."""
        self._pending.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the file."""
        if dist.get_global_rank() == 0 and self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the batch's line."""
        self._write(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the evaluation's line."""
        self._write(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write what was logged after the last batch."""
        if self._pending:
            self._write(state)

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, state: State) -> None:
        if self._file is not None:
            now = {"batch": int(state.timestamp.batch), "epoch": int(state.timestamp.epoch)}
            numbers = {key: _number(value) for key, value in self._pending.items()}
            self._file.write(json.dumps({**now, **numbers}) + "\n")
            self._file.flush()
        self._pending = {}


def _number(value: Any) -> float | int | str | None:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) else str(value)


class StepTimes(Callback):
    """Times training steps, plain and sharp ones apart, and counts them.

    A step is everything from the batch's arrival on the device to the end of the update; on a GPU the clock
    is read when its work is done. Logs ``step_seconds``.
    """

    def __init__(self) -> None:
        """Start with no steps."""
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        self._start = 0.0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._start = self._now()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the clock, and file the time under the kind of step that it was."""
        seconds = self._now() - self._start
        metrics = getattr(state.optimizers[0], "metrics", {})
        self.seconds[bool(metrics.get("sam/applied"))].append(seconds)
        logger.log_metrics({"step_seconds": seconds})

    def median(self, *, sharp: bool) -> float | None:
        """The median time of one kind of step.

        Args:
            sharp (bool): Steps with the second gradient, or those without.

        Returns:
            float | None: Seconds; None if there was no such step.
        """
        return statistics.median(self.seconds[sharp]) if self.seconds[sharp] else None

    @property
    def fraction(self) -> float:
        """The share of sharp steps among all."""
        sharp, total = len(self.seconds[True]), sum(map(len, self.seconds.values()))
        return sharp / total if total else 0.0

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
