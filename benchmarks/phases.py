"""Where a step's time goes, by the profiler ranges that its optimizer names."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.contenders import Contender
from benchmarks.cost import fill
from benchmarks.loops import Seat
from benchmarks.results import Result
from benchmarks.summary import PHASES, PLAIN, REST
from benchmarks.workloads import Workload, workloads

_PREFIX = "sam/"
_STEP = "benchmarks/step"
_NAMES = (_STEP, *(_PREFIX + phase for phase in PHASES))


def settings(args: Namespace) -> dict[str, Any]:
    """The settings of the measurement; resuming requires equal settings."""
    return {key: getattr(args, key) for key in ("recipe", "overrides", "workloads", "modes", "seconds", "rounds")}


def measure(args: Namespace, result: Result) -> None:
    """Time steps of every workload in every mode; then profile separately, as the profiler itself takes time."""
    for name, workload in workloads(args.workloads, args.recipe, args.overrides).items():
        for mode in args.modes:
            table = result.data.setdefault(f"{name}/{mode}", {})
            fill(table, workload, mode, seconds=args.seconds, rounds=args.rounds, save=result.save, pick=one_of_a_line)
            look(table, workload, mode, rounds=args.rounds, save=result.save)


def look(table: dict[str, Any], workload: Workload, mode: str, *, rounds: int, save: Callable[[], None]) -> None:
    """Add to a table the seconds of each phase of a step."""
    fill(
        table, workload, mode, seconds=0, rounds=rounds, save=save, pick=one_of_a_line,
        column="ranges", meter=Ranges(), seat=Ranged,
    )  # fmt: skip


def one_of_a_line(found: dict[str, Contender]) -> dict[str, Contender]:
    """The plain optimizer, and the first contender of each other line except the baselines."""
    first: dict[str, Contender] = {}
    for contender in found.values():
        if contender.name == PLAIN or contender.package != "torch":
            first.setdefault(contender.line, contender)
    return {contender.name: contender for contender in first.values()}


class Span(NamedTuple):
    """A named interval of time, in any unit."""

    name: str
    start: float
    end: float


def own_times(spans: Iterable[Span]) -> dict[str, float]:
    """The total time of each name, without the spans nested in it.

    Example:
        >>> own_times([Span("a", 0, 10), Span("b", 2, 5), Span("a", 3, 4)])
        {'a': 8, 'b': 2}
    """
    own: dict[str, float] = {}
    around: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while around and around[-1].end <= span.start:
            around.pop()
        length = span.end - span.start
        own[span.name] = own.get(span.name, 0) + length
        if around:
            own[around[-1].name] -= length
        around.append(span)
    return own


class Ranges:
    """Reads the seconds of each phase of a step: on a GPU, the seconds of the kernels launched in it.

    The rest is the time outside all phases, including idle time of the GPU.
    """

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = functools.partial(profile, activities=activities)
        self._readings: list[dict[str, float]] = []

    def start(self) -> None:
        """Begin a step."""
        self._profiler = self._profile()
        self._profiler.__enter__()
        self._step = record_function(_STEP)
        self._step.__enter__()

    def stop(self) -> None:
        """End the step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step.__exit__(None, None, None)
        self._profiler.__exit__(None, None, None)
        inner: Any = self._profiler.profiler  # its public list of events takes much longer than a step
        self._readings.append(phase_seconds(inner.kineto_results.events()))

    def drain(self) -> list[dict[str, float]]:
        """Return the readings since the last call."""
        readings, self._readings = self._readings, []
        return readings


def phase_seconds(events: Sequence[Any]) -> dict[str, float]:
    """The seconds of each phase, from the profiler's events of one step."""
    host = [event for event in events if event.device_type() == DeviceType.CPU]
    spans = [Span(event.name(), event.start_ns(), event.end_ns()) for event in host if event.name() in _NAMES]
    kernels = [event for event in events if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()]
    own = _on_device(host, kernels, spans) if kernels else own_times(spans)
    phases = {phase: own.get(_PREFIX + phase, 0) / 1e9 for phase in PHASES}
    whole = sum(span.end - span.start for span in spans if span.name == _STEP) / 1e9
    return {**phases, REST: whole - sum(phases.values())}


def _on_device(host: Sequence[Any], kernels: Sequence[Any], spans: Sequence[Span]) -> dict[str, int]:
    """Nanoseconds of kernels by the innermost range in which they were launched, whichever thread launched them."""
    launched = {event.correlation_id(): event.start_ns() for event in host if event.linked_correlation_id() == 0}
    found: dict[str, int] = {}
    for kernel in kernels:
        moment = launched.get(kernel.linked_correlation_id())
        within = [span for span in spans if moment is not None and span.start <= moment < span.end]
        if within:
            name = max(within, key=lambda span: (span.start, -span.end)).name
            found[name] = found.get(name, 0) + kernel.duration_ns()
    return found


class Ranged(Seat):
    """Marks an optimizer's passes and base steps as ranges, even if it does not name them itself."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        base = getattr(optimizer, "base_optimizer", optimizer)
        if not hasattr(base, "benchmarks_range"):  # once, as contenders share it
            base.benchmarks_range = record_function(_PREFIX + "base step")
            base.register_step_pre_hook(lambda *_: base.benchmarks_range.__enter__() and None)
            base.register_step_post_hook(lambda *_: base.benchmarks_range.__exit__(None, None, None))

    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Step, and mark each call of the closure as a range."""
        if closure is None:
            return super().step()

        @functools.wraps(closure)
        def ranged(*args: Any, **options: Any) -> Any:
            with record_function(_PREFIX + "pass"):
                return closure(*args, **options)

        return super().step(ranged)

    def figures(self) -> dict[str, float]:
        """Keep nothing but the ranges."""
        return {}
