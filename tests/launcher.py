"""Start processes that work together, once per test session, and read what they found."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 480  # seconds; what does not end must fail. A collective gives up earlier: see ``PATIENCE`` in the modules


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], str]) -> tuple[Path, str]:
    """A folder that is filled once per test session, by whichever worker of pytest-xdist needs it first.

    Returns the folder and what ``fill`` said of it: what went wrong, empty if nothing did.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    verdict = folder / "verdict"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not verdict.exists():
            verdict.write_text(fill(folder))
    return folder, verdict.read_text()


def run(module: str, processes: int, folder: Path) -> str:
    """Run a module in processes that can talk to one another; returns what went wrong, empty if nothing did."""
    port = _free_port()
    workers = [_start(module, rank, processes, port, folder) for rank in range(processes)]
    deadline = time.monotonic() + TIMEOUT
    try:
        codes = [worker.wait(max(0.1, deadline - time.monotonic())) for worker in workers]
    except subprocess.TimeoutExpired:
        codes = [f"no end after {TIMEOUT} s"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if not any(codes):
        return ""
    output = "\n".join((folder / f"rank{rank}.log").read_text()[-4000:] for rank in range(processes))
    return f"{processes} processes: {codes}\n{output}"


def _start(module: str, rank: int, processes: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    if processes > 1:  # as Composer's launcher does, without importing Composer once more to do it
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    command = [sys.executable, "-m", module, str(folder)]
    with open(folder / f"rank{rank}.log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
