"""DistributedDataParallel on two processes: replicas stay equal, and nothing waits for ever."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sam_algos import METHODS
from tests.cases import same
from tests.trainer.distributed.conftest import Found
from tests.trainer.distributed.scenarios_ddp import LOOPS, REPLICAS, VIEWS
from tests.trainer.distributed.tasks import KINDS, STEPS


def sharp(result: dict[str, Any]) -> list[float]:
    return [metrics["sam/applied"] for metrics in result["metrics"]]


def parameters(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights without BatchNorm's statistics: DDP sends rank 0's to the others before a pass, not after."""
    return {name: value for name, value in result["weights"].items() if "running" not in name}


def is_finite(result: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in result["weights"].values())


@pytest.mark.parametrize(("name", "model"), REPLICAS)
def test_replicas_are_equal_to_the_last_bit(found: Found, name: str, model: str) -> None:
    first, second = found("ddp", 2, f"replicas-{name}-{model}")
    assert len(first["metrics"]) == STEPS
    assert same(parameters(first), parameters(second))
    assert same(first["state"], second["state"])
    assert same(first["memory"], second["memory"])


@pytest.mark.parametrize("name", METHODS)
def test_decisions_are_the_same_on_all_processes(found: Found, name: str) -> None:
    first, second = found("ddp", 2, f"replicas-{name}-dense")
    assert sharp(first) == sharp(second)
    assert 1.0 in sharp(first)
    if name in ("looksam", "looklayersam", "aesam", "aelooksam"):
        assert 0.0 in sharp(first), "the data must show a flat step too"
        assert first["metrics"] == second["metrics"]


def test_processes_whose_steps_take_different_times_spend_one_budget(found: Found) -> None:
    first, second = found("ddp", 2, "overhead")
    assert first["metrics"] == second["metrics"]
    assert first["memory"] == second["memory"]
    assert same(first["weights"], second["weights"])
    assert first["memory"]["seconds"]["ratio"][-1] == 2.5  # the mean of 1 + 1 and 1 + 2 seconds, for a plain step of 1
    assert first["metrics"][-1]["sam/target_fraction"] == pytest.approx(0.2 / 1.5)
    assert sharp(first).count(1.0) == pytest.approx(60 * 0.2 / 1.5, abs=2)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(found: Found, name: str) -> None:
    for rank in found("ddp", 2, f"resume-{name}"):
        assert same(parameters(rank["whole"]), parameters(rank["resumed"]))
        assert same(rank["whole"]["state"], rank["resumed"]["state"])
        assert same(rank["whole"]["memory"], rank["resumed"]["memory"])


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_on_one_process_skips_the_step_on_all(found: Found, name: str) -> None:
    first, second = found("ddp", 2, f"nan-{name}")
    assert same(first["weights"], second["weights"])
    for rank in (first, second):
        assert is_finite(rank)
        assert rank["memory"]["nonfinite"] == 1
        assert rank["memory"]["step"] == STEPS - 1


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_of_zero_on_one_process_is_a_loss(found: Found, name: str) -> None:
    first, second = found("ddp", 2, f"zero-{name}")
    assert same(first["weights"], second["weights"])
    for rank in (first, second):
        assert is_finite(rank)
        assert rank["memory"]["step"] == STEPS
    norms = [metrics["sam/grad_norm"] for metrics in first["metrics"]]
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)


@pytest.mark.parametrize("name", VIEWS)
def test_a_hand_written_loop_keeps_replicas_equal(found: Found, name: str) -> None:
    first, second = found("ddp", 2, f"loop-{name}")
    assert same(first["weights"], second["weights"])
    assert first["sharp"] == second["sharp"]


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_as_bucket_views_change_nothing(found: Found, name: str) -> None:
    plain, _ = found("ddp", 2, f"loop-{name}")
    first, second = found("ddp", 2, f"loop-views-{name}")
    assert same(first["weights"], second["weights"])
    assert same(first["weights"], plain["weights"])


@pytest.mark.parametrize("name", LOOPS)
def test_bucket_views_change_nothing_if_the_step_knows_only_the_inner_model(found: Found, name: str) -> None:
    plain, _ = found("ddp", 2, f"inner-{name}")
    for rank in found("ddp", 2, f"inner-views-{name}"):
        assert same(rank["weights"], plain["weights"])


@pytest.mark.parametrize("scenario", ["static", "static-views"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_static_graph_begins_with_a_synchronised_pass(found: Found, name: str, scenario: str) -> None:
    synchronized, _ = found("ddp", 2, f"inner-{name}")
    for rank in found("ddp", 2, f"{scenario}-{name}"):
        assert all(rank["synced"])
        assert same(rank["weights"], synchronized["weights"])


@pytest.mark.parametrize("name", LOOPS)
def test_parameters_may_go_unused(found: Found, name: str) -> None:
    first, second = found("ddp", 2, f"unused-{name}")
    assert same(first["weights"], second["weights"])
    assert first["sharp"] == second["sharp"]


def test_recalibrated_statistics_are_the_average_over_all_processes(found: Found) -> None:
    ranks = found("ddp", 2, "recalibrated")
    hidden = torch.cat([rank["hidden"] for rank in ranks])  # of each batch of each process
    for rank in ranks:
        assert torch.allclose(rank["weights"]["module.1.running_mean"], hidden.mean(1).mean(0), atol=1e-12)
        assert torch.allclose(rank["weights"]["module.1.running_var"], hidden.var(1).mean(0), atol=1e-12)
        assert same(rank["weights"], ranks[0]["weights"])
        assert same(rank["seen"], ranks[0]["seen"])
        plain = {
            name: value for name, value in rank["plain"].items() if "running" not in name and "tracked" not in name
        }
        assert same({name: rank["weights"][name] for name in plain}, plain)
