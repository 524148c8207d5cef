"""What a run came to, read from its metrics file: no Composer is needed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EVALUATED = "metrics/eval/"

_HEADLINES = {  # the one number by which people judge a model, by the name of Composer's or torchmetrics' class
    "MulticlassAccuracy": ("accuracy", 100.0, "{:.2f} %"),
    "LanguagePerplexity": ("perplexity", 1.0, "{:.3f}"),
    "LanguageCrossEntropy": ("cross-entropy", 1.0, "{:.4f}"),
}


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read a metrics file.

    Args:
        path (Path): Written by ``MetricsFile``.

    Yields:
        dict[str, Any]: A line; what a process that was killed left of one is passed over.
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
        value (float): An accuracy in percent, others as they are.
        shown (str): As people read it.
    """

    name: str
    value: float
    shown: str


def headline(metrics: Mapping[str, Any]) -> Headline | None:
    """The metric to judge a model by, among those that an evaluation logged.

    Args:
        metrics (Mapping[str, Any]): By the names that Composer gives them, ``metrics/eval/MulticlassAccuracy``.

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
    """What a run was, all of its processes together, however often it was resumed.

    Args:
        steps (int): Training steps.
        headline (Headline | None): Of the last evaluation.
        fraction (float): Of sharp steps.
        gradients (float): Gradients, all steps together.
        train_seconds (float): Of all steps, evaluation and checkpoints left out.
        cpu_seconds (float | None): CPU time of all steps on the first process; None where they ran on a device.
        steady_seconds (float): The same as ``train_seconds`` if each kind of step had always taken its median time, so
            that what disturbed some of them does not count.
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
    """Sum up a metrics file.

    Args:
        path (Path): Written by ``MetricsFile``; one that is not there is that of a run without steps.

    Returns:
        Summary: Of the run.
    """
    lines = list(read_metrics(path)) if path.exists() else []
    steps = [line for line in lines if "step_seconds" in line]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in steps:
        seconds[bool(step.get("sam/applied"))].append(step["step_seconds"])
    cpu = [step["step_cpu_seconds"] for step in steps if "step_cpu_seconds" in step]
    fractions = [step["sam/fraction"] for step in steps if "sam/fraction" in step]
    found = [headline(line) for line in lines if any(key.startswith(_EVALUATED) for key in line)]
    medians = {kind: statistics.median(some) if some else None for kind, some in seconds.items()}
    return Summary(
        steps=len(steps),
        headline=found[-1] if found else None,
        fraction=fractions[-1] if fractions else 0.0,
        gradients=sum(step.get("sam/gradients", 1.0) for step in steps),
        train_seconds=sum(map(sum, seconds.values())),
        cpu_seconds=sum(cpu) if len(cpu) == len(steps) else None,
        steady_seconds=sum(len(some) * statistics.median(some) for some in seconds.values() if some),
        plain_seconds=medians[False],
        sharp_seconds=medians[True],
    )
