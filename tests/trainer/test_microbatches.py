"""A batch trained in parts, by choice or because memory ran out, is the same step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from composer.core import Callback, State
from composer.loggers import InMemoryLogger, Logger
from torch import nn

from sam_algos import Method
from tests.trainer.training import (
    BATCH_SIZE,
    BATCHES,
    EVERY_KIND_ON_THE_WHOLE_BATCH,
    EVERY_PASS_OF_EVERY_KIND,
    classifier,
    close,
    fit,
    logged,
    memory,
    weights,
)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("method", EVERY_KIND_ON_THE_WHOLE_BATCH)
def test_microbatches_give_the_step_of_the_whole_batch(method: Method, size: int) -> None:
    whole = fit(method, model=classifier(), loggers=InMemoryLogger())
    parts = fit(method, model=classifier(), loggers=InMemoryLogger(), device_train_microbatch_size=size)
    assert close(weights(parts), weights(whole))
    assert logged(parts, "sam/applied") == logged(whole, "sam/applied")
    for name in ("sam/grad_norm", "sam/statistic", "sam/threshold", "loss/train/total"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-4, abs=1e-6)
    assert memory(parts)["step"] == 2 * BATCHES


@pytest.mark.parametrize("method", EVERY_KIND_ON_THE_WHOLE_BATCH)
def test_statistics_count_the_microbatches_of_one_pass(method: Method) -> None:
    run = fit(method, model=classifier(nn.BatchNorm1d(8)), device_train_microbatch_size=2)
    assert run.state.model.module[1].num_batches_tracked == 2 * BATCHES * (BATCH_SIZE // 2)


class _SmallMemory(Callback):
    """Runs out of memory once: in the given pass of a batch, the first that has one from ``batch`` on."""

    def __init__(self, model: nn.Module, fail_in_pass: int, batch: int) -> None:
        self._fail_in_pass, self._batch = fail_in_pass, batch
        self._passes = self._batches = 0
        self.failed = False
        model.register_forward_pre_hook(lambda *_: self._run_pass())

    def batch_start(self, state: State, logger: Logger) -> None:
        self._passes, self._batches = 0, self._batches + 1

    def _run_pass(self) -> None:
        self._passes += 1
        if not self.failed and self._passes == self._fail_in_pass and self._batches >= self._batch:
            self.failed = True
            raise RuntimeError("CUDA out of memory")


@pytest.fixture
def _auto_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Composer offers 'auto' on a GPU only; what follows from it needs none."""
    monkeypatch.setattr("composer.trainer.trainer._is_auto_microbatching", lambda size, device: size == "auto")
    yield


@pytest.mark.usefixtures("_auto_on_cpu")
@pytest.mark.filterwarnings("ignore:CUDA out of memory or excessive memory allocation retries:RuntimeWarning")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("method", "fail_in_pass"), [c for c in EVERY_PASS_OF_EVERY_KIND if c.values[0].ascent_fraction == 1]
)
def test_a_step_retried_for_lack_of_memory_is_the_step_of_the_whole_batch(
    method: Method, fail_in_pass: int, batch: int
) -> None:
    model = classifier()
    small = _SmallMemory(model, fail_in_pass, batch)
    settings = {"model": model, "device_train_microbatch_size": "auto", "callbacks": small}
    run = fit(method, loggers=InMemoryLogger(), **settings)
    whole = fit(method, loggers=InMemoryLogger(), model=classifier())
    assert small.failed
    assert run.state.device_train_microbatch_size == BATCH_SIZE // 2
    assert close(weights(run), weights(whole))
    assert logged(run, "sam/applied") == logged(whole, "sam/applied")
    assert memory(run)["step"] == memory(whole)["step"] == 2 * BATCHES
    assert memory(run)["policy"] == pytest.approx(memory(whole)["policy"], rel=1e-4)
