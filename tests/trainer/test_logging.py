"""The figures of every step, and the clock that schedules read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import DataSpec, Event, State
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.optim import LinearScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sam_algos import SAM, Linear, Method, Proportional
from sam_algos.trainer.passes import training_progress
from tests.trainer.training import (
    BATCH_SIZE,
    BATCHES,
    CLASSES,
    EVERY_METHOD,
    On,
    classifier,
    fit,
    loader,
    logged,
    memory,
)


def _timestamps(run: Trainer, name: str) -> list[int]:
    log = next(d for d in run.logger.destinations if isinstance(d, InMemoryLogger))
    return [timestamp.batch.value for timestamp, _ in log.data[name]]


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_method_logs_its_figures_with_every_loss(method: Method) -> None:
    run = fit(method, loggers=InMemoryLogger())
    names = ["sam/applied", "sam/fraction", "sam/gradients", "sam/grad_norm", "sam/nonfinite"]
    if method.composition().reader("reads_losses"):
        names += ["sam/forwards"]
    if method.composition().policy.reads_gradient:
        names += ["sam/statistic", "sam/threshold"]
    assert _timestamps(run, "loss/train/total") == list(range(2 * BATCHES))
    for name in names:
        assert _timestamps(run, name) == _timestamps(run, "loss/train/total")
    applied = logged(run, "sam/applied")
    assert logged(run, "sam/fraction") == [sum(applied[: i + 1]) / (i + 1) for i in range(len(applied))]
    assert memory(run)["sharp"] == sum(applied)


def test_a_radius_follows_progress_and_composers_learning_rate() -> None:
    steps = 2 * BATCHES
    run = fit(SAM(rho=Linear(0.1, 0.3)), loggers=InMemoryLogger())
    assert logged(run, "sam/rho") == pytest.approx([0.1 + 0.2 * t / steps for t in range(steps)])
    decay, rates = LinearScheduler(alpha_i=1.0, alpha_f=0.0), []
    watch = On(Event.BATCH_START, lambda state: rates.append(state.optimizers[0].param_groups[0]["lr"]))
    run = fit(SAM(rho=Proportional(0.2)), loggers=InMemoryLogger(), schedulers=decay, callbacks=[watch])
    assert len(set(rates)) > 1
    assert logged(run, "sam/rho") == pytest.approx([0.2 * lr / rates[0] for lr in rates])


@pytest.mark.parametrize("method", [case for case in EVERY_METHOD if case.id in ("sam", "aesam", "aelooksam")])
def test_the_statistic_is_the_squared_norm_and_decides(method: Method) -> None:
    run = fit(method, loggers=InMemoryLogger())
    norms, statistics, thresholds = (logged(run, f"sam/{name}") for name in ("grad_norm", "statistic", "threshold"))
    if method.composition().policy.reads_gradient:
        assert statistics == [norm**2 for norm in norms]
        assert logged(run, "sam/applied") == [float(x >= t) for x, t in zip(statistics, thresholds, strict=True)]
    else:
        assert statistics == thresholds == []
    assert min(norms) > 0


@pytest.mark.usefixtures("without_looks")
@pytest.mark.parametrize(("method", "size"), [(case.values[0], 4) for case in EVERY_METHOD] + [(SAM(), 8)])
def test_the_gradients_logged_are_those_that_the_model_computed(method: Method, size: int) -> None:
    counted: Counter[str] = Counter()

    class Model(ComposerClassifier):
        def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
            counted["of each" if kwargs else "mean"] += len(outputs)
            return super().loss(outputs, batch, *args, **kwargs)

    model, data = Model(classifier().module, num_classes=CLASSES), loader(8, batches=3)
    run = fit(method, model=model, data=data, loggers=InMemoryLogger(), device_train_microbatch_size=size)
    assert sum(logged(run, "sam/gradients")) == pytest.approx(counted["mean"] / 8)
    steps = logged(run, "sam/forwards")
    if steps:  # the losses at w come with the gradient, those at w + epsilon alone
        assert sum(steps) + len(steps) == counted["of each"] / 8
    else:
        assert counted["of each"] == 0


def _progress(max_duration: str, data: Any = None) -> list[float]:
    """The share of training done at each of the first two epochs' batches."""
    seen: list[float] = []

    def look(state: State) -> None:
        seen.append(training_progress(state))
        if len(seen) == 2 * BATCHES:
            state.stop_training()

    settings = {"max_duration": max_duration, "device_train_microbatch_size": BATCH_SIZE}
    fit(SAM(), data=data, callbacks=On(Event.BATCH_START, look), **settings)
    return seen


class _Stream(IterableDataset):
    """Of unknown length."""

    def __iter__(self) -> Any:
        for batch in range(BATCHES):
            yield torch.randn(BATCH_SIZE, 6), torch.full((BATCH_SIZE,), batch % CLASSES)


TOKENS = DataSpec(loader(), get_num_tokens_in_batch=lambda batch: 10)
STREAM = DataSpec(DataLoader(_Stream(), batch_size=None), get_num_samples_in_batch=lambda _: BATCH_SIZE)


@pytest.mark.parametrize(
    ("max_duration", "data"),
    [
        (f"{2 * BATCHES}ba", None),
        (f"{2 * BATCHES}ba", STREAM),
        ("2ep", None),
        (f"{2 * BATCHES * BATCH_SIZE}sp", None),
        (f"{2 * BATCHES * BATCH_SIZE}sp", STREAM),
        (f"{2 * BATCHES * 10}tok", TOKENS),
    ],
)
def test_progress_is_the_share_of_batches_whatever_the_unit(max_duration: str, data: Any) -> None:
    assert _progress(max_duration, data) == pytest.approx([i / (2 * BATCHES) for i in range(2 * BATCHES)])


@pytest.mark.parametrize(
    ("max_duration", "data", "refusal"),
    [("600sec", None, "Wall clock time not an allowed"), ("2ep", STREAM, "cannot be specified in epochs")],
)
def test_composer_refuses_the_durations_whose_progress_is_unknown(max_duration: str, data: Any, refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        _progress(max_duration, data)
