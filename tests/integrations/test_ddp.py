"""Data parallelism in every framework: two processes on halves of the batches train as one does on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launcher import once

ROOT = Path(__file__).parents[2]


def launch(folder: Path) -> str:
    """As a user would: some frameworks look for the launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["-m", "tests.integrations.worker", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=480)
    return done.stderr[-4000:] if done.returncode else ""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes ended with, by framework."""
    folder, trouble = once(tmp_path_factory, "frameworks", launch)
    assert not trouble, trouble
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


REFERENCES = {
    "pytorch": "one process",
    "accelerate": "one process",
    "lightning": "one process",
    "lightning, accumulating": "one process, accumulating",
    "transformers": "language model",
}


@pytest.mark.parametrize("framework", REFERENCES)
def test_two_processes_train_as_one(found: list[dict[str, Any]], framework: str) -> None:
    if framework not in found[0]:
        pytest.skip(f"needs {framework}: pip install 'sam_algos[frameworks]'")
    first, second = (ranks[framework] for ranks in found)
    for name, value in found[0][REFERENCES[framework]].items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
