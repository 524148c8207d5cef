"""Whatever interrupts a step, wherever: weights, optimizer, method and Trainer are as before it."""

from __future__ import annotations

from typing import Any

import pytest
from composer import Trainer
from composer.core import Event, State

from sam_algos import Method
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    EVERY_METHOD,
    EVERY_PASS_OF_EVERY_KIND,
    AlgorithmOn,
    memory,
    noisy_classifier,
    optimizer_state,
    passes,
    same,
    trainer,
)

IN_EVERY_PASS = [
    Event.BEFORE_FORWARD,
    Event.AFTER_FORWARD,
    Event.BEFORE_LOSS,
    Event.AFTER_LOSS,
    Event.BEFORE_BACKWARD,
    Event.AFTER_BACKWARD,
]
PLACES = [
    *((case, event, 1) for case in EVERY_KIND for event in (Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH)),
    *((case, event, case.values[1]) for case in EVERY_PASS_OF_EVERY_KIND[:2] for event in IN_EVERY_PASS),
    *((case, Event.AFTER_LOSS, case.values[1]) for case in EVERY_PASS_OF_EVERY_KIND[2:]),
    *((case, Event.AFTER_BACKWARD, case.values[1]) for case in EVERY_PASS_OF_EVERY_KIND[2:]),
    *((case, Event.AFTER_FORWARD, passes(case.values[0])) for case in EVERY_METHOD),
]
"""One method is interrupted everywhere, one of each kind in every pass, each method in its last pass."""


class _Fault:
    """Raises once: when an event happens for the n-th time in a batch, from the third batch on."""

    def __init__(self, event: Event, time: int, error: type[BaseException]) -> None:
        self._event, self._time, self._error = event, time, error
        self._times = 0
        self.before: Any = None
        self.raised = False

    def algorithms(self, snapshot: Any) -> list[AlgorithmOn]:
        def start(state: State) -> None:
            self._times = 0
            if not self.raised:
                self.before = snapshot()

        return [AlgorithmOn(Event.BATCH_START, start), AlgorithmOn(self._event, self._raise)]

    def _raise(self, state: State) -> None:
        self._times += 1
        if self._times == self._time and state.timestamp.batch >= 2 and not self.raised:
            self.raised = True
            raise self._error("injected")


def _snapshot(run: Trainer) -> Any:
    """All that a step changes, running statistics apart (the first pass's own), and what it borrows."""
    state = run.state
    parameters = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    momenta = {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer_state(run)["state"].items()}
    borrowed = [id(x) for x in (*state.callbacks, *state.algorithms, state.train_metrics)]
    return parameters, momenta, memory(run), list(state.train_metrics), borrowed


def _interrupted(method: Method, event: Event, time: int, error: type[BaseException]) -> tuple[Trainer, _Fault]:
    fault = _Fault(event, time, error)
    run = trainer(method, *fault.algorithms(lambda: _snapshot(run)), model=noisy_classifier())
    with pytest.raises(error, match="injected"):
        run.fit()
    return run, fault


@pytest.mark.parametrize(
    ("method", "event", "time"),
    [pytest.param(case.values[0], event, n, id=f"{case.id}, {event.value} {n}") for case, event, n in PLACES],
)
def test_an_interrupted_step_leaves_no_trace(method: Method, event: Event, time: int) -> None:
    run, fault = _interrupted(method, event, time, KeyboardInterrupt)
    assert same(_snapshot(run), fault.before)
    assert run.state.model.module[1].track_running_stats
    run.close()


@pytest.mark.parametrize(("method", "time"), EVERY_PASS_OF_EVERY_KIND)
def test_training_goes_on_after_an_error(method: Method, time: int) -> None:
    run, fault = _interrupted(method, Event.AFTER_BACKWARD, time, RuntimeError)
    assert same(_snapshot(run), fault.before)
    done = memory(run)["step"]
    run.fit(duration="3ba")
    run.close()
    assert memory(run)["step"] == done + 3 <= 2 * BATCHES + 3
