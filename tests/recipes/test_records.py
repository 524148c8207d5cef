from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Timestamp

from sam_algos.command import main
from sam_algos.recipes.results import Headline, Summary, read_metrics, summarise
from sam_algos.recipes.run.records import MetricsFile, StepTimes
from tests.recipes.writing import TINY, Write


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


def test_an_evaluation_without_metrics_writes_no_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.fit_start(state(), Metrics())
    file.eval_end(state(1), Metrics())
    file.close(state(1), Metrics())
    assert read(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_goes_on_from_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for start, batches in ((0, (1, 2, 3)), (2, (3, 4))):
        file = MetricsFile(path)
        file.fit_start(state(start), Metrics())
        for batch in batches:
            file.log_metrics({"start": start})
            file.batch_end(state(batch), Metrics())
        file.close(state(), Metrics())
        path.write_text(path.read_text() + '{"batch": 5, "sta')  # what a process that is killed leaves of a line
    assert [(line["batch"], line["start"]) for line in read_metrics(path)] == [(1, 0), (2, 0), (3, 2), (4, 2)]


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("composer.utils.dist.get_global_rank", lambda: 1)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.fit_start(state(), Metrics())
    file.log_metrics({"loss": 0.0})
    file.batch_end(state(1), Metrics())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, cpu = iter([0.0, 1.0, 10.0, 13.0]), iter([0.0, 0.5, 2.0, 6.0])
    monkeypatch.setattr("sam_algos.recipes.run.records.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("sam_algos.recipes.run.records.time.process_time", lambda: next(cpu))
    times, logger = StepTimes(), Metrics()
    for _ in range(2):
        times.batch_start(state(), logger)
        times.batch_end(state(), logger)
    assert logger == [{"step_seconds": 1.0, "step_cpu_seconds": 0.5}, {"step_seconds": 3.0, "step_cpu_seconds": 4.0}]


def test_cpu_time_is_known_if_every_step_has_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    step = '{"batch": 1, "step_seconds": 1.0, "step_cpu_seconds": 0.5}\n'
    path.write_text(2 * step)
    assert summarise(path).cpu_seconds == 1.0
    path.write_text(step + '{"batch": 2, "step_seconds": 1.0}\n')
    assert summarise(path).cpu_seconds is None


def test_training_accuracy_is_logged_once_an_epoch(write: Write) -> None:
    text = TINY.replace("720", "359").replace("1ep", "2ep")
    assert main(["train", str(write(text)), "run_name=run", "algorithms.label_smoothing.smoothing=0.1"]) == 0
    lines = list(read_metrics(Path("runs/run/metrics.jsonl")))
    found = [line for line in lines if "metrics/train/MulticlassAccuracy" in line]
    assert [line["batch"] for line in found] == [3, 6]  # three batches an epoch
    right = 3 * 359 * found[0]["metrics/train/MulticlassAccuracy"]
    assert 0 < right == pytest.approx(round(right), abs=1e-9)  # a count of samples, all of an epoch


def test_training_accuracy_is_that_of_the_samples_that_the_first_pass_sees(write: Write) -> None:
    narrow = ["eval_interval=1dur", "algorithms.sam.ascent_fraction=0.5", "global_train_batch_size=360"]
    assert main(["train", str(write()), "run_name=run", *narrow]) == 0
    (line,) = (
        line for line in read_metrics(Path("runs/run/metrics.jsonl")) if "metrics/train/MulticlassAccuracy" in line
    )
    right = 2 * 180 * line["metrics/train/MulticlassAccuracy"]
    assert right == pytest.approx(round(right), abs=1e-9)


def test_summary_of_a_run(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"batch": 1, "step_seconds": 1.0, "sam/applied": 0.0, "sam/fraction": 0.0, "sam/gradients": 1.0},
        {"batch": 2, "step_seconds": 9.0, "sam/applied": 0.0, "sam/fraction": 0.0, "sam/gradients": 1.0},
        {"batch": 2, "metrics/eval/MulticlassAccuracy": 0.25},
        {"batch": 3, "step_seconds": 3.0, "sam/applied": 1.0, "sam/fraction": 0.25, "sam/gradients": 2.0},
        {"batch": 3, "metrics/eval/MulticlassAccuracy": 0.5, "metrics/eval/LanguagePerplexity": 3.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarise(path)
    assert found.headline == Headline("accuracy", 50.0, "50.00 %")
    assert (found.steps, found.fraction, found.gradients, found.train_seconds) == (3, 0.25, 4.0, 13.0)
    assert found.steady_seconds == 2 * 5.0 + 1 * 3.0
    assert (found.plain_seconds, found.sharp_seconds) == (5.0, 3.0)


def test_a_step_without_a_method_costs_one_gradient(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"batch": 1, "step_seconds": 1.0, "metrics/eval/LanguagePerplexity": 3.25}\n')
    found = summarise(path)
    assert (found.gradients, found.fraction, found.sharp_seconds) == (1.0, 0.0, None)
    assert found.headline == Headline("perplexity", 3.25, "3.250")


def test_no_steps(tmp_path: Path) -> None:
    assert summarise(tmp_path / "nothing") == Summary(0, None, 0.0, 0.0, 0.0, 0.0, 0.0, None, None)
