"""Every method against its equations, written out independently in `tests.references`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from sam_algos import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    SAM,
    SAMON,
    WSAM,
    AELookSAM,
    FisherSAM,
    FriendlySAM,
    GradientNormPenalty,
    LateSAM,
    LookLayerSAM,
    LookSAM,
    Method,
    MomentumSAM,
    RandomSAM,
    StableSAM,
    VaSSO,
)
from tests import references
from tests.cases import MODELS, Closure, distance, make_batches, make_model
from tests.references import Rule

STEPS = 30
SEED = 3  # one that never masks all but a bias before BatchNorm, whose gradient is nothing but rounding errors

BASES: dict[str, tuple[type[torch.optim.Optimizer], Callable[..., Any], dict[str, Any], float]] = {
    "momentum": (torch.optim.SGD, references.sgd, {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-2}, 1e-9),
    "nesterov": (torch.optim.SGD, references.sgd, {"lr": 0.03, "momentum": 0.9, "nesterov": True}, 1e-9),
    "adamw": (torch.optim.AdamW, references.adamw, {"lr": 0.01, "weight_decay": 0.05}, 1e-6),
}


def asam(**options: Any) -> tuple[Method, Callable[..., Rule]]:
    full = {"rho": 0.5, "eta": 0.01, "normalize_bias": False, "scope": "element"} | options
    return ASAM(**options), lambda model, record: references.asam(list(dict(model.named_parameters())), **full)


def sam(**options: Any) -> tuple[Method, Callable[..., Rule]]:
    return SAM(**options), lambda model, record: references.sam(**{"rho": 0.05, **options})


def adaptive(cls: type[Method], rule: Callable[..., Rule], **options: Any) -> tuple[Method, Callable[..., Rule]]:
    policy = {key: options[key] for key in ("delta", "lambda_1", "lambda_2", "target_fraction") if key in options}
    rest = {key: value for key, value in options.items() if key not in policy}

    def oracle(model: nn.Module, record: list[bool]) -> Rule:
        if "target_fraction" in policy:
            target = references.target_policy(policy["target_fraction"], policy["delta"], record)
            return rule(target, **rest)
        return rule(references.ae_policy(**policy, total=STEPS, record=record), **rest)

    return cls(**options), oracle


def alone(cls: type[Method], rule: Callable[..., Rule], **options: Any) -> tuple[Method, Callable[..., Rule]]:
    return cls(**options), lambda model, record: rule(**options)


METHODS: dict[str, tuple[Method, Callable[..., Rule]]] = {
    "sam": sam(),
    "sam, large rho": sam(rho=0.5),
    "sam, p=1": sam(rho=0.2, p=1.0),
    "sam, p=1.5": sam(rho=0.1, p=1.5),
    "sam, p=3": sam(rho=0.1, p=3.0),
    "sam, p=inf": sam(rho=0.02, p=math.inf),
    "sam, interval=3": sam(rho=0.1, interval=3),
    "asam": asam(),
    "asam, filter": asam(scope="filter", rho=0.2),
    "asam, layer": asam(scope="layer", rho=0.1, eta=0.0),
    "asam, biases too": asam(normalize_bias=True, eta=0.0, rho=1.0),
    "asam, filter, biases too": asam(scope="filter", normalize_bias=True, eta=0.1),
    "sam, steps=2": alone(SAM, references.projected, rho=0.1, steps=2),
    "sam, steps=3": alone(SAM, references.projected, rho=0.3, steps=3),
    "looksam": alone(LookSAM, references.looksam, rho=0.1, k=4, alpha=0.3),
    "looklayersam": alone(LookLayerSAM, partial(references.looksam, by_layer=True), rho=0.1, k=4, alpha=0.3),
    "samon": (SAMON(rho=0.3), lambda model, record: references.samon(model, 0.3)),
    "friendlysam": alone(FriendlySAM, references.friendly, rho=0.1, sigma=1.0, lmbda=0.9),
    "friendlysam, half": alone(FriendlySAM, references.friendly, rho=0.2, sigma=0.5, lmbda=0.6),
    "gsam": alone(GSAM, references.gsam, rho=0.1, alpha=0.4),
    "gsam, large alpha": alone(GSAM, references.gsam, rho=0.3, alpha=2.0),
    "gradientnormpenalty": alone(GradientNormPenalty, references.penalty, rho=0.1, alpha=0.8),
    "gradientnormpenalty, beyond sam": alone(GradientNormPenalty, references.penalty, rho=0.1, alpha=1.5),
    "wsam": alone(WSAM, references.wsam, rho=0.05, gamma=0.8),
    "wsam, less than sam": alone(WSAM, references.wsam, rho=0.2, gamma=0.3),
    "stablesam": alone(StableSAM, references.stable, rho=0.2),
    "latesam": (LateSAM(rho=0.1, start=0.7), lambda model, record: references.late(0.1, 0.7, STEPS)),
    "vasso": alone(VaSSO, references.averaged, rho=0.1, theta=0.2),
    "vasso, quick": alone(VaSSO, references.averaged, rho=0.3, theta=0.7),
    "fishersam": alone(FisherSAM, references.fisher, rho=0.1, eta=1.0),
    "fishersam, large eta": alone(FisherSAM, references.fisher, rho=0.1, eta=50.0),
    "esam": alone(ESAM, references.esam, rho=0.1, beta=0.6, gamma=0.5, seed=SEED),
    "esam, a few samples": alone(ESAM, references.esam, rho=0.2, beta=1.0, gamma=0.3, seed=1),
    "esam, hardly any weights": alone(ESAM, references.esam, rho=0.05, beta=0.2, gamma=1.0, seed=2),
    "aesam": adaptive(AESAM, references.aesam, rho=0.1, delta=0.9, lambda_1=-1.0, lambda_2=1.0),
    "aesam, other schedule": adaptive(AESAM, references.aesam, rho=0.1, delta=0.6, lambda_1=0.5, lambda_2=-0.5),
    "aesam, target": adaptive(AESAM, references.aesam, rho=0.1, delta=0.9, target_fraction=0.4),
    "aelooksam, target": adaptive(AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.8, target_fraction=0.3),
    "aelooksam": adaptive(AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.9, lambda_1=0.0, lambda_2=1.0),
    "aelooksam, a direction that grows old": adaptive(
        AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.9, lambda_1=0.0, lambda_2=1.0, max_age=2
    ),
    "aelooksam, plain until sharp": adaptive(
        AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.5, lambda_1=-2.0, lambda_2=1.5
    ),
}


each_model = pytest.mark.parametrize("model", MODELS)
# The base optimizer matters where its state holds what a method keeps, or where a method reads it.
ON_OTHER_BASES = ("sam", "looksam", "friendlysam", "aelooksam")
CASES = [(name, "momentum", model) for name in METHODS for model in MODELS]
CASES += [(name, base, "batchnorm") for name in ON_OTHER_BASES for base in ("nesterov", "adamw")]


@pytest.mark.parametrize(("name", "base", "model"), CASES)
def test_agrees_with_its_equations(name: str, base: str, model: str) -> None:
    method, oracle = METHODS[name]
    optimizer_class, update, options, tolerance = BASES[base]
    ours, theirs = (make_model(model, torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    expected: list[bool] = []
    references.train(theirs, batches, oracle(theirs, expected), update(**options))
    decided = train(method, ours, optimizer_class(ours.parameters(), **options), batches)
    # The running statistics are part of the comparison: one pass at w counts, the other leaves no trace.
    assert distance(ours, theirs) <= tolerance
    if expected:
        assert decided == expected
        assert 0 < sum(decided) < STEPS


@each_model
@pytest.mark.parametrize(("rho", "base"), [(0.05, "momentum"), *((0.5, base) for base in BASES)])
def test_momentum_sam_agrees_with_its_equation(rho: float, base: str, model: str) -> None:
    """Its only pass is at the displaced weights, where BatchNorm's statistics are gathered too."""
    optimizer_class, update, options, tolerance = BASES[base]
    ours, theirs = (make_model(model, torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    velocity: references.Vector = []
    ahead = partial(references.against, velocity, rho)
    references.train(theirs, batches, lambda t, w, g, at: g, update(**options, kept=velocity), ahead)
    decided = train(MomentumSAM(rho=rho), ours, optimizer_class(ours.parameters(), **options), batches)
    assert distance(ours, theirs) <= tolerance
    assert decided == [False] + [True] * (STEPS - 1)


@each_model
def test_random_sam_agrees_with_its_equation(model: str, base: str = "momentum") -> None:
    optimizer_class, update, options, tolerance = BASES[base]
    ours, theirs = (make_model(model, torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    t = count()
    ahead = lambda: references.random_direction(list(theirs.parameters()), 0.3, 5, next(t))  # noqa: E731
    references.train(theirs, batches, lambda t, w, g, at: g, update(**options), ahead)
    decided = train(RandomSAM(rho=0.3, seed=5), ours, optimizer_class(ours.parameters(), **options), batches)
    assert distance(ours, theirs) <= tolerance
    assert decided == [True] * STEPS


def train(method: Method, model: nn.Module, base: torch.optim.Optimizer, batches: Sequence[Any]) -> list[bool]:
    optimizer = method.wrap(base, model=model, total_steps=len(batches))
    torch.manual_seed(2)
    decided = []
    for batch in batches:
        optimizer.step(Closure(model, optimizer, batch))
        decided.append(bool(optimizer.metrics["sam/applied"]))
    return decided


def test_the_oracle_is_not_the_plain_optimizer() -> None:
    """The agreement above means something only if the perturbation matters at its tolerance."""
    plain, sharp = (make_model("mlp", torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    references.train(plain, batches, lambda t, w, g, at: g, references.sgd(0.05))
    references.train(sharp, batches, references.sam(0.05), references.sgd(0.05))
    assert distance(plain, sharp) > 1e-3
