"""Sharded parameters: every quantity of a step is that of the whole vector, however it is divided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import references
from tests.cases import same
from tests.references import Vector
from tests.trainer.distributed.conftest import Found
from tests.trainer.distributed.scenarios_shards import FOLLOWED, ORACLES, STEPS
from tests.trainer.distributed.tasks import OPTIONS

ADAPTIVE = {"rho": 0.5, "eta": 0.01, "normalize_bias": False, "scope": "element"}


def rule(case: str, names: list[str]) -> references.Rule:
    name, _, variant = case.partition("-")
    options = OPTIONS[name]
    if name == "asam":
        change = {"bias": {"normalize_bias": True}, "": {}}.get(variant, {"scope": variant})
        return references.asam(names, **{**ADAPTIVE, **change})
    if name == "sam":
        return references.sam(0.1, float(variant[1:] or 2))
    if name in ("looksam", "looklayersam"):
        return references.looksam(**options, by_layer=name == "looklayersam")
    policy = references.ae_policy(options["delta"], options["lambda_1"], options["lambda_2"], STEPS, [])
    if name == "aesam":
        return references.aesam(policy, options["rho"])
    return references.reuse(policy, options["rho"], options["alpha"])


def close(actual: Vector, expected: Vector) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


def check_step(index: int, step: dict[str, Any], follow: references.Rule) -> None:
    first, *rest = step["passes"]
    w, g = first["w"], first["g"]

    def second_pass(epsilon: Vector) -> Vector:
        perturbed = rest.pop()
        close([b - a for a, b in zip(w, perturbed["w"], strict=True)], epsilon)
        return perturbed["g"]

    expected = follow(index, w, g, second_pass)
    assert not rest, "a second pass that the method does not ask for"
    close([a - b for a, b in zip(w, step["w"], strict=True)], expected)
    assert math.isclose(step["metrics"]["sam/grad_norm"], references.norm(g), rel_tol=1e-12)


@pytest.mark.parametrize(("case", "layout"), ORACLES)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_step_follows_the_oracle(found: Found, processes: int, case: str, layout: str) -> None:
    for rank in found("shards", processes, f"{case}-{layout}"):
        follow = rule(case, rank["names"])
        assert len(rank["steps"]) == STEPS
        for index, step in enumerate(rank["steps"]):
            check_step(index, step, follow)


@pytest.mark.parametrize(("case", "layout"), FOLLOWED[2])
def test_processes_agree(found: Found, case: str, layout: str) -> None:
    first, second = found("shards", 2, f"{case}-{layout}")
    assert same(first, second)


@pytest.mark.parametrize("processes", [1, 2])
def test_sums_are_complete_and_count_copies_once(found: Found, processes: int) -> None:
    for rank in found("shards", processes, "sums"):
        a, b = rank["whole"].unbind(1)
        close([rank["norms"]], [a.flatten(1).norm(dim=1)])
        close([rank["norm"], rank["dot"], rank["largest"]], [a.norm(), (a * b).sum(), a.abs().max()])
        close(rank["filters"], [x.norm(dim=1, keepdim=True).expand_as(x) for x in a])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["looksam", "friendlysam", "momentumsam"])
@pytest.mark.parametrize("processes", [1, 2])
def test_torchs_own_checkpoints_hold_what_a_method_remembers(
    found: Found, processes: int, name: str, flat: bool
) -> None:
    for rank in found("shards", processes, f"checkpointed-{name}-{flat}"):
        assert same(rank["resumed"], rank["whole"])
