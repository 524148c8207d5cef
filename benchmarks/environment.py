"""Describe the machine, and set the environment variables that a process needs at its start."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_MALLOC = {  # makes glibc keep freed memory: page faults would be up to a quarter of the noise
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
_PACKAGES = ("torch", "torchvision", "mosaicml", "numpy", "pytorch_optimizer")
_CHANGING = ("sessions", "copy_gb_per_s", "commit")  # may differ when a measurement is resumed


def restart_if_unprepared(arguments: Sequence[str], threads: int) -> None:
    """Restart this process once with the variables that must be set at its start; the user's malloc settings stay."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    wanted["KINETO_LOG_LEVEL"] = "5"  # the profiler warns about every missing device
    if sys.platform == "linux":
        wanted |= {name: value for name, value in _MALLOC.items() if name not in os.environ}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    sys.stdout.flush()
    command = [sys.executable, "-m", "benchmarks", *arguments]
    os.execve(sys.executable, command, {**os.environ, **wanted})


def describe() -> dict[str, Any]:
    """Hardware, versions and settings of this process, in JSON types."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": _gpu(),
        "os": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ.get(name) for name in _MALLOC},
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "commit": _commit(),
        "code": _code(),
        "copy_gb_per_s": round(copy_bandwidth() / 1e9, 2),
        "sessions": [],
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The entries in which two environments differ, so that their timings must not be combined."""
    return [key for key in a if key not in _CHANGING and a[key] != b.get(key)]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def load_average() -> list[float]:
    """The system's load average over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def copy_bandwidth(elements: int = 1 << 25, repetitions: int = 9) -> float:
    """Bytes read and written per second by a memory copy; the median of some repetitions."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
    seconds = []
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / median(seconds)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in text.splitlines() if line.startswith("model name")), "unknown")


def _gpu() -> str | None:
    """The device, with the settings that its timings depend on."""
    import torch
    from torch import version

    if not torch.cuda.is_available():
        return None
    limits = _output("nvidia-smi", "--query-gpu=power.limit,driver_version", "--format=csv,noheader", "--id=0")
    tf32 = f"TF32 in matmul {torch.backends.cuda.matmul.allow_tf32}, in cuDNN {torch.backends.cudnn.allow_tf32}"
    return f"{torch.cuda.get_device_name()}, {limits or 'limits unknown'}, CUDA {version.cuda}, {tf32}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code() -> str:
    """A digest of the measured code. Unlike the commit, it shows uncommitted changes."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("sam_algos", "benchmarks", "yamls") for p in (ROOT / folder).rglob("*.*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str | None:
    """The commit of this checkout, followed by ``+`` if the code has uncommitted changes."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", "sam_algos", "benchmarks/*.py", "yamls")
    return commit and commit + ("+" if changed else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
