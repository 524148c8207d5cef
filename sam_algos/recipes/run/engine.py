"""Composer's Trainer without what takes most of a small network's time, and in the precision that the device has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from composer import Callback, Engine, Event
from composer.devices import Device, DeviceGPU
from composer.loggers import LoggerDestination
from composer.utils import collect_env


def ask_for_the_cpu_once() -> None:
    """Let Composer look up the processor's name once in a process; each Trainer starts an interpreter for it (1 s)."""
    if not hasattr(collect_env.get_cpu_model, "cache_info"):
        collect_env.get_cpu_model = cache(collect_env.get_cpu_model)


def skip_unheard_events(engine: Engine) -> None:
    """Make a Trainer's engine call only the callbacks that act on an event.

    Composer runs a dozen events a pass. For each of them it calls every callback, and formats a debugging line for
    every call. With a profiler all events run as they do in Composer, as its ranges come from there.
    """
    engine.run_event = partial(_run_event, engine, engine.run_event, cache(_acts))


def _run_event(engine: Engine, run_event: Any, acts: Callable[[type, Event], bool], event: Event | str) -> Any:
    event, state = Event(event), engine.state
    if state.profiler is not None:
        return run_event(event)
    matching = any(algorithm.match(event, state) for algorithm in state.algorithms)
    traces = engine._run_algorithms(event) if matching else {}
    acting = [callback for callback in state.callbacks if acts(type(callback), event)]
    for callback in sorted(acting, key=lambda one: isinstance(one, LoggerDestination)):  # loggers come last
        callback.run_event(event, state, engine.logger)
    return traces


def _acts(kind: type[Callback], event: Event) -> bool:
    """Whether callbacks of a class act on an event."""
    return any(getattr(kind, name) is not getattr(Callback, name) for name in ("run_event", event.value))


def precision_on(device: Device, precision: str | None) -> str | None:
    """A recipe's precision on a device: ``amp_bf16`` or ``fp32`` for ``amp_bf16_or_fp32``, other values unchanged."""
    if precision != "amp_bf16_or_fp32":
        return precision
    # Older GPUs emulate bfloat16, more slowly than they compute in float32.
    native = isinstance(device, DeviceGPU) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "amp_bf16" if native else "fp32"
