"""Start all scenarios in one process or several, once per test session, and read what they found."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
TIMEOUT = 480  # seconds; what does not end must fail. A collective gives up earlier: see `worker.PATIENCE`


def run(processes: int, folder: Path) -> str:
    """Let the scenarios leave their results in ``folder``; returns what went wrong, empty if nothing did.

    They are started once, also under pytest-xdist and also if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    verdict = folder / "verdict"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not verdict.exists():
            verdict.write_text(_launch(processes, folder))
    return verdict.read_text()


def _launch(processes: int, folder: Path) -> str:
    port = _free_port()
    workers = [_start(rank, processes, port, folder) for rank in range(processes)]
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


def _start(rank: int, processes: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
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
    command = [sys.executable, "-m", "tests.trainer.distributed.worker", str(folder)]
    with open(folder / f"rank{rank}.log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
