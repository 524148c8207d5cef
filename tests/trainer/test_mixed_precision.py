"""Reduced precision: gradients are unscaled before a method sees them, and an overflow leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event, State
from composer.loggers import InMemoryLogger
from composer.trainer._scaler import ClosureGradScaler

from sam_algos import SAM, FisherSAM, Method
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    EVERY_PASS_OF_EVERY_KIND,
    AlgorithmOn,
    fit,
    logged,
    memory,
    optimizer_state,
    outcome,
    same,
    trainer,
    weights,
)

SCALE = 2.0**10


@pytest.fixture
def _half_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Composer refuses half precision on the CPU: give it a scaler and an autocast that work there.

    Under amp_fp16 the arithmetic stays in float32; what is tested is the scaling around it.
    """
    scaler = lambda: ClosureGradScaler(device="cpu", init_scale=SCALE)  # noqa: E731

    def autocast(precision: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=str(precision.value) == "amp_bf16")

    monkeypatch.setattr("composer.trainer.trainer._validate_precision", lambda *_: None)
    monkeypatch.setattr("composer.trainer.trainer.ClosureGradScaler", scaler)
    monkeypatch.setattr("composer.trainer.trainer.get_precision_context", autocast)
    yield


@pytest.mark.usefixtures("_half_on_cpu")
@pytest.mark.parametrize("method", EVERY_KIND)
def test_methods_see_unscaled_gradients(method: Method) -> None:
    """The scale is a power of two: but for it, every number is that of training in float32."""
    scaled = fit(method, precision="amp_fp16", loggers=InMemoryLogger())
    full = fit(method, loggers=InMemoryLogger())
    assert scaled.state.scaler.get_scale() == SCALE
    assert same(outcome(scaled), outcome(full))
    for name in ("sam/grad_norm", "sam/statistic", "sam/threshold", "loss/train/total"):
        assert logged(scaled, name) == logged(full, name)


@pytest.mark.usefixtures("_half_on_cpu")
def test_fisher_sam_sees_unscaled_gradients() -> None:
    """Unlike the directions of other methods, its own depends on the gradient's scale."""
    scaled, full, other = (
        fit(FisherSAM(eta=eta), precision=p) for eta, p in ((1.0, "amp_fp16"), (1.0, "fp32"), (2.0, "fp32"))
    )
    assert scaled.state.scaler.get_scale() == SCALE
    assert same(weights(scaled), weights(full))
    assert not same(weights(other), weights(full))


class _Overflow:
    """Overflows the gradient once: in the given pass of a batch, the first that has one from ``batch`` on."""

    def __init__(self, in_pass: int, batch: int) -> None:
        self._in_pass, self._batch = in_pass, batch
        self._passes = 0
        self.at: int | None = None
        self.before: tuple[Any, ...] = ()
        self.after: tuple[Any, ...] = ()

    def algorithms(self, snapshot: Any) -> list[AlgorithmOn]:
        def start(_: State) -> None:
            self._passes = 0
            if self.at is None:
                self.before = snapshot()

        def end(state: State) -> None:
            if self.at == state.timestamp.batch - 1:
                self.after = snapshot()

        return [
            AlgorithmOn(Event.BATCH_START, start),
            AlgorithmOn(Event.AFTER_BACKWARD, self._overflow),
            AlgorithmOn(Event.BATCH_END, end),
        ]

    def _overflow(self, state: State) -> None:
        self._passes += 1
        batch = state.timestamp.batch.value
        if self.at is None and self._passes == self._in_pass and batch >= self._batch:
            self.at = batch
            weight = next(state.model.parameters())
            # A pass without a backward one overflows where its gradient would be.
            weight.grad = torch.full_like(weight, math.inf)


def _snapshot(run: Trainer) -> tuple[Any, ...]:
    remembered = {key: value for key, value in memory(run).items() if key != "nonfinite"}
    # Copied, as the optimizer writes its state in place.
    state = {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer_state(run)["state"].items()}
    parameters = {name: p.detach().clone() for name, p in run.state.model.named_parameters()}
    return parameters, state, remembered


@pytest.mark.usefixtures("_half_on_cpu")
@pytest.mark.parametrize(
    ("method", "in_pass", "batch"),
    [*((*case.values, 2) for case in EVERY_PASS_OF_EVERY_KIND), (SAM(), 1, 0), (SAM(), 2, 0)],
)
def test_an_overflow_in_any_pass_skips_the_step_and_lowers_the_scale(method: Method, in_pass: int, batch: int) -> None:
    overflow = _Overflow(in_pass, batch)
    run = trainer(method, *overflow.algorithms(lambda: _snapshot(run)), precision="amp_fp16", loggers=InMemoryLogger())
    run.fit()
    run.close()
    assert overflow.at is not None
    assert same(overflow.after, overflow.before)
    assert run.state.scaler.get_scale() == SCALE / 2
    assert memory(run)["step"] == 2 * BATCHES - 1
    assert all(torch.isfinite(value).all() for value in weights(run).values())


@pytest.mark.usefixtures("_half_on_cpu")
@pytest.mark.parametrize("method", EVERY_KIND)
def test_bf16_trains(method: Method) -> None:
    run = fit(method, precision="amp_bf16", loggers=InMemoryLogger())
    full = fit(method, loggers=InMemoryLogger())
    assert not same(weights(run), weights(full))
    assert logged(run, "loss/train/total") == pytest.approx(logged(full, "loss/train/total"), rel=0.1, abs=0.05)


@pytest.mark.usefixtures("_half_on_cpu")
@pytest.mark.parametrize(
    ("method", "precision"), [*((case.values[0], "amp_fp16") for case in EVERY_KIND), (SAM(), "amp_bf16")]
)
def test_the_precision_may_change_between_fits(method: Method, precision: str) -> None:
    run = trainer(method)
    run.fit(duration="1ep")
    run.fit(duration="1ep", precision=precision)
    run.close()
    assert memory(run)["step"] == 2 * BATCHES
    assert run.state.precision.value == precision


@pytest.mark.gpu
@pytest.mark.parametrize("method", EVERY_KIND)
@pytest.mark.parametrize("precision", ["amp_fp16", "amp_bf16"])
def test_mixed_precision_on_a_gpu(method: Method, precision: str) -> None:
    run = fit(method, precision=precision, device="gpu", loggers=InMemoryLogger())
    # The scaler starts at 2^16 and halves with each step that it skips.
    skipped = 16 - round(math.log2(run.state.scaler.get_scale()))
    assert memory(run)["step"] == 2 * BATCHES - skipped > BATCHES
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert min(logged(run, "loss/train/total")) < logged(run, "loss/train/total")[0]


@pytest.mark.gpu
@pytest.mark.parametrize("in_pass", [1, 2])
def test_an_overflow_on_a_gpu_skips_the_step(in_pass: int) -> None:
    overflow = _Overflow(in_pass, batch=2)
    run = trainer(SAM(), *overflow.algorithms(lambda: _snapshot(run)), precision="amp_fp16", device="gpu")
    run.fit()
    run.close()
    assert overflow.at is not None
    assert same(overflow.after, overflow.before)
