"""What a run records: its metrics as JSON lines, the time of its steps, and its training accuracy."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from composer import Callback, Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from sam_algos.recipes.results import read_metrics


class MetricsFile(LoggerDestination):
    """Writes all metrics as JSON lines: one object per training batch and one per evaluation.

    Composer's FileLogger writes text for people. Here ``pandas.read_json(path, lines=True)`` gives a table
    with the columns ``batch``, ``epoch``, ``sam/applied``, ``sam/fraction``, ``step_seconds`` and whatever
    else is logged; a number that is not finite is null. A resumed run goes on where its checkpoint was made: lines of
    later batches, which are trained again, are dropped.

    Args:
        path (str | Path): The file; it is opened when training starts, on rank 0 only.
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
        """Open the file, and drop the lines after the batch that training starts from."""
        if dist.get_global_rank() == 0 and self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut(self._path, int(state.timestamp.batch))
            self._file = self._path.open("a", encoding="utf-8")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write what was logged since the last line: in a batch, once an epoch, in an evaluation, or at the end."""
        if self._file is not None and self._pending:
            now = {"batch": int(state.timestamp.batch), "epoch": int(state.timestamp.epoch)}
            numbers = {key: _number(value) for key, value in self._pending.items()}
            self._file.write(json.dumps({**now, **numbers}) + "\n")
            self._file.flush()
        self._pending = {}

    epoch_end = eval_end = fit_end = batch_end

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _cut(path: Path, batch: int) -> None:
    """Drop the lines of batches after ``batch``, and the incomplete line of a process that was killed."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["batch"] <= batch]
        rest = path.with_name(f"{path.name}.new")
        rest.write_text("".join(kept), encoding="utf-8")
        os.replace(rest, path)


def _number(value: Any) -> float | int | str | None:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) else str(value)


class StepTimes(Callback):
    """Times training steps, and logs ``step_seconds``, and on a CPU ``step_cpu_seconds``.

    A step is everything from the batch's arrival on the device to the end of the update; on a GPU the clock
    is read when its work is done. CPU time is that of all threads of this process: other programs do not add to it.
    """

    def __init__(self) -> None:
        """Start with no step."""
        self._start = 0.0, 0.0
        self._on_cpu = True

    def fit_start(self, state: State, logger: Logger) -> None:
        """Find out where the work is done."""
        self._on_cpu = state.device.name == "cpu"

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start the clocks."""
        self._start = self._now()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the clocks."""
        wall, cpu = (now - start for now, start in zip(self._now(), self._start, strict=True))
        logger.log_metrics({"step_seconds": wall, **({"step_cpu_seconds": cpu} if self._on_cpu else {})})

    def _now(self) -> tuple[float, float]:
        if not self._on_cpu and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


class TrainAccuracy(Callback):
    """Logs ``metrics/train/MulticlassAccuracy`` at the end of each epoch, over all of its batches.

    The predictions come from each step's first pass: augmented, and at weights that change from batch to batch. In a
    run that was resumed within the epoch only the batches since then count.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self._right = torch.zeros((), dtype=torch.int64)
        self._seen = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count on the device."""
        self._right = state.device.tensor_to_device(self._right)

    def after_forward(self, state: State, logger: Logger) -> None:
        """Count, before algorithms smooth or mix the labels for the loss."""
        outputs, targets = state.outputs, state.batch[1]
        if isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and not targets.is_floating_point():
            self._right += (outputs.argmax(dim=1) == targets).sum()
            self._seen += len(targets)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Log, and begin again."""
        counts = torch.stack([self._right, torch.full_like(self._right, self._seen)])
        dist.all_reduce(counts)
        right, seen = counts.tolist()
        if seen:
            logger.log_metrics({"metrics/train/MulticlassAccuracy": right / seen})
        self._right.zero_()
        self._seen = 0
