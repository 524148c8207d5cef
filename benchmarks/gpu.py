"""All measurements on a CUDA device in one command: tests, cost, phases, synchronisations, compilation, graphs."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import POPULAR, Contender, contenders
from benchmarks.cost import fill
from benchmarks.environment import ROOT
from benchmarks.loops import closure_for, steps
from benchmarks.phases import look
from benchmarks.results import BenchmarkError, Result
from benchmarks.summary import PLAIN, SHARP
from benchmarks.workloads import Task, Workload, synthetic

NETWORKS = ("resnet18", "resnet50", "vit_s16")
_STEPS = 3  # before and after a capture
_FOR_TESTS, _FOR_THE_REST = 0.2, 0.15  # fractions of the time


def settings(args: Namespace) -> dict[str, Any]:
    """The settings of the measurement.

    Raises:
        BenchmarkError: If there is no CUDA device.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("gpu: this machine has no CUDA device that PyTorch can see")
    return {"minutes": args.minutes, "quick": args.quick}


def measure(args: Namespace, result: Result) -> None:
    """Measure everything that is still missing, as far as the time allows."""
    begun, whole = time.monotonic(), 60 * args.minutes
    facts = result.data.setdefault("facts", {})
    if "Tests" not in facts:
        facts["Tests"] = tests(_FOR_TESTS * whole)
    facts["Left out"] = {} if find_spec(POPULAR) else {POPULAR: f"not installed: pip install {POPULAR}"}
    wanted = {
        f"{name}/{str(dtype or torch.float32).removeprefix('torch.')}": synthetic(name, dtype, tiny=args.quick)
        for name in NETWORKS
        for dtype in (None, torch.bfloat16)
    }
    missing = [key for key in wanted if not result.data.get(key, {}).get("done")]
    for i, key in enumerate(missing):
        left = (1 - _FOR_THE_REST) * whole - (time.monotonic() - begun)
        if left <= 0:
            facts["Left out"][key] = "no time left: --resume continues"
            continue
        seconds = 0.5 * left / (len(missing) - i)  # the profiler and building take the other half
        try:
            _measure(result.data.setdefault(key, {}), wanted[key], seconds, args.quick, result.save)
        except Exception as error:  # such as out of memory: go on with the others
            facts["Left out"][key] = _line(error)
    title = f"Compilation and graphs, {NETWORKS[0]}: the weights after {2 * _STEPS} steps of SAM, against eager ones"
    if title not in facts:
        facts[title] = graphs(synthetic(NETWORKS[0], tiny=args.quick))
    facts |= {} if facts["Left out"] else {"Left out": {"nothing": ""}}


def _measure(table: dict[str, Any], workload: Workload, seconds: float, quick: bool, save: Callable[[], None]) -> None:
    fill(table, workload, "bare", seconds=0 if quick else seconds, rounds=2 if quick else 5, save=save)
    look(table, workload, "bare", rounds=1 if quick else 3, save=save)
    with closing(workload.make("bare")) as task:
        found = contenders(task.optimizer, mode="bare", essential=True)
        table["synchronisations"] = synchronisations(task, {name: found[name] for name in table["samples"]})
    table["done"] = True
    save()


def tests(seconds: float) -> dict[str, str]:
    """Run the tests that need a GPU; return pytest's summary."""
    name = "pytest -m gpu"
    if find_spec("pytest") is None:
        return {name: "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors", "tests"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {name: f"not finished after {seconds:.0f} s"}
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    failed = {line: "" for line in lines if line.startswith(("FAILED", "ERROR"))}
    return {name: f"{lines[-1] if lines else 'no output'} (exit status {done.returncode})", **failed}


def synchronisations(task: Task, chosen: Mapping[str, Contender]) -> dict[str, int]:
    """Count the host synchronisations in one step of each contender, after two warm-up steps."""
    take, found = steps(task, task.network, chosen), {}
    for name in chosen:
        for _ in range(2):
            take(name)[0]()
        step = take(name)[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("default")
        found[name] = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return found


def graphs(workload: Workload) -> dict[str, str]:
    """Whether steps with ``torch.compile`` and in a CUDA graph give the same weights as eager steps."""
    plain, sharp = (_weights(workload, name) for name in (PLAIN, SHARP))
    modes: list[dict[str, Any]] = (
        [{}, {"mode": "reduce-overhead"}] if torch.cuda.is_available() else [{"backend": "eager"}]
    )
    tried: dict[str, Callable[[], Tensor]] = {
        f"torch.compile(model, {options})": lambda options=options: _weights(
            workload, SHARP, lambda model: torch.compile(model, **options)
        )
        for options in modes
    }
    tried["CUDA graph of a step of SAM"] = lambda: _weights(workload, SHARP, captured=True)
    tried["CUDA graph of a plain step"] = lambda: _weights(workload, PLAIN, captured=True) - plain + sharp
    return {name: _outcome(weights, sharp, plain) for name, weights in tried.items()}


def _outcome(weights: Callable[[], Tensor], sharp: Tensor, plain: Tensor) -> str:
    """An error, or the distance of the weights from SAM's, in units of the plain optimizer's distance."""
    try:
        distance = float((weights() - sharp).norm() / (plain - sharp).norm())
    except Exception as error:  # compilers and drivers may raise anything
        return _line(error)
    return f"{'works' if distance < 0.1 else 'runs, and is WRONG'}: off by {distance:.2g} of SAM's effect"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _weights(
    workload: Workload, name: str, through: Callable[[nn.Module], Any] = lambda model: model, *, captured: bool = False
) -> Tensor:
    """The weights after some steps on one batch. With ``captured`` the first half of the steps warms up."""
    torch.manual_seed(0)
    stream: Any = torch.cuda.Stream() if captured else None  # a capture cannot run on the default stream
    with closing(workload.make("bare")) as task, torch.cuda.stream(stream):
        contender = contenders(task.optimizer, mode="bare", essential=True)[name]
        model = through(task.network.train())
        optimizer = contender.wrap(task.optimizer, model)
        closure = closure_for(contender, optimizer, task, model, next(task.batches))
        for _ in range(_STEPS if captured else 2 * _STEPS):
            optimizer.step(closure)
        if captured:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # takes no step
                optimizer.step(closure)
            for _ in range(_STEPS):
                graph.replay()
            torch.cuda.synchronize()
        return torch.cat([p.detach().flatten().double() for p in task.network.parameters()])
