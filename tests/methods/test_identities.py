"""Methods that are the same method must agree to the last bit, whatever layers and optimizer they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from sam_algos import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    METHODS,
    SAM,
    SAMON,
    SSSAM,
    WSAM,
    Adaptive,
    AELookSAM,
    AscentFraction,
    Averaged,
    Bernoulli,
    Cosine,
    Fisher,
    FisherSAM,
    Friendly,
    FriendlySAM,
    GradientNorm,
    GradientNormPenalty,
    Interval,
    Late,
    LateSAM,
    Linear,
    LookSAM,
    Method,
    Mixed,
    Momentum,
    MomentumSAM,
    MostSensitive,
    NormLayers,
    PNorm,
    ProjectedAscent,
    Proportional,
    RandomDirection,
    RandomMask,
    RandomSAM,
    Rescaled,
    Reuse,
    SharpGradient,
    SharpnessAware,
    StableSAM,
    SurrogateGap,
    TargetFraction,
    VaSSO,
    WholeBatch,
)
from tests.cases import distance, each_kind, make_batches, make_model, same, snapshot, train

pytestmark = pytest.mark.once


def _still(name: str, rho: Any) -> Method:
    """A registered method with a radius of zero, acting from the first step on."""
    return METHODS[name](rho=rho, **({"start": 0.0} if name == "latesam" else {}))  # pyright: ignore[reportCallIssue]


ALWAYS = {"lambda_1": -1e9, "lambda_2": -1e9}
NEVER = {"lambda_1": 1e9, "lambda_2": 1e9}

IDENTITIES: dict[str, tuple[Method | None, Method | None]] = {
    **{f"{name}(rho=0) is its base": (_still(name, 0.0), None) for name in METHODS},
    **{
        f"{name}, {rho!r} is its base": (_still(name, rho), None)
        for name, rho in (
            *(("sam", rho) for rho in (Linear(0.0, 0.0), Cosine(0.0, 0.0), Proportional(0.0))),
            *((name, Linear(0.0, 0.0)) for name in ("aesam", "looksam", "gsam", "momentumsam")),
        )
    },
    **{
        f"{part.__name__}(rho=0) is its base": (SharpnessAware(perturbation=part(rho=0.0)), None)
        for part in (PNorm, RandomMask, Momentum)
    },
    "SAM(rho=0) with all that costs a pass": (SAM(rho=0.0, steps=3), None),
    "SAM(rho=0) with its second-order term": (SAM(rho=0.0, second_order=True), None),
    "SAM(rho=0) in groups": (SAM(rho=0.0, m=2), None),
    "SAM(rho=0) with a narrow ascent": (SAM(rho=0.0, ascent_fraction=0.5), None),
    "GSAM(rho=0, rho_min=0)": (GSAM(rho=0.0, rho_min=0.0), None),
    "SharpnessAware() is SAM": (SharpnessAware(), SAM()),
    "AE-SAM that is always sharp is SAM": (AESAM(rho=0.1, **ALWAYS), SAM(rho=0.1)),
    "LookSAM that never reuses is SAM": (LookSAM(rho=0.1, k=1), SAM(rho=0.1)),
    "AE-LookSAM that is always sharp is SAM": (AELookSAM(rho=0.1, **ALWAYS), SAM(rho=0.1)),
    "LookSAM(alpha=0) is SAM at intervals": (LookSAM(rho=0.1, k=3, alpha=0.0), SAM(rho=0.1, interval=3)),
    "AE-LookSAM(alpha=0) is AE-SAM": (
        AELookSAM(alpha=0.0, delta=0.8, lambda_1=-0.5, lambda_2=0.5),
        AESAM(delta=0.8, lambda_1=-0.5, lambda_2=0.5),
    ),
    "SS-SAM that is always sharp is SAM": (SSSAM(rho=0.1, probability=1.0), SAM(rho=0.1)),
    **{
        f"SS-SAM with a {schedule} schedule that stands still": (
            SSSAM(schedule=schedule, start=0.3, end=0.3, seed=2),
            SSSAM(probability=0.3, seed=2),
        )
        for schedule in ("piecewise", "linear", "trigonometric")
    },
    "SS-SAM that is never sharp is its base": (SSSAM(probability=0.0), None),
    "AE-SAM that is never sharp is its base": (AESAM(**NEVER), None),
    "AE-LookSAM that is never sharp is its base": (AELookSAM(**NEVER), None),
    "AE-SAM on all steps is SAM": (AESAM(rho=0.1, target_fraction=1), SAM(rho=0.1)),
    "AE-LookSAM on all steps is SAM": (AELookSAM(rho=0.1, target_fraction=1.0), SAM(rho=0.1)),
    "AE-SAM on no step is its base": (AESAM(target_fraction=0), None),
    "AE-LookSAM on no step is its base": (AELookSAM(target_fraction=0.0), None),
    "SAM with one ascent step is SAM": (SAM(rho=0.1, steps=1), SAM(rho=0.1)),
    "one projected step is SAM's": (SharpnessAware(perturbation=ProjectedAscent(0.1, steps=1)), SAM(rho=0.1)),
    "an ascent on the whole batch is SAM": (SAM(rho=0.1, ascent_fraction=1), SAM(rho=0.1)),
    "the whole batch as a choice of samples": (SharpnessAware(samples=WholeBatch()), SAM()),
    "all of the first samples": (SharpnessAware(samples=AscentFraction(1.0)), SAM()),
    "Friendly SAM that takes nothing away is SAM": (FriendlySAM(rho=0.1, sigma=0.0), SAM(rho=0.1)),
    "GSAM that leaves the gap alone is SAM": (GSAM(rho=0.1, alpha=0.0), SAM(rho=0.1)),
    "a penalty of the sharp gradient alone is SAM": (GradientNormPenalty(rho=0.1, alpha=1.0), SAM(rho=0.1)),
    "WSAM with equal weights is SAM": (WSAM(rho=0.1, gamma=0.5), SAM(rho=0.1)),
    "WSAM is a penalty": (WSAM(gamma=0.75), GradientNormPenalty(alpha=3.0)),
    "late SAM from the start is SAM": (LateSAM(rho=0.1, start=0.0), SAM(rho=0.1)),
    "late SAM that never comes is its base": (LateSAM(start=1.0), None),
    "VaSSO that forgets is SAM": (VaSSO(rho=0.1, theta=1.0), SAM(rho=0.1)),
    "VaSSO that forgets is Friendly SAM that takes nothing away": (VaSSO(theta=1.0), FriendlySAM(sigma=0.0)),
    "ESAM with all weights and samples is SAM": (ESAM(rho=0.1, beta=1.0, gamma=1.0), SAM(rho=0.1)),
    "the most sensitive of all samples": (
        SharpnessAware(Interval(), RandomMask(0.1, 1.0), SharpGradient(), MostSensitive(1.0)),
        SAM(rho=0.1),
    ),
    "p = 2 as an integer": (SAM(p=2), SAM(p=2.0)),
    "SAM from its parts": (SharpnessAware(Interval(2), PNorm(0.1, 3.0), SharpGradient()), SAM(0.1, 2, 3.0)),
    "ASAM from its parts": (SharpnessAware(perturbation=Adaptive(scope="layer")), ASAM(scope="layer")),
    "LookSAM from its parts": (SharpnessAware(Interval(5), PNorm(), Reuse()), LookSAM()),
    "AE-SAM from its parts": (SharpnessAware(GradientNorm()), AESAM()),
    "a target fraction from its part": (
        SharpnessAware(TargetFraction(0.3, 0.8)),
        AESAM(delta=0.8, target_fraction=0.3),
    ),
    "AE-LookSAM from its parts": (
        SharpnessAware(GradientNorm(lambda_1=0.0, lambda_2=2.0), descent=Reuse()),
        AELookSAM(),
    ),
    "SS-SAM from its parts": (SharpnessAware(Bernoulli(0.3, 1)), SSSAM(probability=0.3, seed=1)),
    "SAM with two steps from its parts": (SharpnessAware(perturbation=ProjectedAscent(0.1)), SAM(rho=0.1, steps=2)),
    "Friendly SAM from its parts": (SharpnessAware(perturbation=Friendly()), FriendlySAM()),
    "Momentum-SAM from its parts": (SharpnessAware(perturbation=Momentum(0.5)), MomentumSAM(rho=0.5)),
    "SAM-ON from its parts": (SharpnessAware(perturbation=NormLayers(0.3)), SAMON(rho=0.3)),
    "ESAM from its parts": (
        SharpnessAware(perturbation=RandomMask(0.1), samples=MostSensitive(0.4)),
        ESAM(rho=0.1, gamma=0.4),
    ),
    "AE-SAM that descends as LookSAM": (
        AESAM(0.1, lambda_1=0.0, lambda_2=2.0, descent=Reuse(0.2)),
        AELookSAM(0.1, alpha=0.2),
    ),
    "AE-LookSAM at intervals is LookSAM": (AELookSAM(policy=Interval(3)), LookSAM(k=3)),
    "LookSAM where the gradient is large": (LookSAM(policy=GradientNorm(lambda_1=0.0, lambda_2=2.0)), AELookSAM()),
    "an adaptive SAM is ASAM": (SAM(perturbation=Adaptive(0.5)), ASAM(rho=0.5)),
    "the parts that it has anyway": (
        SAM(policy=Interval(1), perturbation=PNorm(), descent=SharpGradient()),
        SAM(),
    ),
    "a part in place of another that was given": (
        SAM(interval=2, perturbation=Adaptive(), descent=Reuse(0.2)),
        SharpnessAware(Interval(2), Adaptive(), Reuse(0.2)),
    ),
    "GSAM whose radius stays": (GSAM(rho=0.1, rho_min=0.1), GSAM(rho=0.1)),
    "GSAM whose radius follows the learning rate": (
        GSAM(rho=0.1, rho_min=0.02),
        SharpnessAware(perturbation=PNorm(Proportional(0.1, 0.02)), descent=SurrogateGap()),
    ),
    "GSAM from its parts": (SharpnessAware(descent=SurrogateGap(0.3)), GSAM(alpha=0.3)),
    "a penalty from its parts": (SharpnessAware(descent=Mixed(0.3)), GradientNormPenalty(alpha=0.3)),
    "StableSAM from its parts": (SharpnessAware(descent=Rescaled()), StableSAM()),
    "late SAM from its parts": (SharpnessAware(Late(0.5)), LateSAM(start=0.5)),
    "VaSSO from its parts": (SharpnessAware(perturbation=Averaged(0.1, 0.3)), VaSSO(rho=0.1, theta=0.3)),
    "Random SAM from its parts": (SharpnessAware(perturbation=RandomDirection(0.1, 3)), RandomSAM(rho=0.1, seed=3)),
    "Fisher SAM from its parts": (SharpnessAware(perturbation=Fisher(0.1, 3.0)), FisherSAM(rho=0.1, eta=3.0)),
    "an ascent fraction from its part": (
        SharpnessAware(Interval(2), samples=AscentFraction(0.5)),
        SAM(interval=2, ascent_fraction=0.5),
    ),
}

DIFFERENCES: dict[str, tuple[Method | None, Method | None]] = {
    "SAM is not its base": (SAM(), None),
    "an interval": (SAM(), SAM(interval=2)),
    "the order of the norm": (SAM(), SAM(p=3.0)),
    "the schedule of the coin": (SSSAM(schedule="linear"), SSSAM()),
    "which schedule": (SSSAM(schedule="linear"), SSSAM(schedule="trigonometric")),
    "the seed of the coin": (SSSAM(seed=0), SSSAM(seed=1)),
    "reuse": (LookSAM(k=3), SAM(interval=3)),
    "the adaptive ball": (ASAM(rho=0.05), SAM(rho=0.05)),
    "the number of ascent steps": (SAM(steps=2), SAM(steps=3)),
    "a second ascent step": (SAM(steps=2), SAM()),
    "the fraction of the ascent": (SAM(ascent_fraction=0.5), SAM()),
    "friendliness": (FriendlySAM(), SAM()),
    "how friendly": (FriendlySAM(sigma=0.5), FriendlySAM()),
    "the memory of the mean": (FriendlySAM(lmbda=0.5), FriendlySAM()),
    "the surrogate gap": (GSAM(), SAM()),
    "how much of the gap": (GSAM(alpha=0.2), GSAM()),
    "the plain gradient's share": (GradientNormPenalty(), SAM()),
    "the sharpness's weight": (WSAM(), SAM()),
    "a plain gradient's length": (StableSAM(), SAM()),
    "late": (LateSAM(), SAM()),
    "how late": (LateSAM(start=0.5), LateSAM()),
    "late SAM is not its base": (LateSAM(), None),
    "an average": (VaSSO(), SAM()),
    "how quick an average": (VaSSO(theta=0.5), VaSSO()),
    "a random direction": (RandomSAM(rho=0.5), SAM(rho=0.5)),
    "a random direction is not the base": (RandomSAM(rho=0.5), None),
    "the seed of the direction": (RandomSAM(rho=0.5, seed=1), RandomSAM(rho=0.5)),
    "the Fisher information": (FisherSAM(), SAM()),
    "how much of the Fisher information": (FisherSAM(eta=5.0), FisherSAM()),
    "momentum": (MomentumSAM(rho=0.05), SAM()),
    "Momentum-SAM is not its base": (MomentumSAM(), None),
    "its radius": (MomentumSAM(rho=1.0), MomentumSAM()),
    "normalisation layers alone": (SAMON(), SAM()),
    "a mask": (ESAM(gamma=1.0), SAM()),
    "an adaptive ball where the gradient is large": (AESAM(perturbation=Adaptive()), AESAM()),
    "an adaptive ball that is reused": (LookSAM(perturbation=Adaptive()), ASAM()),
    "the size of the mask": (ESAM(beta=0.5), ESAM(beta=0.9)),
    "the seed of the mask": (ESAM(seed=1), ESAM()),
    "the choice of samples": (ESAM(beta=1.0), SAM()),
    "how many samples": (ESAM(gamma=0.3), ESAM()),
    "the end of the schedule": (AESAM(lambda_1=-1.0), AESAM(lambda_1=-4.0)),
    "the beginning of the schedule": (AESAM(lambda_2=1.0), AESAM(lambda_2=-4.0)),
}


def trained(method: Method | None, base: str, model: str) -> tuple:
    trainee = make_model(model)
    optimizer = train(method, trainee, make_batches(20), base)
    return trainee, optimizer


# Where something is kept in the base optimizer's state or read from it, and one where nothing is.
ON_ADAMW = (
    "sam(rho=0) is its base",
    "looksam(rho=0) is its base",
    "momentumsam(rho=0) is its base",
    "AE-LookSAM(alpha=0) is AE-SAM",
    "LookSAM from its parts",
    "Friendly SAM from its parts",
    "VaSSO from its parts",
    "Momentum-SAM from its parts",
)
# Between them these two have all layers of `MODELS`.
CASES = [(name, "momentum", model) for name in IDENTITIES for model in ("dropout", "convolution")]
CASES += [(name, "adamw", "dropout") for name in ON_ADAMW]


@pytest.mark.parametrize(("name", "base", "model"), CASES)
def test_are_the_same_to_the_last_bit(name: str, base: str, model: str) -> None:
    (a, _), (b, _) = (trained(method, base, model) for method in IDENTITIES[name])
    assert distance(a, b) == 0.0


@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_where_all_layers_normalise_sam_on_is_sam(base: str) -> None:
    ends = []
    for method in (SAMON(rho=0.3), SAM(rho=0.3), None):
        model = nn.Sequential(nn.LayerNorm(6), nn.Tanh(), nn.BatchNorm1d(6), nn.Flatten(), nn.AvgPool1d(2))
        train(method, model, make_batches(20), base)
        ends.append(model)
    assert distance(ends[0], ends[1]) == 0.0
    assert distance(ends[0], ends[2]) > 1e-6


@pytest.mark.parametrize("name", DIFFERENCES)
def test_are_not_the_same(name: str) -> None:
    """Otherwise the comparison above could not tell methods apart."""
    (a, _), (b, _) = (trained(method, "momentum", "mlp") for method in DIFFERENCES[name])
    assert distance(a, b) > 1e-6


@each_kind
@pytest.mark.parametrize("option", [{"synchronize": True}, {"nonfinite": "skip"}], ids=str)
def test_synchronize_and_nonfinite_change_nothing_in_a_sound_run(method: Method, option: dict) -> None:
    plain, guarded = (trained(m, "momentum", "batchnorm") for m in (method, replace(method, **option)))
    assert same(snapshot(*plain), snapshot(*guarded))


@each_kind
def test_training_is_repeatable(method: Method) -> None:
    once, again = (trained(method, "adamw", "dropout") for _ in range(2))
    assert same(snapshot(*once), snapshot(*again))
