"""The loops in which steps are measured: in both, each batch is trained by another contender in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from composer import Callback, Logger, State, Trainer

from benchmarks.seats import Contender, Place
from benchmarks.timing import Rotation
from benchmarks.workloads import batches_of

WHERE = {"trainer": "Composer's Trainer", "bare": "bare PyTorch loop"}

MakeSeat = Callable[[Any], Any]
"""Puts around an optimizer what is measured besides its time; ``figures()`` is called after each step."""


def bare_loop(trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """Train the Trainer's model in a hand-written loop, a step of each contender in turn."""
    state, model = trainer.state, trainer.state.model
    seats = {name: seat(c.wrap(state.optimizers[0], model)) for name, c in chosen.items()}
    batches = batches_of(state)
    model.train()
    while not rotation.finished:
        name, batch = rotation.turn(), next(batches)
        optimizer = seats[name]
        closure = _closure(model, optimizer, batch)
        rotation.start()
        optimizer.step(closure)
        rotation.stop(name, optimizer.figures)


def _closure(model: Any, optimizer: Any, batch: Any) -> Callable[..., Any]:
    def closure(**_: Any) -> Any:
        optimizer.zero_grad()
        loss = model.loss(model(batch), batch)
        loss.backward()
        return loss

    return closure


def trainer_loop(trainer: Trainer, chosen: Mapping[str, Contender], rotation: Rotation, seat: MakeSeat) -> None:
    """Train in the Trainer, which gets another contender's optimizer with every batch."""
    # First, so that the step's end is read before the other callbacks and the loggers act on it.
    trainer.state.callbacks.insert(0, _InTurn(chosen, rotation, seat))
    if not rotation.finished:
        trainer.fit()


LOOPS = {"trainer": trainer_loop, "bare": bare_loop}


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
