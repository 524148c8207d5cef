"""The results of a run, read from its metrics file without Composer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EVALUATED = "metrics/eval/"

_HEADLINES = {  # the metric to judge a model by, under the name of Composer's or torchmetrics' class
    "MulticlassAccuracy": ("accuracy", 100.0, "{:.2f} %"),
    "LanguagePerplexity": ("perplexity", 1.0, "{:.3f}"),
    "LanguageCrossEntropy": ("cross-entropy", 1.0, "{:.4f}"),
}


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read a metrics file.

    Args:
        path (Path): Written by ``MetricsFile``.

    Yields:
        dict[str, Any]: A line. The incomplete line of a process that was killed is skipped.
    """
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "batch" in line:
            yield line


@dataclass(frozen=True)
class Headline:
    """The metric by which a model is judged.

    Args:
        name (str): In words.
        value (float): An accuracy in percent, other metrics unchanged.
        shown (str): With its unit.
    """

    name: str
    value: float
    shown: str


def headline(metrics: Mapping[str, Any]) -> Headline | None:
    """The metric to judge a model by, among those that an evaluation logged.

    Args:
        metrics (Mapping[str, Any]): By Composer's names, e.g. ``metrics/eval/MulticlassAccuracy``.

    Returns:
        Headline | None: None if there is none.

    Example:
        >>> headline({"metrics/eval/MulticlassAccuracy": 0.936}).shown
        '93.60 %'
    """
    for key, (name, factor, form) in _HEADLINES.items():
        value = metrics.get(_EVALUATED + key)
        if value is not None:
            number = factor * float(value)
            return Headline(name, number, form.format(number))
    return None


@dataclass(frozen=True)
class Summary:
    """The sums of a run's metrics, over all its processes and however often it was resumed.

    Args:
        steps (int): Number of training steps.
        headline (Headline | None): The metric of the last evaluation.
        fraction (float): The fraction of sharp steps.
        gradients (float): Gradients of all steps.
        train_seconds (float): Time of all steps, without evaluation and checkpoints.
        cpu_seconds (float | None): CPU time of all steps on the first process; None where they ran on a device.
        steady_seconds (float): ``train_seconds`` with each step at the median of its kind, so that disturbances of
            single steps do not count.
        plain_seconds (float | None): Median of a step with one gradient; None if there was none.
        sharp_seconds (float | None): Median of a sharp step.
    """

    steps: int
    headline: Headline | None
    fraction: float
    gradients: float
    train_seconds: float
    cpu_seconds: float | None
    steady_seconds: float
    plain_seconds: float | None
    sharp_seconds: float | None


def summarise(path: Path) -> Summary:
    """Sum up a metrics file that ``MetricsFile`` wrote; a run without steps has none."""
    lines = list(read_metrics(path)) if path.exists() else []
    steps = [line for line in lines if "step_seconds" in line]
    kinds = [
        [step["step_seconds"] for step in steps if bool(step.get("sam/applied")) == sharp] for sharp in (False, True)
    ]
    cpu = [step["step_cpu_seconds"] for step in steps if "step_cpu_seconds" in step]
    fractions = [step["sam/fraction"] for step in steps if "sam/fraction" in step]
    found = [headline(line) for line in lines if any(key.startswith(_EVALUATED) for key in line)]
    plain, sharp = (statistics.median(seconds) if seconds else None for seconds in kinds)
    return Summary(
        steps=len(steps),
        headline=found[-1] if found else None,
        fraction=fractions[-1] if fractions else 0.0,
        gradients=sum(step.get("sam/gradients", 1.0) for step in steps),
        train_seconds=sum(map(sum, kinds)),
        cpu_seconds=sum(cpu) if len(cpu) == len(steps) else None,
        steady_seconds=sum(len(seconds) * statistics.median(seconds) for seconds in kinds if seconds),
        plain_seconds=plain,
        sharp_seconds=sharp,
    )
