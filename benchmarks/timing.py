"""Interleaved timing: in every round each contender takes one step, in a new random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.results import rounded

WARM_UP = 2  # rounds in which buffers are made and libraries choose their kernels
_SAVE_EVERY = 10.0  # seconds


class Meter(Protocol):
    """Takes readings of each step."""

    start: Callable[[], None]
    stop: Callable[[], None]
    drain: Callable[[], list[dict[str, float]]]


def norm_and_write(like: Tensor, elements: int) -> Callable[[], None]:
    """The two tensor operations that a step of SAM cannot avoid: a norm of ``g``, and ``w + a g`` in other memory.

    Args:
        like: A parameter, for its dtype and device.
        elements: The network's number of parameters.

    Returns:
        Callable: Runs both operations once.
    """
    gradient, weights, elsewhere = (torch.ones(elements, dtype=like.dtype, device=like.device) for _ in range(3))

    def operations() -> None:
        torch.linalg.vector_norm(gradient)
        torch.add(weights, gradient, alpha=0.1, out=elsewhere)

    return operations


class Clock:
    """Reads ``wall`` and ``cpu`` seconds; on a GPU ``wall``, and ``peak``, the bytes allocated on top of memory in use.

    On a GPU it records two events on the stream and reads the time between them. It waits for them only between rounds.
    """

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._memory = 0
        self._begun: Any = None
        self._steps: list[tuple[Any, Any, int]] = []

    def start(self) -> None:
        """Begin a step."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._memory = torch.cuda.memory_allocated()
        self._begun = self._moment()

    def stop(self) -> None:
        """End the step."""
        peak = torch.cuda.max_memory_allocated() - self._memory if self._cuda else 0
        self._steps.append((self._begun, self._moment(), peak))

    def drain(self) -> list[dict[str, float]]:
        """Return the readings since the last call."""
        steps, self._steps = self._steps, []
        if not self._cuda:
            return [{"wall": end[0] - begin[0], "cpu": end[1] - begin[1]} for begin, end, _ in steps]
        torch.cuda.synchronize()
        return [{"wall": begin.elapsed_time(end) / 1e3, "peak": peak} for begin, end, peak in steps]

    def _moment(self) -> Any:
        if not self._cuda:
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        return event


class Rotation:
    """Chooses the contender of each step, and adds the readings of complete rounds to the columns of ``samples``.

    It is finished after ``seconds`` seconds in total and ``rounds`` rounds. It calls ``save`` every few seconds. With
    ``unit``, it runs that operation once per round and adds its time to ``units``.
    """

    def __init__(
        self, names: Sequence[str], samples: dict[str, dict[str, list[float]]], *, seconds: float, rounds: int,
        title: str, save: Callable[[], None] = lambda: None, meter: Meter | None = None,
        unit: Callable[[], None] | None = None, units: dict[str, list[float]] | None = None,
    ) -> None:  # fmt: skip
        self._names, self._samples = list(names), samples
        self._unit, self._units = unit, {} if units is None else units
        for name in names:
            samples.setdefault(name, {})
        self._seconds, self._rounds, self._save = seconds, rounds, save
        self._meter = meter or Clock()
        self._warm_up = WARM_UP
        self._queue: list[str] = []
        self._turns: list[tuple[str, Mapping[str, float]]] = []
        self._saved = time.monotonic()
        self._bar = tqdm(desc=title, unit=" rounds", initial=self._count(), disable=None)

    @property
    def finished(self) -> bool:
        """Whether enough has been measured."""
        measured = sum(sum(columns.get("wall", ())) for columns in self._samples.values())
        return self._count() >= self._rounds and measured >= self._seconds

    def turn(self) -> str:
        """The contender that takes the next step."""
        if not self._queue:
            self._queue = random.Random(self._count()).sample(self._names, len(self._names))
        return self._queue.pop()

    def start(self) -> None:
        """Begin the step."""
        self._meter.start()

    def stop(self, name: str, figures: Callable[[], Mapping[str, float]]) -> None:
        """End the step; then, off the clock, call ``figures`` for more values to keep with it."""
        self._meter.stop()
        self._turns.append((name, figures()))
        if len(self._turns) == len(self._names):
            if self._unit is not None:
                self._meter.start()
                self._unit()
                self._meter.stop()
            self._end_round()

    def close(self) -> None:
        """End the measurement."""
        self._bar.close()

    def _end_round(self) -> None:
        readings, turns = self._meter.drain(), self._turns
        self._turns = []
        if self._warm_up:
            self._warm_up -= 1
            return
        columns = [*((self._samples[name], figures) for name, figures in turns), (self._units, {})]
        for (column, figures), reading in zip(columns, readings, strict=False):
            for key, value in {**reading, **figures}.items():
                column.setdefault(key, []).append(rounded(value))
        self._bar.update()
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def _count(self) -> int:
        return min(len(column) for column in self._samples[self._names[0]].values() or [()])
