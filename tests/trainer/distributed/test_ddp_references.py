"""DistributedDataParallel on two processes against oracles that see the whole batch, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import references
from tests.references import Vector
from tests.trainer.distributed.conftest import Found
from tests.trainer.distributed.scenarios_ddp import ORACLES, VIEWS
from tests.trainer.distributed.tasks import BATCH, KINDS, OPTIONS, STEPS, dense, samples

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
SYNCHRONIZED = {  # of each pass of a sharp step
    **dict.fromkeys(("sam", "asam", "sssam", "samon", "latesam", "fishersam"), (False, True)),
    **dict.fromkeys(("looksam", "looklayersam", "aesam", "aelooksam", "friendlysam", "vasso"), (True, True)),
    **dict.fromkeys(("gsam", "gradientnormpenalty", "wsam", "stablesam"), (True, True)),
    "esam": (False, True, True),  # the second is forward only
    **dict.fromkeys(("momentumsam", "randomsam"), (True,)),
}
ADAPTIVE = {"rho": 0.5, "eta": 0.01, "normalize_bias": False, "scope": "element"}


def rule(name: str) -> references.Rule:
    options = OPTIONS[name]
    if name == "asam":
        return references.asam(NAMES, **ADAPTIVE)
    if name == "sam":
        return references.sam(**options)
    if name in ("looksam", "looklayersam"):
        return references.looksam(**options, by_layer=name == "looklayersam")
    policy = references.ae_policy(options["delta"], options["lambda_1"], options["lambda_2"], STEPS, [])
    if name == "aesam":
        return references.aesam(policy, options["rho"])
    return references.reuse(policy, options["rho"], options["alpha"])


def fresh_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return dense().double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = samples(torch.float64)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def check(found: dict[str, Any], expected: list[torch.Tensor]) -> None:
    for value, oracle in zip(found["weights"].values(), expected, strict=True):
        torch.testing.assert_close(value, oracle, rtol=0, atol=1e-12)


def on_the_whole_batch(name: str) -> list[torch.Tensor]:
    model = fresh_model()
    references.train(model, batches(), rule(name), references.sgd(0.1))
    return [p.detach() for p in model.parameters()]


def on_halves(epsilon_of: Callable[[Vector, Vector], Vector], of: slice = slice(None)) -> list[torch.Tensor]:
    """m-sharpness: each process climbs by the gradient of its own half; the sharp gradients are averaged.

    ``of`` are the samples of a half that it climbs by.
    """
    model = fresh_model()
    w = [p.detach() for p in model.parameters()]
    for x, y in batches():
        sharp = []
        for half in ((x[0::2], y[0::2]), (x[1::2], y[1::2])):
            epsilon = epsilon_of(w, references.gradient(model, w, (half[0][of], half[1][of]), {}))
            perturbed = [a + e for a, e in zip(w, epsilon, strict=True)]
            sharp.append(references.gradient(model, perturbed, half, {}))
        w = [a - 0.1 * (s + t) / 2 for a, s, t in zip(w, *sharp, strict=True)]
    return w


@pytest.mark.parametrize("name", ["looksam", "looklayersam", "aesam", "aelooksam"])
def test_what_uses_the_plain_gradient_sees_the_whole_batch(found: Found, name: str) -> None:
    for rank in found("ddp", 2, f"own-{name}"):
        check(rank, on_the_whole_batch(name))


@pytest.mark.parametrize("scenario", ["synchronized", "microbatches"])
@pytest.mark.parametrize("name", ORACLES)
def test_synchronize_is_one_process_on_the_whole_batch(found: Found, name: str, scenario: str) -> None:
    for rank in found("ddp", 2, f"{scenario}-{name}"):
        check(rank, on_the_whole_batch(name))


def test_sam_climbs_by_its_own_half(found: Found) -> None:
    for rank in found("ddp", 2, "own-sam"):
        check(rank, on_halves(lambda w, g: references.pnorm_epsilon(g, 0.1, 2)))


def test_sam_climbs_by_the_first_samples_of_its_own_half(found: Found) -> None:
    for rank in found("ddp", 2, "narrow"):
        check(rank, on_halves(lambda w, g: references.pnorm_epsilon(g, 0.1, 2), slice(2)))


def test_asam_climbs_by_its_own_half(found: Found) -> None:
    for rank in found("ddp", 2, "own-asam"):
        check(rank, on_halves(lambda w, g: references.adaptive_epsilon(w, g, NAMES, **ADAPTIVE)))


@pytest.mark.parametrize(
    ("name", "scenario"), [*((name, "own") for name in SYNCHRONIZED), *((name, "loop") for name in VIEWS)]
)
def test_only_an_ascent_gradient_is_left_unsynchronised(found: Found, name: str, scenario: str) -> None:
    for rank in found("ddp", 2, f"{scenario}-{name}"):
        sharp = rank["sharp"] if scenario == "loop" else [m["sam/applied"] for m in rank["metrics"]]
        passes = [SYNCHRONIZED[name] if s else (True,) for s in sharp]
        if name in ("momentumsam", "randomsam", "esam"):  # no pass at w was on the samples of the displaced one
            passes.insert(sharp.index(1.0) + 1, (True,))  # a look at the first such step takes one
        assert rank["synced"] == [synced for step in passes for synced in step]


@pytest.mark.parametrize("name", KINDS)
def test_synchronize_leaves_no_pass_unsynchronised(found: Found, name: str) -> None:
    for rank in found("ddp", 2, f"synchronized-{name}"):
        assert all(rank["synced"])
