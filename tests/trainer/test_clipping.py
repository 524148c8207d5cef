"""What acts on the trained gradient acts once, on the final one; the method sees the one before."""

from __future__ import annotations

import pytest
import torch
from composer.algorithms import GradientClipping
from composer.algorithms.gradient_clipping import apply_gradient_clipping
from composer.core import Callback, Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from sam_algos import LookSAM, Method
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    AlgorithmOn,
    On,
    by_hand,
    fit,
    outcome,
    same,
    seeded_epochs,
    trainer,
)

CLIPPINGS = {"norm": 0.3, "value": 0.05, "adaptive": 0.1}


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((case.values[0], "norm") for case in EVERY_KIND), *((LookSAM(), kind) for kind in CLIPPINGS)],
)
def test_the_method_sees_the_unclipped_gradient_and_the_optimizer_the_clipped_one(method: Method, kind: str) -> None:
    """By hand, the loop knows nothing of the clipping: it happens when the base optimizer steps."""
    run = fit(method, GradientClipping(kind, CLIPPINGS[kind]), callbacks=seeded_epochs())
    clip = lambda model: apply_gradient_clipping(model, kind, CLIPPINGS[kind], fsdp_enabled=False)  # noqa: E731
    assert same(outcome(run), by_hand(method, before_step=clip))
    assert not same(outcome(run), by_hand(method))


def _halve(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad.mul_(0.5)


@pytest.mark.parametrize("method", EVERY_KIND)
@pytest.mark.parametrize("kind", [AlgorithmOn, On])
def test_algorithms_and_callbacks_act_on_the_trained_gradient_once(method: Method, kind: type) -> None:
    act = kind(Event.AFTER_TRAIN_BATCH, lambda state: _halve(state.model))
    algorithms, callbacks = ([act], []) if kind is AlgorithmOn else ([], [act])
    run = fit(method, *algorithms, callbacks=[seeded_epochs(), *callbacks])
    assert same(outcome(run), by_hand(method, before_step=_halve))


def test_algorithms_act_in_composers_order() -> None:
    """Composer runs the algorithms of an AFTER event in reverse, and callbacks after them."""
    order: list[str] = []
    mark = lambda name: lambda _: order.append(name)  # noqa: E731
    algorithms = [AlgorithmOn(Event.AFTER_TRAIN_BATCH, mark(name)) for name in ("first", "second")]
    callback = On(Event.AFTER_TRAIN_BATCH, mark("callback"))
    method = EVERY_KIND[0].values[0]
    fit(method, *algorithms, callbacks=callback, max_duration="1ba")
    assert order == ["second", "first", "callback"]


@pytest.mark.parametrize("method", EVERY_KIND)
@pytest.mark.parametrize("event", [Event.BEFORE_TRAIN_BATCH, Event.AFTER_TRAIN_BATCH])
def test_algorithms_of_the_batch_run_once_per_batch(method: Method, event: Event) -> None:
    times: list[int] = []
    fit(method, AlgorithmOn(event, lambda state: times.append(state.timestamp.batch.value)))
    assert times == list(range(2 * BATCHES))


class _Watch(Callback):
    """Overrides events one by one, as most callbacks do."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []
        self.before_train_batches = self.forwards = self.backwards = 0

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.before_train_batches += 1

    def before_forward(self, state: State, logger: Logger) -> None:
        self.forwards += 1

    def after_backward(self, state: State, logger: Logger) -> None:
        self.backwards += 1

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.gradients.append([p.grad.clone() for p in state.model.parameters()])


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_callback_sees_one_pass_of_each_batch_and_its_final_gradient(method: Method) -> None:
    watch, final = _Watch(), []
    run = trainer(method, GradientClipping("norm", 0.3), callbacks=watch)
    parameters = list(run.state.model.parameters())
    run.state.optimizers[0].base_optimizer.register_step_pre_hook(
        lambda *_: final.append([p.grad.clone() for p in parameters])
    )
    run.fit()
    run.close()
    assert len(final) == watch.before_train_batches == watch.forwards == watch.backwards == 2 * BATCHES
    assert same(watch.gradients, final)
    norms = [torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradient])) for gradient in final]
    assert max(norms) <= 0.3 + 1e-6
