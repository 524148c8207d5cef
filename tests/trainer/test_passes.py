"""A step leaves model, metrics and random streams as one pass does."""

from __future__ import annotations

import copy
import math
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
    EVERY_KIND,
    EVERY_KIND_ON_THE_WHOLE_BATCH,
    EVERY_METHOD,
    AlgorithmOn,
    On,
    by_hand,
    classifier,
    fit,
    logged,
    memory,
    outcome,
    passes,
    same,
    seeded_epochs,
    weights,
)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_trainer_takes_the_steps_of_a_hand_written_loop(method: Method) -> None:
    assert same(outcome(fit(method, callbacks=seeded_epochs())), by_hand(method))


class _Shadow:
    """A pass of a copy of the model where each step's first pass was, and what the step left."""

    def __init__(self, model: ComposerClassifier) -> None:
        self.distances: list[float] = []
        self.expected: list[Any] = []
        self.found: list[Any] = []
        model.module.register_forward_pre_hook(lambda net, _: self._note(net))  # a copy shares it

    def before(self, state: State) -> None:
        self._copy, self._streams = copy.deepcopy(state.model), torch.get_rng_state()
        self._weights: Any = None

    def _note(self, net: nn.Module) -> None:
        if self._weights is None:
            self._weights = {name: p.detach().clone() for name, p in net.named_parameters(prefix="module")}

    def after(self, state: State) -> None:
        accuracy = state.train_metrics["MulticlassAccuracy"].compute()
        self.found.append((dict(state.model.named_buffers()), accuracy, state.outputs.detach(), state.loss.detach()))
        self.found = copy.deepcopy(self.found)
        model, now = self._copy, torch.get_rng_state()
        moved = [(self._weights[name] - p).square().sum() for name, p in model.named_parameters()]
        self.distances.append(math.sqrt(sum(moved)))
        model.load_state_dict(self._weights, strict=False)
        torch.set_rng_state(self._streams)
        outputs = model(state.batch)
        torch.set_rng_state(now)
        accuracy = (outputs.argmax(1) == state.batch[1]).float().mean()
        loss = model.loss(outputs, state.batch)
        self.expected.append((dict(model.named_buffers()), accuracy, outputs.detach(), loss.detach()))


@pytest.mark.parametrize("method", EVERY_KIND_ON_THE_WHOLE_BATCH)
def test_statistics_metrics_outputs_and_loss_are_those_of_one_pass(method: Method) -> None:
    """At the clean weights; of a method that has no pass there, at the displaced ones."""
    log = InMemoryLogger()
    instances = nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    model = classifier(nn.BatchNorm1d(8), *instances, nn.Dropout(0.3))
    shadow = _Shadow(model)
    watch = [On(Event.BATCH_START, shadow.before), On(Event.BATCH_END, shadow.after)]
    run = fit(method, model=model, callbacks=watch, loggers=log)
    assert len(shadow.found) == 2 * BATCHES
    assert same(shadow.found, shadow.expected)
    away = [0.0, *[method.rho] * (2 * BATCHES - 1)] if passes(method) == 1 else [0.0] * 2 * BATCHES
    assert shadow.distances == pytest.approx(away, rel=1e-5)
    assert logged(run, "loss/train/total") == [float(loss) for *_, loss in shadow.expected]
    assert run.state.model.module[1].num_batches_tracked == 2 * BATCHES


class _Draws(nn.Module):
    """Multiplies by random numbers of all three generators, and adds them to a list that no step puts back."""

    def __init__(self, drawn: list[Tensor]) -> None:
        super().__init__()
        self._keep = drawn.append

    def draw(self) -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    def forward(self, x: Tensor) -> Tensor:
        draws = self.draw()
        self._keep(torch.tensor(draws))
        return x * sum(draws)


def _run_with_draws(method: Method | None) -> tuple[list[int], list[Tensor], Any]:
    """The number of passes of each step, all draws, and the streams at the end."""
    drawn: list[Tensor] = []
    draws, counts = _Draws(drawn), []

    def draw_more_in_a_second_pass(_: State) -> None:
        if len(drawn) - sum(counts) == 2:
            draws.draw()

    watch = [
        AlgorithmOn(Event.AFTER_LOSS, draw_more_in_a_second_pass),
        AlgorithmOn(Event.BATCH_END, lambda _: counts.append(len(drawn) - sum(counts))),
    ]
    fit(method, *watch, model=classifier(draws))
    return counts, drawn, (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())


@pytest.mark.usefixtures("without_looks")
@pytest.mark.parametrize("method", EVERY_KIND_ON_THE_WHOLE_BATCH)
def test_all_passes_draw_the_same_and_the_streams_end_as_without_the_method(method: Method) -> None:
    counts, drawn, streams = _run_with_draws(method)
    _, plain, plain_streams = _run_with_draws(None)
    assert passes(method) in counts and set(counts) <= {1, passes(method)}
    assert same(drawn, [draw for draw, times in zip(plain, counts, strict=True) for _ in range(times)])
    assert same(streams, plain_streams)


class _ZeroLoss(ComposerClassifier):
    """The loss is exactly zero, its gradient is not, and neither is the loss of a sample."""

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().loss(outputs, batch, *args, **kwargs)
        return loss if loss.ndim else loss - loss.detach()


@pytest.mark.parametrize("method", EVERY_KIND)
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
