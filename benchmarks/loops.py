"""The loops in which steps are measured: in both, each batch is trained by another contender in turn."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from composer import Callback, Logger, State, Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.results import BenchmarkError
from benchmarks.seats import Contender, Place
from benchmarks.timing import Rotation
from benchmarks.workloads import batches_of
from sam_algos.batch import first_samples

WHERE = {
    "trainer": "Composer's Trainer",
    "bare": "bare PyTorch loop",
    "ddp": "bare PyTorch loop, DistributedDataParallel on two processes",
}

MakeSeat = Callable[[Any], Any]
"""Puts around an optimizer what is measured besides its time; ``figures()`` is called after each step."""


def bare_loop(trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """Train the Trainer's model in a hand-written loop, a step of each contender in turn."""
    take = _steps(trainer, trainer.state.model, chosen, seat)
    while not rotation.finished:
        name = rotation.turn()
        step, optimizer = take(name)
        rotation.start()
        step()
        rotation.stop(name, optimizer.figures)


def _steps(
    trainer: Trainer, model: nn.Module, chosen: Mapping[str, Contender], seat: MakeSeat
) -> Callable[[str], tuple[Callable[[], Any], Any]]:
    """Prepares the next step of a contender: a call that takes it, and the contender's seat."""
    state = trainer.state
    seats = {name: seat(c.wrap(state.optimizers[0], model)) for name, c in chosen.items()}
    batches = batches_of(state)
    model.train()

    def take(name: str) -> tuple[Callable[[], Any], Any]:
        return partial(seats[name].step, _closure(state.model, model, seats[name], next(batches))), seats[name]

    return take


def _closure(task: Any, model: nn.Module, optimizer: Any, batch: Any) -> Callable[..., Any]:
    def closure(fraction: float = 1.0, **_: Any) -> Any:
        optimizer.zero_grad()
        seen = batch if fraction == 1 else first_samples(batch, fraction)
        loss = task.loss(model(seen), seen)
        loss.backward()
        return loss

    return closure


_STOP = -1


def ddp_loop(trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """The bare loop on two processes, of which this one, rank 0, measures and says whose turn it is.

    Raises:
        BenchmarkError: If there is a GPU: the other process is a fork of this one, which CUDA does not survive.
    """
    if torch.cuda.is_available():
        raise BenchmarkError("--modes ddp measures on CPUs, and this machine has a GPU: hide it")
    with tempfile.TemporaryDirectory() as folder:
        run = partial(_ddp_rank, folder, trainer, chosen, seat)
        other = multiprocessing.get_context("fork").Process(target=run, args=(1, None))
        other.start()
        try:
            run(0, rotation)
        finally:
            other.kill()  # nothing of it is needed any more, and it can wait for ever for its process group to end


def _ddp_rank(
    folder: str, trainer: Trainer, chosen: Mapping[str, Contender], seat: MakeSeat, rank: int,
    rotation: Rotation | None,
) -> None:  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        take = _steps(trainer, DistributedDataParallel(trainer.state.model), chosen, seat)
        names = list(chosen)
        while True:
            turn = torch.tensor(_STOP if rotation is None or rotation.finished else names.index(rotation.turn()))
            dist.broadcast(turn, 0)
            if turn == _STOP:
                return
            step, optimizer = take(names[int(turn)])
            dist.barrier()
            if rotation is None:
                step()
            else:
                rotation.start()
                step()
                rotation.stop(names[int(turn)], optimizer.figures)
    finally:
        dist.destroy_process_group()


def trainer_loop(trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """Train in the Trainer, which gets another contender's optimizer with every batch."""
    # First, so that the step's end is read before the other callbacks and the loggers act on it.
    trainer.state.callbacks.insert(0, _InTurn(chosen, rotation, seat))
    if not rotation.finished:
        trainer.fit()


LOOPS = {"trainer": trainer_loop, "bare": bare_loop, "ddp": ddp_loop}


class _InTurn(Callback):
    """Puts the contender whose turn it is in place when a batch starts."""

    def __init__(self, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
        self._contenders = chosen
        self._rotation = rotation
        self._seat = seat
        self._places: dict[str, Place] = {}
        self._name = ""

    def fit_start(self, state: State, logger: Logger) -> None:
        self._places = {name: Place.make(c, state, logger, self._seat) for name, c in self._contenders.items()}

    def batch_start(self, state: State, logger: Logger) -> None:
        self._name = self._rotation.turn()
        self._places[self._name].take(state)
        self._rotation.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._rotation.stop(self._name, self._places[self._name].seat.figures)
        if self._rotation.finished:
            state.stop_training()
