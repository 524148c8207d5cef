"""A step leaves model, metrics and random streams as one pass at the clean weights does."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Event, State
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import Tensor, nn

from sam_algos import SAM, Method
from tests.trainer.training import (
    BATCH_SIZE,
    BATCHES,
    EVERY_METHOD,
    EVERY_METHOD_ON_THE_WHOLE_BATCH,
    AlgorithmOn,
    On,
    by_hand,
    classifier,
    fit,
    logged,
    memory,
    outcome,
    same,
    seeded_epochs,
    weights,
)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_trainer_takes_the_steps_of_a_hand_written_loop(method: Method) -> None:
    assert same(outcome(fit(method, callbacks=seeded_epochs())), by_hand(method))


class _Shadow:
    """A plain pass of a copy of the model from where each step starts, and what the step left."""

    def __init__(self) -> None:
        self.expected: list[Any] = []
        self.found: list[Any] = []

    def before(self, state: State) -> None:
        model = copy.deepcopy(state.model)
        streams = torch.get_rng_state()
        outputs = model(state.batch)
        torch.set_rng_state(streams)
        accuracy = (outputs.argmax(1) == state.batch[1]).float().mean()
        loss = model.loss(outputs, state.batch)
        self.expected.append((dict(model.named_buffers()), accuracy, outputs.detach(), loss.detach()))

    def after(self, state: State) -> None:
        buffers = {name: value.clone() for name, value in state.model.named_buffers()}
        accuracy = state.train_metrics["MulticlassAccuracy"].compute()
        self.found.append((buffers, accuracy, state.outputs.detach(), state.loss.detach()))


@pytest.mark.parametrize("method", EVERY_METHOD_ON_THE_WHOLE_BATCH)
def test_statistics_metrics_outputs_and_loss_are_those_of_one_pass_at_the_clean_weights(
    method: Method,
) -> None:
    shadow, log = _Shadow(), InMemoryLogger()
    watch = [On(Event.BATCH_START, shadow.before), On(Event.BATCH_END, shadow.after)]
    instances = nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    model = classifier(nn.BatchNorm1d(8), *instances, nn.Dropout(0.3))
    run = fit(method, model=model, callbacks=watch, loggers=log)
    assert len(shadow.found) == 2 * BATCHES
    assert same(shadow.found, shadow.expected)
    assert logged(run, "loss/train/total") == [float(loss) for *_, loss in shadow.expected]
    assert run.state.model.module[1].num_batches_tracked == 2 * BATCHES


class _Draws(nn.Module):
    """Multiplies by random numbers of all three generators, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def draw(self) -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    def forward(self, x: Tensor) -> Tensor:
        draws = self.draw()
        self.drawn.append(torch.tensor(draws))
        return x * sum(draws)


def _run_with_draws(method: Method | None) -> tuple[list[int], list[Tensor], Any]:
    """The number of passes of each step, all draws, and the streams at the end."""
    draws = _Draws()
    passes: list[int] = []

    def draw_more_in_a_second_pass(_: State) -> None:
        if len(draws.drawn) - sum(passes) == 2:
            draws.draw()

    watch = [
        AlgorithmOn(Event.AFTER_LOSS, draw_more_in_a_second_pass),
        AlgorithmOn(Event.BATCH_END, lambda _: passes.append(len(draws.drawn) - sum(passes))),
    ]
    fit(method, *watch, model=classifier(draws))
    return passes, draws.drawn, (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())


@pytest.mark.parametrize("method", EVERY_METHOD_ON_THE_WHOLE_BATCH)
def test_both_passes_draw_the_same_and_the_streams_end_as_without_the_method(method: Method) -> None:
    passes, drawn, streams = _run_with_draws(method)
    _, plain, plain_streams = _run_with_draws(None)
    assert set(passes) <= {1, 2} and 2 in passes
    assert same(drawn, [draw for draw, times in zip(plain, passes, strict=True) for _ in range(times)])
    assert same(streams, plain_streams)


class _ZeroLoss(ComposerClassifier):
    """The loss is exactly zero, its gradient is not."""

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().loss(outputs, batch)
        return loss - loss.detach()


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_loss_of_exactly_zero_is_a_loss(method: Method) -> None:
    model = _ZeroLoss(classifier().module, num_classes=3)
    log = InMemoryLogger()
    run = fit(method, model=model, max_duration="1ep", loggers=log)
    assert logged(run, "loss/train/total") == [0.0] * BATCHES
    assert memory(run)["step"] == BATCHES
    reference = fit(method, model=classifier(), max_duration="1ep")
    assert same(weights(run), weights(reference))


def test_each_pass_sees_the_whole_batch() -> None:
    sizes: list[int] = []
    watch = AlgorithmOn(Event.BEFORE_FORWARD, lambda state: sizes.append(len(state.batch[0])))
    fit(SAM(), watch, max_duration="1ep")
    assert sizes == [BATCH_SIZE] * 2 * BATCHES
