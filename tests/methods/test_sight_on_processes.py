"""Processes that train a model together decide alike whether it sees the displaced weights, and wait for nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
METHODS = ("SAM", "MomentumSAM", "RandomSAM")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes ended with, by case."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "tests.methods.processes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def said(found: list[dict[str, Any]], case: str) -> set[str]:
    assert all(map(torch.equal, *(rank[case][1] for rank in found)))
    return {rank[case][0] for rank in found}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("closure", ["sound", "nothing_to_learn_on_one", "another_code_on_one"])
@pytest.mark.parametrize("model", ["replicated", "sharded"])
def test_no_process_waits_for_one_that_sees_nothing_suspicious(
    found: Any, model: str, closure: str, method: str
) -> None:
    assert said(found, f"{model}, {closure}, {method}") == {""}


@pytest.mark.parametrize("method", METHODS)
def test_no_process_waits_for_one_that_has_no_direction_to_climb_in(found: Any, method: str) -> None:
    assert said(found, f"two heads, {method}") == {""}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["replicated", "sharded"])
def test_a_pass_that_saw_nothing_displaced_is_refused_on_all(found: Any, model: str, method: str) -> None:
    [message] = said(found, f"{model}, copies, {method}")
    assert message.startswith("The closure does not see the perturbed weights")


@pytest.mark.parametrize("case", ["memory, synchronized", "memory, looksam"])
def test_a_hook_that_remembers_gradients_must_not_see_two_in_a_step(found: Any, case: str) -> None:
    [message] = said(found, case)
    assert "powerSGD_hook (PowerSGDState) keeps a memory" in message


@pytest.mark.parametrize("case", ["memory, own", "no memory, synchronized"])
def test_a_hook_that_sees_one_or_remembers_none_is_welcome(found: Any, case: str) -> None:
    assert said(found, case) == {""}
