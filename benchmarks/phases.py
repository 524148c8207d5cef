"""Where a sharp step's time goes, and how far its optimizer side is from the copying of memory."""

from __future__ import annotations

import gc
import statistics
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.contenders import contenders, optimizer_sides
from benchmarks.environment import Copy
from benchmarks.loops import LOOPS, WHERE
from benchmarks.results import BenchmarkError, Result
from benchmarks.seats import Contender
from benchmarks.summary import Columns, agrees, ratios
from benchmarks.timing import Rotation
from benchmarks.traffic import count, uncounted
from benchmarks.watch import PASSES, PHASES, Watched
from benchmarks.workloads import TENSORS, Workload, workloads

BOUNDS = {"SAM": 16, "ASAM": 20, "LookSAM, refresh": 36, "LookSAM, reuse": 16, "AESAM, flat": 4}
"""Bytes that each kind of step has to move for a float32 parameter outside of passes and base step.

SAM reads ``g`` for its norm, then ``w`` and ``g``, and writes ``w + ε``: 16. ASAM reads ``w`` for its norm
too: 20. A refresh of LookSAM, besides, reads ``g`` and ``g_s`` for their inner products, reads them again and
writes ``g_v``: 36. A reuse reads ``g`` for its norm, then ``g`` and ``g_v``, and writes: 16. A flat step of
AE-SAM reads ``g``: 4.
"""

_COPY = "copy"
_SHARP = (
    "SAM(interval=1)",
    "ASAM()",
    "LookSAM(k=1)",
    "Composer's SAM(interval=1)",
    "pytorch_optimizer's SAM",
)


def settings(args: Namespace) -> dict[str, Any]:
    """What decides what is measured; a measurement is resumed only with the same."""
    return {key: getattr(args, key) for key in ("workloads", "modes", "tensors", "seconds", "rounds")}


def measure(args: Namespace, result: Result) -> None:
    """Measure whole steps of every workload, then the optimizer side alone on every model's tensors."""
    for name, workload in workloads(args.workloads, None, ()).items():
        for mode in args.modes:
            table = result.data.setdefault(f"{name}/{mode}", {"title": f"{workload.title}, {WHERE[mode]}"})
            _kept(result, table, lambda: _steps(args, workload, mode, table, lambda: update(result)))  # noqa: B023
    for name in args.tensors:
        title, make = TENSORS[name]
        table = result.data.setdefault(f"tensors/{name}", {"title": title})
        _kept(result, table, lambda: _moves(args, make(), table, lambda: update(result)))  # noqa: B023


def _kept(result: Result, table: dict[str, Any], run: Callable[[], None]) -> None:
    """Run, and write down what was measured however that ends."""
    try:
        run()
    finally:
        if any(table.get("samples", {}).values()):
            update(result)


def update(result: Result) -> None:
    """Summarise what was measured, and write it down."""
    result.summary = {
        key: summarize_moves(table) if key.startswith("tensors/") else summarize_steps(table)
        for key, table in result.measured().items()
    }
    result.save()


def _rotation(
    args: Namespace,
    table: dict[str, Any],
    chosen: dict[str, Contender],
    extra: tuple[str, ...],
    save: Callable[[], None],
) -> Rotation:
    samples, names = table.setdefault("samples", {}), [*chosen, *extra]
    if samples and list(samples) != names:
        raise BenchmarkError("the other implementations that are installed have changed; --overwrite starts anew")
    table["contenders"] = {c.name: {"line": c.line, "package": c.package} for c in chosen.values()}
    return Rotation(names, samples, seconds=args.seconds, rounds=args.rounds, title=table["title"], save=save)


def _steps(args: Namespace, workload: Workload, mode: str, table: dict[str, Any], save: Callable[[], None]) -> None:
    found = contenders(essential=True, mode=mode)
    chosen = {name: found[name] for name in _SHARP if name in found}
    trainer = workload.make()
    gc.collect()
    gc.freeze()
    with closing(_rotation(args, table, chosen, (), save)) as rotation, closing(trainer):
        LOOPS[mode](trainer, chosen, rotation, Watched)


class _Still(Optimizer):
    """A base optimizer that leaves the weights where they are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do nothing."""


def _moves(args: Namespace, model: nn.Module, table: dict[str, Any], save: Callable[[], None]) -> None:
    """Step through closures that do no more than put gradients there."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    chosen, params = optimizer_sides(), list(model.parameters())
    gradients = [torch.randn_like(p) for p in params]
    base, copy = _Still(params), Copy()
    optimizers = {name: Watched(c.wrap(base, model)) for name, c in chosen.items()}

    def closure(**_: Any) -> float:
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        return 1.0

    elements = sum(p.numel() for p in params)
    table |= {"parameters": elements, "tensors": len(params), "copied_bytes": copy.bytes}
    with torch.no_grad():
        table["traffic"] = {name: _traffic(o, closure, elements) for name, o in optimizers.items()}
        with closing(_rotation(args, table, chosen, (_COPY,), save)) as rotation:
            while not rotation.finished:
                name = rotation.turn()
                rotation.start()
                _ = copy() if name == _COPY else optimizers[name].step(closure)
                rotation.stop(name, dict if name == _COPY else optimizers[name].figures)


def _traffic(optimizer: Watched, closure: Callable[..., Any], elements: int) -> dict[str, float]:
    """Bytes per parameter and operations of a step that is not the first."""
    optimizer.step(closure)
    traffic = count(lambda: optimizer.step(lambda **_: uncounted(closure)))
    return {"bytes": round(traffic.bytes / elements, 3), "operations": traffic.operations}


def summarize_steps(table: dict[str, Any]) -> dict[str, Any]:
    """Median milliseconds of the step and its phases, by contender; what is in no other is framework."""
    rows = {}
    for name, columns in table["samples"].items():
        phases = {phase: columns[phase] for phase in PHASES if phase != "framework"}
        known = [sum(step) for step in zip(*phases.values(), strict=True)]
        phases["framework"] = [wall - rest for wall, rest in zip(columns["wall"], known, strict=True)]
        milliseconds = {phase: 1e3 * statistics.median(seconds) for phase, seconds in phases.items()}
        wall = 1e3 * statistics.median(columns["wall"])
        rows[name] = {**table["contenders"][name], "ms": wall, "phases": milliseconds}
    first = next(iter(table["samples"].values()))
    return {"title": table["title"], "rounds": len(first["wall"]), "rows": rows}


def summarize_moves(table: dict[str, Any]) -> dict[str, Any]:
    """The optimizer side of each contender: its time and bytes, against copying and against this package."""
    samples = table["samples"]
    sides = {name: _side(columns) for name, columns in samples.items() if name != _COPY}
    bandwidth = table["copied_bytes"] / statistics.median(samples[_COPY]["wall"])
    ours = {
        facts["line"]: name for name, facts in reversed(table["contenders"].items()) if facts["package"] == "sam_algos"
    }
    rows = {}
    for name, facts in table["contenders"].items():
        bound = BOUNDS[facts["line"]] * table["parameters"] / bandwidth
        phases = {p: 1e3 * statistics.median(samples[name][p]) for p in PHASES if p not in (*PASSES, "base step")}
        rows[name] = {
            **facts, **table["traffic"][name], "ms": 1e3 * statistics.median(sides[name]), "phases": phases,
            "share_of_copy": bound / statistics.median(sides[name]),
            "ratio": statistics.median(ratios(sides[name], sides[ours[facts["line"]]])),
        }  # fmt: skip
    a_a = rows["SAM(), again"]["ratio"]
    return {
        "title": table["title"], "parameters": table["parameters"], "tensors": table["tensors"],
        "rounds": len(samples[_COPY]["wall"]), "copy_gb_per_s": bandwidth / 1e9,
        "a_a": a_a, "conclusive": agrees(a_a), "rows": rows,
    }  # fmt: skip


def _side(columns: Columns) -> list[float]:
    """The seconds of each step outside of passes and base step."""
    phases = [columns[phase] for phase in PHASES if phase not in (*PASSES, "base step")]
    return [sum(step) for step in zip(*phases, strict=True)]
