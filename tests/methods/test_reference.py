"""Every method against its equations, written out independently in `tests.references`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sam_algos import AESAM, ASAM, SAM, AELookSAM, LookSAM, Method
from tests import references
from tests.cases import MODELS, distance, make_batches, make_model
from tests.references import Rule

STEPS = 30

BASES: dict[str, tuple[type[torch.optim.Optimizer], Callable[..., Any], dict[str, Any], float]] = {
    "momentum": (torch.optim.SGD, references.sgd, {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-2}, 1e-9),
    "nesterov": (torch.optim.SGD, references.sgd, {"lr": 0.03, "momentum": 0.9, "nesterov": True}, 1e-9),
    "adamw": (torch.optim.AdamW, references.adamw, {"lr": 0.01, "weight_decay": 0.05}, 1e-6),
}


def asam(**options: Any) -> tuple[Method, Callable[..., Rule]]:
    full = {"rho": 0.5, "eta": 0.01, "normalize_bias": False, "scope": "element"} | options
    return ASAM(**options), lambda names, record: references.asam(names, **full)


def sam(**options: Any) -> tuple[Method, Callable[..., Rule]]:
    return SAM(**options), lambda names, record: references.sam(**{"rho": 0.05, **options})


def adaptive(cls: type[Method], rule: Callable[..., Rule], **options: Any) -> tuple[Method, Callable[..., Rule]]:
    policy = {key: options[key] for key in ("delta", "lambda_1", "lambda_2")}
    rest = {key: value for key, value in options.items() if key not in policy}

    def oracle(names: Sequence[str], record: list[bool]) -> Rule:
        return rule(references.ae_policy(**policy, total=STEPS, record=record), **rest)

    return cls(**options), oracle


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
    "looksam": (LookSAM(rho=0.1, k=4, alpha=0.3), lambda names, record: references.looksam(0.1, 4, 0.3)),
    "aesam": adaptive(AESAM, references.aesam, rho=0.1, delta=0.9, lambda_1=-1.0, lambda_2=1.0),
    "aesam, other schedule": adaptive(AESAM, references.aesam, rho=0.1, delta=0.6, lambda_1=0.5, lambda_2=-0.5),
    "aelooksam": adaptive(AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.9, lambda_1=0.0, lambda_2=1.0),
    "aelooksam, plain until sharp": adaptive(
        AELookSAM, references.reuse, rho=0.1, alpha=0.2, delta=0.5, lambda_1=-2.0, lambda_2=1.5
    ),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", METHODS)
def test_agrees_with_its_equations(name: str, base: str, model: str) -> None:
    method, oracle = METHODS[name]
    optimizer_class, update, options, tolerance = BASES[base]
    ours, theirs = (make_model(model, torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    expected: list[bool] = []
    names = [name for name, _ in theirs.named_parameters()]
    references.train(theirs, batches, oracle(names, expected), update(**options))
    decided = train(method, ours, optimizer_class(ours.parameters(), **options), batches)
    # The running statistics are part of the comparison: one pass at w counts, the other leaves no trace.
    assert distance(ours, theirs) <= tolerance
    if expected:
        assert decided == expected
        assert 0 < sum(decided) < STEPS


def train(method: Method, model: torch.nn.Module, base: torch.optim.Optimizer, batches: Sequence[Any]) -> list[bool]:
    optimizer = method.wrap(base, model=model, total_steps=len(batches))
    torch.manual_seed(2)
    decided = []
    for x, y in batches:

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        decided.append(bool(optimizer.metrics["sam/applied"]))
    return decided


def test_the_oracle_is_not_the_plain_optimizer() -> None:
    """The agreement above means something only if the perturbation matters at its tolerance."""
    plain, sharp = (make_model("mlp", torch.float64) for _ in range(2))
    batches = make_batches(STEPS, torch.float64)
    references.train(plain, batches, lambda t, w, g, at: g, references.sgd(0.05))
    references.train(sharp, batches, references.sam(0.05), references.sgd(0.05))
    assert distance(plain, sharp) > 1e-3
