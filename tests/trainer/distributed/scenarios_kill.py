"""Training that is killed again and again, and goes on by itself from its last checkpoint.

Each attempt is a fork of this process, which has imported Composer once for all of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback

from tests.trainer.distributed.tasks import Recorder, method, noisy, outcome, samples, trainer

NEEDS_PROCESS_GROUP = False  # each attempt makes its own
BATCHES = 30
KILLS = 2

CASES: dict[str, tuple[str, Callable[..., torch.optim.Optimizer] | None]] = {
    "aelooksam": ("aelooksam", None),
    "friendlysam-adamw": ("friendlysam", partial(torch.optim.AdamW, lr=0.01)),
}


class Pulse(Callback):
    """Tells the parent of every batch that begins, and gives it time to kill in its midst."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def batch_start(self, state: Any, logger: Any) -> None:
        os.write(self.pipe, b".")
        time.sleep(0.01)


def attempt(case: str, folder: Path, pipe: int) -> None:
    name, optimizer = CASES[case]
    run = trainer(
        method(name),
        module=noisy,
        optimizer=optimizer,
        data=samples(steps=BATCHES),
        steps=BATCHES,
        callbacks=[Recorder(), Pulse(pipe)],
        run_name="killed",
        save_folder=str(folder / "checkpoints"),
        save_interval="3ba",
        save_overwrite=True,
        autoresume=True,
    )
    run.fit()
    torch.save(outcome(run), folder / "outcome.pt")


def start(case: str, folder: Path) -> tuple[int, int]:
    """Fork an attempt; returns its process id and the pipe in which it announces its batches."""
    folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            attempt(case, folder, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def finish(child: int, reading: int) -> int:
    """Wait for an attempt; returns its exit code, negative for the signal that ended it."""
    while os.read(reading, 64):
        pass
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(case: str, folder: Path) -> dict[str, Any]:
    """Kill at random moments, each after at least one more checkpoint; then let an attempt come through."""
    moments, codes = random.Random(case), []
    for _ in range(KILLS):
        child, reading = start(case, folder / "killed")
        for _ in range(moments.randint(4, 7)):
            os.read(reading, 1)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        codes.append(finish(child, reading))
    codes += [finish(*start(case, folder / "killed")), finish(*start(case, folder / "whole"))]
    return {
        "codes": codes,
        "killed": torch.load(folder / "killed" / "outcome.pt", weights_only=False),
        "whole": torch.load(folder / "whole" / "outcome.pt", weights_only=False),
    }


SCENARIOS: dict[str, Callable[[Path], Any]] = {case: partial(killed, case) for case in CASES}
