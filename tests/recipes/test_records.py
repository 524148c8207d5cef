from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Timestamp

from sam_algos.recipes.records import MetricsFile, StepTimes


class Metrics(list[dict[str, Any]]):
    """A Logger that keeps what it is given."""

    log_metrics = list.append


def state(batch: int = 0, **metrics: float) -> Any:
    optimizer = SimpleNamespace(metrics=metrics) if metrics else SimpleNamespace()
    return SimpleNamespace(timestamp=Timestamp(batch=batch, epoch=batch // 2), optimizers=(optimizer,))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_one_line_a_batch_and_one_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    file, logger = MetricsFile(path), Metrics()
    assert not path.parent.exists()
    file.fit_start(state(), logger)
    file.log_metrics({"loss": torch.tensor(2.5), "sam/applied": 1.0})
    file.log_metrics({"bad": math.nan, "worse": -math.inf, "name": "x", "count": 3})
    file.batch_end(state(1), logger)
    file.log_metrics({"accuracy": 0.5})
    file.eval_end(state(2), logger)
    file.fit_end(state(2), logger)
    file.close(state(2), logger)
    file.close(state(2), logger)
    assert read(path) == [
        {
            "batch": 1,
            "epoch": 0,
            "loss": 2.5,
            "sam/applied": 1.0,
            "bad": None,
            "worse": None,
            "name": "x",
            "count": 3,
        },
        {"batch": 2, "epoch": 1, "accuracy": 0.5},
    ]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for batch in (1, 2):
        file = MetricsFile(tmp_path / "metrics.jsonl")
        file.fit_start(state(), Metrics())
        file.log_metrics({"loss": 0.0})
        file.fit_end(state(batch), Metrics())
        file.close(state(batch), Metrics())
    assert [line["batch"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("composer.utils.dist.get_global_rank", lambda: 1)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.fit_start(state(), Metrics())
    file.log_metrics({"loss": 0.0})
    file.batch_end(state(1), Metrics())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_step_times_tell_sharp_from_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0, 30.0, 39.0])
    monkeypatch.setattr("sam_algos.recipes.records.time.perf_counter", lambda: next(clock))
    times, logger = StepTimes(), Metrics()
    for applied in (0.0, 1.0, 1.0):
        times.batch_start(state(), logger)
        times.batch_end(state(**{"sam/applied": applied, "sam/fraction": 0.5}), logger)
    times.batch_start(state(), logger)
    times.batch_end(state(), logger)
    assert times.seconds == {False: [1.0, 9.0], True: [3.0, 2.0]}
    assert (times.median(sharp=False), times.median(sharp=True), times.fraction) == (5.0, 2.5, 0.5)
    assert logger == [{"step_seconds": seconds} for seconds in (1.0, 3.0, 2.0, 9.0)]


def test_no_steps() -> None:
    assert (StepTimes().median(sharp=True), StepTimes().fraction) == (None, 0.0)
