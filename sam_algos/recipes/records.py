"""What a run writes down: a metrics file that can be plotted, and what it says of the run as a whole."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from composer import Callback, Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

_EVALUATED = "metrics/eval/"

_HEADLINES = {  # the one number by which people judge a model, by the name of Composer's or torchmetrics' class
    "MulticlassAccuracy": ("accuracy", 100.0, "{:.2f} %"),
    "LanguagePerplexity": ("perplexity", 1.0, "{:.3f}"),
    "LanguageCrossEntropy": ("cross-entropy", 1.0, "{:.4f}"),
}


class MetricsFile(LoggerDestination):
    """Writes all metrics as JSON lines: one object per training batch and one per evaluation.

    Composer's FileLogger writes text for people. Here ``pandas.read_json(path, lines=True)`` gives a table
    with the columns ``batch``, ``epoch``, ``sam/applied``, ``sam/fraction``, ``step_seconds`` and whatever
    else is logged; a number that is not finite is null. A run that is resumed goes on where its checkpoint was made:
    lines of later batches, which it takes again, are dropped.

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
        """Open the file, without what comes after the batch that training starts from."""
        if dist.get_global_rank() == 0 and self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut(self._path, int(state.timestamp.batch))
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
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, state: State) -> None:
        if self._file is not None:
            now = {"batch": int(state.timestamp.batch), "epoch": int(state.timestamp.epoch)}
            numbers = {key: _number(value) for key, value in self._pending.items()}
            self._file.write(json.dumps({**now, **numbers}) + "\n")
            self._file.flush()
        self._pending = {}


def _cut(path: Path, batch: int) -> None:
    """Drop the lines of batches after ``batch``, and what a process that was killed left of a line."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["batch"] <= batch]
        rest = path.with_name(f"{path.name}.new")
        rest.write_text("".join(kept), encoding="utf-8")
        os.replace(rest, path)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read a metrics file.

    Args:
        path (Path): Written by `MetricsFile`.

    Yields:
        dict[str, Any]: A line; what a process that was killed left of one is passed over.
    """
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "batch" in line:
            yield line


def _number(value: Any) -> float | int | str | None:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) else str(value)


class StepTimes(Callback):
    """Times training steps, and logs ``step_seconds``.

    A step is everything from the batch's arrival on the device to the end of the update; on a GPU the clock
    is read when its work is done.
    """

    def __init__(self) -> None:
        """Start with no step."""
        self._start = 0.0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._start = self._now()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop the clock."""
        logger.log_metrics({"step_seconds": self._now() - self._start})

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class Headline:
    """The metric by which a model is judged.

    Args:
        name (str): In words.
        value (float): An accuracy in percent, others as they are.
        shown (str): As people read it.
    """

    name: str
    value: float
    shown: str


def headline(metrics: Mapping[str, Any]) -> Headline | None:
    """The metric to judge a model by, among those that an evaluation logged.

    Args:
        metrics (Mapping[str, Any]): By the names that Composer gives them, ``metrics/eval/MulticlassAccuracy``.

    Returns:
        Headline | None: None if there is none.

    Example:
        >>> headline({"metrics/eval/MulticlassAccuracy": 0.936}).shown
        '93.60 %'
    """
    for key, (name, factor, form) in _HEADLINES.items():
        value = metrics.get(_EVALUATED + key)
        if value is not None:
            number = factor * float(value)
            return Headline(name, number, form.format(number))
    return None


@dataclass(frozen=True)
class Summary:
    """What a run was, all of its processes together, however often it was resumed.

    Args:
        steps (int): Training steps.
        headline (Headline | None): Of the last evaluation.
        fraction (float): Of sharp steps.
        gradients (float): Gradients, all steps together.
        train_seconds (float): Of all steps, evaluation and checkpoints left out.
        steady_seconds (float): The same if each kind of step had always taken its median time, so that what disturbed
            some of them does not count.
        plain_seconds (float | None): Median of a step with one gradient; None if there was none.
        sharp_seconds (float | None): Median of a sharp step.
    """

    steps: int
    headline: Headline | None
    fraction: float
    gradients: float
    train_seconds: float
    steady_seconds: float
    plain_seconds: float | None
    sharp_seconds: float | None


def summarise(path: Path) -> Summary:
    """Sum up a metrics file.

    Args:
        path (Path): Written by `MetricsFile`; one that is not there is that of a run without steps.

    Returns:
        Summary: Of the run.
    """
    lines = list(read_metrics(path)) if path.exists() else []
    steps = [line for line in lines if "step_seconds" in line]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in steps:
        seconds[bool(step.get("sam/applied"))].append(step["step_seconds"])
    fractions = [step["sam/fraction"] for step in steps if "sam/fraction" in step]
    found = [headline(line) for line in lines if any(key.startswith(_EVALUATED) for key in line)]
    medians = {kind: statistics.median(some) if some else None for kind, some in seconds.items()}
    return Summary(
        steps=len(steps),
        headline=found[-1] if found else None,
        fraction=fractions[-1] if fractions else 0.0,
        gradients=sum(step.get("sam/gradients", 1.0) for step in steps),
        train_seconds=sum(map(sum, seconds.values())),
        steady_seconds=sum(len(some) * statistics.median(some) for some in seconds.values() if some),
        plain_seconds=medians[False],
        sharp_seconds=medians[True],
    )
