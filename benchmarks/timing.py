"""Measuring in turn: in every round each contender takes one step, in an order drawn anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.summary import Columns

_WARM_UP = 2  # rounds in which buffers are made and libraries choose their kernels
_SAVE_EVERY = 10.0  # seconds


class Span:
    """The time between two moments, on a GPU between two events on its stream.

    The GPU is waited for when `seconds` is asked for, not before.
    """

    def __init__(self) -> None:
        """It begins now."""
        self._begin = self._end = _moment()

    def end(self) -> None:
        """It ends now."""
        self._end = _moment()

    def seconds(self) -> float:
        """How long it was."""
        if isinstance(self._begin, float):
            return self._end - self._begin
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3


def _moment() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream())
    return event


class Clock:
    """Reads wall and CPU time of steps, and on a GPU their peak memory above what was there before."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._cuda = torch.cuda.is_available()
        self._readings: list[tuple[Span, dict[str, float]]] = []
        self._memory = 0
        self._cpu = 0.0
        self._span: Span

    def start(self) -> None:
        """A step begins."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._memory = torch.cuda.memory_allocated()
        self._cpu = time.thread_time()
        self._span = Span()

    def stop(self) -> None:
        """It ends."""
        self._span.end()
        reading = {"cpu": time.thread_time() - self._cpu}
        if self._cuda:
            reading["peak"] = float(torch.cuda.max_memory_allocated() - self._memory)
        self._readings.append((self._span, reading))

    def drain(self) -> list[dict[str, float]]:
        """The steps since the last call: ``wall`` and ``cpu`` in seconds, ``peak`` in bytes."""
        readings, self._readings = self._readings, []
        return [{"wall": span.seconds(), **reading} for span, reading in readings]


Figures = Mapping[str, float | Span]
"""What is kept of a step besides its time; spans are read between rounds."""


class Rotation:
    """Says whose turn it is, and keeps what complete rounds have measured.

    Args:
        names: The contenders.
        samples: What was measured before, which is added to: a dictionary for each contender.
        seconds: How much to measure in all.
        rounds: How many rounds at least.
        title: What to call it on the progress bar.
        save: Called every few seconds.
    """

    def __init__(
        self, names: Sequence[str], samples: dict[str, Columns], *, seconds: float, rounds: int, title: str,
        save: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Start with the rounds that warm up."""
        self._names, self._samples = list(names), samples
        for name in names:
            samples.setdefault(name, {})
        self._seconds, self._rounds, self._save = seconds, rounds, save
        self._clock = Clock()
        self._warm_up = _WARM_UP
        self._queue: list[str] = []
        self._turns: list[tuple[str, Figures]] = []
        self._saved = time.monotonic()
        done = self._measured()
        self._bar = tqdm(
            total=round(seconds), initial=min(round(seconds), int(done)), desc=title, unit="s", disable=None
        )

    @property
    def finished(self) -> bool:
        """Whether enough has been measured."""
        return self._count() >= self._rounds and self._measured() >= self._seconds

    def turn(self) -> str:
        """Whose turn it is now."""
        if not self._queue:
            self._queue = random.Random(self._count()).sample(self._names, len(self._names))
        return self._queue.pop()

    def start(self) -> None:
        """The step begins."""
        self._clock.start()

    def stop(self, name: str, figures: Callable[[], Figures]) -> None:
        """The step ends; ``figures`` is asked for more to keep with it, off the clock."""
        self._clock.stop()
        self._turns.append((name, figures()))
        if len(self._turns) == len(self._names):
            self._end_round()

    def close(self) -> None:
        """No more will be measured."""
        self._bar.close()

    def _end_round(self) -> None:
        readings = self._clock.drain()
        turns, self._turns = self._turns, []
        if self._warm_up:
            self._warm_up -= 1
            return
        for (name, figures), reading in zip(turns, readings, strict=True):
            for key, value in {**reading, **figures}.items():
                number = value.seconds() if isinstance(value, Span) else value
                self._samples[name].setdefault(key, []).append(round(number, 8))
        self._bar.update(min(sum(reading["wall"] for reading in readings), self._bar.total - self._bar.n))
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = time.monotonic()

    def _count(self) -> int:
        return len(self._samples[self._names[0]].get("wall", ()))

    def _measured(self) -> float:
        return sum(sum(columns.get("wall", ())) for columns in self._samples.values())
