"""Processes that train a model together decide alike whether it sees the displaced weights, and wait for nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.launcher import once, run

LOOKS = ("SAM", "RandomSAM")
"""A displaced pass is judged by the loss of the first pass, or by that of one more pass at the clean weights."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes ended with, by case."""
    folder, trouble = once(tmp_path_factory, "sight", partial(run, "tests.methods.processes", 2))
    assert not trouble, trouble
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def said(found: list[dict[str, Any]], case: str) -> set[str]:
    assert all(map(torch.equal, *(rank[case][1] for rank in found)))
    return {rank[case][0] for rank in found}


@pytest.mark.parametrize("method", LOOKS)
@pytest.mark.parametrize("closure", ["sound", "nothing_to_learn_on_one", "another_code_on_one"])
@pytest.mark.parametrize("model", ["replicated", "sharded"])
def test_no_process_waits_for_one_that_sees_nothing_suspicious(
    found: Any, model: str, closure: str, method: str
) -> None:
    assert said(found, f"{model}, {closure}, {method}") == {""}


@pytest.mark.parametrize("method", [*LOOKS, "MomentumSAM"])
def test_no_process_waits_for_one_that_has_no_direction_to_climb_in(found: Any, method: str) -> None:
    assert said(found, f"two heads, {method}") == {""}


@pytest.mark.parametrize("method", [*LOOKS, "MomentumSAM"])
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
