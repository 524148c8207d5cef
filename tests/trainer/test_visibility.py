"""Nobody outside the step sees perturbed weights, and nobody is called more often than without a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms import EMA, SWA
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from torch import Tensor

from sam_algos import Method
from tests.trainer.training import BATCHES, EVERY_KIND, AlgorithmOn, close, fit, loader, passes, same, trainer

WITHIN_TRAINING = {
    e for e in Event if not e.is_predict and e.value not in ("eval_standalone_start", "eval_standalone_end")
}


WITHIN_ITS_ONE_PASS = (
    Event.BEFORE_TRAIN_BATCH,
    Event.BEFORE_FORWARD,
    Event.AFTER_FORWARD,
    Event.BEFORE_LOSS,
    Event.AFTER_LOSS,
    Event.BEFORE_BACKWARD,
    Event.AFTER_BACKWARD,
)
"""Where a method that has no pass at the clean weights is seen at the others."""


def _parameters(state: State) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


class _Witness(Callback):
    """Acts at every event, and notes where the weights are not those that the base optimizer left."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.surprises: list[str] = []
        self.evaluated = 0
        self._clean: dict[str, Tensor] = {}

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self.events.append(event.value)
        if self._clean:
            self._compare(state, event.value)

    def follow(self, run: Trainer) -> None:
        """Take the weights that every step of the base optimizer leaves as the clean ones."""
        self._clean = _parameters(run.state)
        base = getattr(run.state.optimizers[0], "base_optimizer", run.state.optimizers[0])
        base.register_step_post_hook(lambda *_: self._clean.update(_parameters(run.state)))
        net = run.state.model.module
        net.register_forward_pre_hook(lambda *_: None if net.training else self._evaluate(run.state))

    def _evaluate(self, state: State) -> None:
        self.evaluated += 1
        self._compare(state, "evaluation")

    def _compare(self, state: State, where: str) -> None:
        if not same(_parameters(state), self._clean):
            self.surprises.append(where)


def _witnessed(method: Method | None, folder: Any) -> _Witness:
    witness = _Witness()
    evaluation: dict[str, Any] = {"eval_dataloader": loader(batches=1), "eval_interval": "2ba"}
    run = trainer(method, callbacks=witness, save_folder=str(folder), save_interval="3ba", **evaluation)
    witness.follow(run)
    run.fit()
    run.close()
    return witness


@pytest.mark.parametrize("method", EVERY_KIND)
def test_callbacks_and_evaluators_see_clean_weights_at_the_events_of_plain_training(
    method: Method, tmp_path: Any
) -> None:
    witness, plain = _witnessed(method, tmp_path / "method"), _witnessed(None, tmp_path / "plain")
    surprises = {e.value for e in WITHIN_ITS_ONE_PASS} if passes(method) == 1 else set()
    assert set(witness.surprises) == surprises
    assert witness.events == plain.events
    assert witness.evaluated == plain.evaluated > 0


def test_the_witness_is_at_every_event_of_training(tmp_path: Any) -> None:
    unseen = {"iteration_end", "iteration_checkpoint"}  # only with an iteration length
    assert {e.value for e in WITHIN_TRAINING} - set(_witnessed(None, tmp_path).events) == unseen


def _average(trajectory: list[dict[str, Tensor]], weight: Callable[[int], float]) -> dict[str, Tensor]:
    """Running average: the new weights enter step ``i`` with ``weight(i)``."""
    average = trajectory[0]
    for i, weights in enumerate(trajectory[1:], start=1):
        average = {name: torch.lerp(average[name], weights[name], weight(i)) for name in average}
    return average


def _trajectory(method: Method, averaging: Algorithm) -> list[dict[str, Tensor]]:
    """The weights after each batch of a run, before ``averaging`` acts."""
    trajectory: list[dict[str, Tensor]] = []
    watch = AlgorithmOn(Event.BATCH_END, lambda state: trajectory.append(_parameters(state)))
    fit(method, watch, averaging, max_duration=f"{2 * BATCHES}ba")
    return trajectory


@pytest.mark.parametrize("method", EVERY_KIND)
def test_ema_averages_the_clean_trajectory(method: Method) -> None:
    ema = EMA(half_life=None, smoothing=0.75, update_interval="1ba")
    trajectory = _trajectory(method, ema)
    assert len(trajectory) == 2 * BATCHES
    assert close(ema.ema_model.named_parameters_dict, _average(trajectory, lambda _: 0.25))


@pytest.mark.filterwarnings("ignore:SWA has known issues when resuming")
@pytest.mark.parametrize("method", EVERY_KIND)
def test_swa_averages_the_clean_trajectory(method: Method) -> None:
    swa = SWA(swa_start="0.2dur", swa_end="0.9dur", update_interval="1ba", schedule_swa_lr=False)
    averaged = _trajectory(method, swa)[2:11]  # batches 3 to 11 of 12
    expected = _average(averaged, lambda i: 1 / (i + 1))
    assert close({name.removeprefix("module."): p for name, p in swa.swa_model.named_parameters()}, expected)
