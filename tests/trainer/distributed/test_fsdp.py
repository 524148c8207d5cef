"""FSDP2 under Composer: decisions, failures and checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from sam_algos.methods.looksam import DIRECTION
from tests.cases import same
from tests.trainer.distributed.conftest import Found
from tests.trainer.distributed.scenarios_fsdp import BAD_SHARDS, CROSSED, FAILURES, REMEMBERING, SAVED, STATES
from tests.trainer.distributed.tasks import KINDS, STEPS, method

PROCESSES = pytest.mark.parametrize("processes", [1, 2])
EACH_STATE = pytest.mark.parametrize("kind", STATES)
EACH_RESUMED = [
    *((1, kind, name) for kind in STATES for name in (*KINDS, "flat", "stateless", "adamw")),
    *((2, "full", name) for name in (*KINDS, "flat", "stateless", "adamw")),
    *((2, "sharded", name) for name in (*REMEMBERING, "flat", "stateless", "adamw")),
]


def parameters(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights without BatchNorm's statistics: a checkpoint holds those of rank 0."""
    return {name: value for name, value in result["weights"].items() if "running" not in name}


def momentum(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in result["state"].items() if key.endswith("momentum_buffer")}


def directions(result: dict[str, Any]) -> list[torch.Tensor]:
    return [value for key, value in result["state"].items() if key.endswith(DIRECTION)]


@pytest.mark.parametrize(("processes", "kind", "name"), EACH_RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(found: Found, name: str, kind: str, processes: int) -> None:
    for rank in found("fsdp", processes, f"resume-{kind}-{name}"):
        whole, resumed = rank["whole"], rank["resumed"]
        assert len(resumed["metrics"]) == STEPS - SAVED
        assert same(parameters(whole), parameters(resumed))
        assert same(whole["memory"], resumed["memory"])
        assert same(whole["metrics"][SAVED:], resumed["metrics"])
        shared = whole["state"].keys() & resumed["state"].keys()
        assert {key: value for key, value in whole["state"].items() if key not in shared} == {}
        assert all(same(whole["state"][key], resumed["state"][key]) for key in shared)


@PROCESSES
@EACH_STATE
@pytest.mark.parametrize("name", [*CROSSED, "flat"])
def test_a_checkpoint_crosses_over_and_back(found: Found, name: str, kind: str, processes: int) -> None:
    for rank in found("fsdp", processes, f"cross-{kind}-{name}"):
        for before, after in (("plain", "there-began"), ("there", "back-began")):
            assert same(rank[before]["weights"], rank[after]["weights"])
            assert same(momentum(rank[before]), momentum(rank[after]))
            assert len(momentum(rank[after])) == 6
        assert all(not value.any() for value in directions(rank["there-began"]))
        assert rank["there"]["memory"]["step"] == STEPS - SAVED, "plain training does not count"


@PROCESSES
@EACH_STATE
def test_crossing_to_a_method_that_never_acts(found: Found, kind: str, processes: int) -> None:
    plain = found("fsdp", processes, "plain")
    for expected, rank in zip(plain, found("fsdp", processes, f"cross-{kind}-flat"), strict=True):
        assert same(expected["weights"], rank["back"]["weights"])
        assert same(momentum(expected), momentum(rank["back"]))


@PROCESSES
@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_groups_own_radius_survives_the_checkpoint_of_plain_training(found: Found, kind: str, processes: int) -> None:
    for rank in found("fsdp", processes, f"radius-{kind}"):
        assert rank == {"began": [0.0, None], "ended": [0.0, None]}


@PROCESSES
def test_only_a_methods_buffers_may_be_missing(found: Found, processes: int) -> None:
    for rank in found("fsdp", processes, "lacking"):
        assert "Missing key" in rank["error"]
        assert "momentum_buffer" in rank["error"]


@pytest.mark.parametrize(
    ("processes", "where", "name"), [(processes, *case) for processes, cases in FAILURES.items() for case in cases]
)
def test_weights_are_back_to_the_last_bit_after_an_exception(
    found: Found, name: str, where: str, processes: int
) -> None:
    for rank in found("fsdp", processes, f"failure-{where}-{name}"):
        assert same(rank["before"], rank["after"])
        clean, perturbed, again = rank["outputs"]
        assert not torch.equal(clean, perturbed), "the second pass must have been at other weights"
        torch.testing.assert_close(clean, again, rtol=0, atol=1e-6, msg="the model computes with the perturbed weights")


@PROCESSES
def test_weights_are_back_after_an_exception_between_the_passes(found: Found, processes: int) -> None:
    for rank in found("fsdp", processes, "choice"):
        assert same(rank["before"], rank["after"])
        assert torch.equal(rank["clean"], rank["again"]), "the model computes with the perturbed weights"


@PROCESSES
@pytest.mark.parametrize("name", ["sam", "momentumsam"])
def test_an_evaluation_between_the_steps_changes_nothing(found: Found, name: str, processes: int) -> None:
    for evaluated, undisturbed in found("fsdp", processes, f"evaluated-{name}"):
        assert same(evaluated["weights"], undisturbed["weights"])


@PROCESSES
@EACH_STATE
def test_a_method_takes_over_from_one_that_remembers_something_else(found: Found, kind: str, processes: int) -> None:
    for rank in found("fsdp", processes, f"swap-{kind}"):
        first, began, ended = rank["first"], rank["began"], rank["ended"]
        assert same(first["weights"], began["weights"])
        assert same(momentum(first), momentum(began))
        assert all(not value.any() for value in directions(began))
        assert began["memory"]["step"] == began["memory"]["sharp"] == SAVED
        assert ended["memory"]["step"] == STEPS


@pytest.mark.parametrize(
    ("processes", "name"), [(processes, name) for processes, names in BAD_SHARDS.items() for name in names]
)
def test_a_nan_in_one_shard_skips_the_step_on_all(found: Found, name: str, processes: int) -> None:
    for rank in found("fsdp", processes, f"nan-{name}"):
        assert all(bool(value.isfinite().all()) for value in rank["weights"].values())
        assert rank["memory"]["nonfinite"] == 1
        assert rank["memory"]["step"] == STEPS - 1


@PROCESSES
@pytest.mark.parametrize("name", KINDS)
def test_microbatches_make_one_batch(found: Found, name: str, processes: int) -> None:
    for single, few in found("fsdp", processes, f"microbatches-{name}"):
        assert [m["sam/applied"] for m in single["metrics"]] == [m["sam/applied"] for m in few["metrics"]]
        for key, value in single["weights"].items():
            torch.testing.assert_close(value, few["weights"][key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REMEMBERING)
def test_processes_decide_and_log_the_same(found: Found, name: str) -> None:
    first, second = (rank["whole"] for rank in found("fsdp", 2, f"resume-sharded-{name}"))
    assert first["metrics"] == second["metrics"]
    assert first["memory"] == second["memory"]


def test_composers_fsdp1_is_refused(found: Found) -> None:
    (result,) = found("fsdp", 1, "fsdp1")
    assert result["error"].startswith("SAM: FSDP1")
    assert "FSDP2Config()" in result["error"]


def test_a_part_wrapped_in_fsdp1_is_refused() -> None:
    part = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(part)
    part._fsdp_wrapped_module = nn.Linear(4, 3)
    model = nn.Sequential(nn.Linear(4, 4), part)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r": FSDP1 .* Use FSDP2: torch.distributed.fsdp.fully_shard"):
        method("sam").wrap(optimizer, model=model, total_steps=1)
