"""kill -9 at random moments: autoresume ends where an undisturbed run ends."""

from __future__ import annotations

import signal

import pytest

from tests.cases import same
from tests.trainer.distributed.conftest import Found
from tests.trainer.distributed.scenarios_kill import BATCHES, CASES, KILLS


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_again_and_again_ends_as_if_undisturbed(found: Found, case: str) -> None:
    (result,) = found("kill", 1, case)
    assert result["codes"] == [-signal.SIGKILL] * KILLS + [0, 0]
    killed, whole = result["killed"], result["whole"]
    assert 0 < len(killed["metrics"]) < len(whole["metrics"]) == BATCHES, "the last attempt resumes"
    assert same(killed["weights"], whole["weights"])
    assert same(killed["state"], whole["state"])
    assert same(killed["memory"], whole["memory"])
    assert same(killed["metrics"], whole["metrics"][-len(killed["metrics"]) :])
