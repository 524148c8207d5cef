"""Checkpoints: a resumed run goes on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from torch import Tensor

from sam_algos import Method
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    EVERY_METHOD,
    adamw,
    fit,
    logged,
    memory,
    optimizer_state,
    outcome,
    same,
    seeded_epochs,
    sgd,
    trainer,
)

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
FIGURES = (
    "sam/applied",
    "sam/fraction",
    "sam/gradients",
    "sam/grad_norm",
    "sam/statistic",
    "sam/threshold",
    "loss/train/total",
)


def _figures(run: Trainer, since: int = 0) -> dict[str, list[float]]:
    return {name: logged(run, name)[since:] for name in FIGURES}


RUNS = [
    *((case, sgd, "4ba", 4) for case in EVERY_METHOD),
    *((case, adamw, "1ep", BATCHES) for case in EVERY_KIND),
    *((case, sgd, "8ba", 8) for case in EVERY_KIND),
]


@pytest.mark.parametrize(
    ("method", "optimizer", "interval", "stop"),
    [pytest.param(case.values[0], *run, id=f"{case.id}, {run[-1]}") for case, *run in RUNS],
)
def test_a_resumed_run_equals_one_that_did_not_stop(
    method: Method, optimizer: Optimizer, interval: str, stop: int, tmp_path: Path
) -> None:
    saving: dict[str, Any] = {
        "save_folder": str(tmp_path),
        "save_interval": interval,
        "save_filename": "{batch}.pt",
    }
    whole = fit(method, loggers=InMemoryLogger(), optimizer=optimizer, **saving)
    rest = fit(method, loggers=InMemoryLogger(), optimizer=optimizer, load_path=str(tmp_path / f"{stop}.pt"))
    assert same(outcome(rest), outcome(whole))
    assert _figures(rest) == _figures(whole, since=stop)
    assert memory(rest)["step"] == 2 * BATCHES


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_checkpoint_written_before_the_first_step_starts_the_same_run(method: Method, tmp_path: Path) -> None:
    first = trainer(method, max_duration="1ep")
    path = first.save_checkpoint(str(tmp_path / "start.pt"))
    first.fit()
    first.close()
    again = fit(method, max_duration="1ep", load_path=path)
    assert same(outcome(again), outcome(first))


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_second_fit_goes_on(method: Method, tmp_path: Path) -> None:
    calm: dict[str, Any] = {"callbacks": seeded_epochs()}
    twice = trainer(method, **calm)
    twice.fit(duration="1ep")
    wrapped = twice.state.optimizers[0]
    path = twice.save_checkpoint(str(tmp_path / "1ep.pt"))
    twice.fit(duration="1ep")
    twice.close()
    assert twice.state.optimizers[0] is wrapped
    assert same(outcome(twice), outcome(fit(method, load_path=path, **calm)))


@pytest.mark.parametrize("method", EVERY_KIND)
def test_loading_only_the_weights_starts_the_method_afresh(method: Method, tmp_path: Path) -> None:
    path = fit(method, max_duration="1ep").save_checkpoint(str(tmp_path / "end.pt"))
    fresh = trainer(method)
    only_weights = trainer(method, load_path=path, load_weights_only=True)
    assert memory(only_weights) == memory(fresh)
    assert not optimizer_state(only_weights)["state"]
