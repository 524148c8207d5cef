"""What a training prints while it runs: a line for each epoch, and on a terminal a bar within it."""

from __future__ import annotations

import contextlib
import time
from typing import Any, TextIO

from composer import Logger, State
from composer.core import TimeUnit
from composer.loggers import LoggerDestination
from composer.utils import dist
from tqdm import tqdm

from sam_algos.recipes.results import headline


class Progress(LoggerDestination):
    """Prints ``epoch  3/24  loss 1.2345  accuracy 93.61 %  SAM  44.0 %  2.1 s`` after each epoch and at the end.

    The loss is the mean over the training batches since the last line, ``SAM`` the fraction of sharp steps so far, the
    time is since the last line, evaluation included. Only rank 0 prints.

    Args:
        stream (TextIO | None): Where to print; a bar is drawn if it is a terminal. None prints nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Print nothing yet."""
        self._stream = stream if dist.get_global_rank() == 0 else None
        self._bar: tqdm[Any] | None = None
        self._since = time.perf_counter()
        self._losses: list[float] = []
        self._metrics: dict[str, Any] = {}

    def silence(self) -> None:
        """Print nothing from now on."""
        self._stream = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember what the next line shows."""
        if "loss/train/total" in metrics:
            self._losses.append(float(metrics["loss/train/total"]))
        self._metrics.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Draw the epoch's bar."""
        if self._stream is not None and self._stream.isatty():
            total, done = state.dataloader_len, int(state.timestamp.batch_in_epoch)
            self._bar = tqdm(
                desc=_position(state, ended=False), total=total and int(total), initial=done,
                file=self._stream, leave=False, dynamic_ncols=True, unit="step",
            )  # fmt: skip

    def batch_end(self, state: State, logger: Logger) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Take the bar away; the last evaluation may be still to come."""
        self.stop()

    fit_end = close = epoch_end

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Print the epoch's line, its evaluation included."""
        self._line(state)

    def finish(self, state: State) -> None:
        """Print what came after the last whole epoch, the last evaluation included."""
        if self._losses:
            self._line(state)

    def stop(self) -> None:
        """Take the bar away, so that something else can be printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Print a line."""
        if self._stream is not None:
            with contextlib.suppress(BrokenPipeError):  # whoever reads it has seen enough; training goes on
                print(line, file=self._stream, flush=True)

    def _line(self, state: State) -> None:
        now, words = time.perf_counter(), [_position(state, ended=True)]
        if self._losses:
            words.append(f"loss {sum(self._losses) / len(self._losses):.4f}")
        if (found := headline(self._metrics)) is not None:
            words.append(f"{found.name} {found.shown}")
        if (fraction := self._metrics.get("sam/fraction")) is not None:
            words.append(f"SAM {100 * fraction:5.1f} %")
        words.append(f"{now - self._since:.1f} s")
        self.say("  ".join(words))
        self._since, self._losses, self._metrics = now, [], {}


def _position(state: State, *, ended: bool) -> str:
    """How far training is, in the unit of its duration, or in epochs where the bar needs one."""
    end, now = state.max_duration, state.timestamp
    epoch = int(now.epoch) + (not ended)
    if end is None or end.unit == TimeUnit.EPOCH:
        total = "" if end is None else f"/{end.value}"
        return f"epoch {epoch:>{len(total) - 1 or 1}}{total}"
    done = now.get(end.unit).value
    return f"{end.unit.name.lower()} {done:>{len(str(end.value))}}/{end.value}" if ended else f"epoch {epoch}"
