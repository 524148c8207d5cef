"""The loops in which steps are measured. In each loop the contenders take turns, one batch each."""

from __future__ import annotations

import copy
import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders import Contender, Delegate, contenders
from benchmarks.results import BenchmarkError
from benchmarks.timing import Rotation
from benchmarks.workloads import Batch, Task

WHERE = {
    "trainer": "Composer's Trainer",
    "bare": "bare PyTorch loop",
    "ddp": "bare PyTorch loop, DistributedDataParallel on two processes",
}


class Seat(Delegate):
    """Counts an optimizer's gradients, from its own metrics or from its calls of the closure.

    Attributes:
        passes (int): The number of times that the last step called the closure.
        outside (float | None): CPU seconds that the last step spent outside the closure. None where this is not
            meaningful: on a GPU, or if the closure returns the loss of each sample and the step runs backward.
    """

    passes = 0
    outside: float | None = None

    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Step, and count."""
        if closure is None:
            self.passes, self.outside = 1, None
            return self.inner.step()
        self.passes = 0
        within, complete = 0.0, not torch.cuda.is_available()

        @functools.wraps(closure)  # optimizers inspect its signature
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal within, complete
            self.passes += 1
            begun = time.process_time()
            loss = closure(*args, **options)
            within += time.process_time() - begun
            complete = complete and getattr(loss, "ndim", 0) == 0
            return loss

        begun = time.process_time()
        loss = self.inner.step(closure=counted)
        self.outside = time.process_time() - begun - within if complete else None
        return loss

    def figures(self) -> dict[str, float]:
        """Figures of the last step to keep in addition to its time."""
        gradients = float(getattr(self.inner, "metrics", {}).get("sam/gradients", self.passes))
        return {"gradients": gradients, **({} if self.outside is None else {"outside": self.outside})}


MakeSeat = Callable[[Any], Any]
"""Wraps an optimizer to measure more than its time; ``figures()`` is called after each step."""


def run(
    mode: str, task: Task, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat = Seat
) -> None:  # fmt: skip
    """Train a task, with one step of each contender in turn, until the rotation is finished."""
    if mode == "trainer":
        from benchmarks.trainer import trainer_loop

        trainer_loop(task.trainer, chosen, rotation, seat)
    elif mode == "ddp":
        _ddp_loop(task, chosen, rotation, seat)
    else:
        take = steps(task, task.network, chosen, seat)
        while not rotation.finished:
            name = rotation.turn()
            step, figures = take(name)
            rotation.start()
            step()
            rotation.stop(name, figures)


Take = Callable[[str], tuple[Callable[[], Any], Callable[[], Mapping[str, float]]]]


def steps(task: Task, model: nn.Module, chosen: Mapping[str, Contender], seat: MakeSeat = Seat) -> Take:
    """Returns a function that prepares a contender's next step in a hand-written loop.

    It returns two callables: one takes the step, the other returns the step's figures.
    """
    seats = {name: seat(c.wrap(task.optimizer, model)) for name, c in chosen.items()}
    model.train()

    def take(name: str) -> tuple[Callable[[], Any], Callable[[], Mapping[str, float]]]:
        task.optimizer.zero_grad()  # drops the gradients of another contender's step
        closure = closure_for(chosen[name], seats[name], task, model, next(task.batches))
        return partial(seats[name].step, closure), seats[name].figures

    return take


def closure_for(contender: Contender, optimizer: Any, task: Task, model: nn.Module, batch: Batch) -> Callable[..., Any]:
    """The closure that a contender's step needs. Only this function knows how contenders call it."""
    if contender.reads_losses:

        def losses(samples: Callable[[Batch], Batch] = lambda batch: batch) -> torch.Tensor:
            return task.loss(model, samples(batch), reduction="none")

        return losses

    def closure(samples: Callable[[Batch], Batch] = lambda batch: batch, **_: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss(model, samples(batch))
        loss.backward()
        return loss

    return closure


_STOP = -1
_START = timedelta(minutes=5)
"""Time limit for the second process to begin: on a busy machine its imports are slow."""
_PATIENCE = timedelta(minutes=1)
"""Time limit for each process to wait for the other after that."""


def _ddp_loop(task: Task, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """The bare loop on two processes. This process, rank 0, measures and chooses the next contender."""
    if torch.cuda.is_available():
        raise BenchmarkError("--modes ddp measures on CPUs, but this machine has a GPU: set CUDA_VISIBLE_DEVICES=''")
    batches = [next(task.batches) for _ in range(8)]
    # Spawn, as a process forked after other threads have started may deadlock.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        other = context.Process(
            target=_other_rank, args=(theirs, folder, task.network, task.optimizer, batches, list(chosen), seat)
        )
        other.start()
        theirs.close()
        try:
            if not ours.poll(_START.total_seconds()):  # the process group would wait half an hour
                raise BenchmarkError(f"the second process has not begun within {_START}")
            ours.recv()
            turn = torch.tensor(_STOP)  # outlives the process group, as `_ddp_rank` explains
            _ddp_rank(folder, task, chosen, seat, turn, rotation)
        except (EOFError, RuntimeError) as error:  # raised by the pipe and the process group if the other has ended
            other.join(_PATIENCE.total_seconds() / 6)
            if other.exitcode is None:
                raise
            why = f"{error}. " if str(error) else ""
            raise BenchmarkError(f"{why}The second process ended with exit status {other.exitcode}") from error
        finally:
            other.kill()  # it is no longer needed, and may wait for its process group for ever


def _other_rank(
    begun: Connection,
    folder: str,
    network: nn.Module,
    optimizer: Any,
    batches: list[Batch],
    names: list[str],
    seat: MakeSeat,
) -> None:
    begun.send(True)
    network, optimizer = copy.deepcopy((network, optimizer))  # objects that were sent share memory with the sender's
    task = Task(network, optimizer, itertools.cycle(batches))
    found = contenders(optimizer, mode="ddp", essential=False)
    turn = torch.tensor(_STOP)
    _ddp_rank(folder, task, {name: found[name] for name in names}, seat, turn, None)


def _ddp_rank(
    folder: str,
    task: Task,
    chosen: Mapping[str, Contender],
    seat: MakeSeat,
    turn: torch.Tensor,
    rotation: Rotation | None,
) -> None:
    """Take part in the loop: as rank 0 with a rotation, as rank 1 without one.

    The caller holds ``turn``, which tells rank 1 what to do. The process group ends with the model, and waits for its
    threads while it holds the GIL. A thread with the last reference to a tensor would wait for the GIL to free it.
    """
    rank = int(rotation is None)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", timeout=_PATIENCE, rank=rank, world_size=2)
    try:
        take = steps(task, DistributedDataParallel(task.network), chosen, seat)
        names = list(chosen)
        while True:
            turn.fill_(_STOP if rotation is None or rotation.finished else names.index(rotation.turn()))
            dist.broadcast(turn, 0)
            if turn == _STOP:
                return
            step, figures = take(names[int(turn)])
            dist.barrier()
            if rotation is None:
                step()
            else:
                rotation.start()
                step()
                rotation.stop(names[int(turn)], figures)
    finally:
        dist.destroy_process_group()
