"""SAM(epsilon=): `ρ g / (‖g‖ + epsilon)`, as Composer has it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sam_algos import SAM, PNorm
from tests.cases import distance, make_batches, make_model, train

BATCHES = make_batches(4)


def sam(rho: float, epsilon: float) -> Any:
    """Four steps, written out."""
    model = make_model("mlp").double()
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.05, momentum=0.9)

    def gradient(x: torch.Tensor, y: torch.Tensor) -> None:
        base.zero_grad()
        (model(x) - y).square().reshape(len(x), -1).mean().backward()

    for x, y in [(x.double(), y.double()) for x, y in BATCHES]:
        gradient(x, y)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in params if p.grad is not None))
        moves = [rho * p.grad / (norm + epsilon) for p in params if p.grad is not None]
        for p, e in zip(params, moves, strict=True):
            p.data += e
        gradient(x, y)
        for p, e in zip(params, moves, strict=True):
            p.data -= e
        base.step()
    return model


@pytest.mark.parametrize("epsilon", [1e-12, 0.1, 3.0])
def test_it_is_added_to_the_norm(epsilon: float) -> None:
    model = make_model("mlp").double()
    batches = [(x.double(), y.double()) for x, y in BATCHES]
    train(SAM(rho=0.5, epsilon=epsilon), model, batches)
    assert distance(model, sam(0.5, epsilon)) < 1e-12
    assert epsilon < 0.1 or distance(model, sam(0.5, 0.0)) > 1e-6


def test_without_it_nothing_changes() -> None:
    model, other = make_model("mlp"), make_model("mlp")
    train(SAM(rho=0.5, epsilon=0.0), model, BATCHES)
    train(SAM(rho=0.5), other, BATCHES)
    assert distance(model, other) == 0.0
    assert repr(SAM(epsilon=0.0)) == repr(SAM())
    assert repr(SAM(epsilon=0.5)).endswith("epsilon=0.5)")


REFUSED = [
    (lambda: SAM(epsilon=-1.0), r"SAM\(epsilon=-1.0\): epsilon must be a finite number >= 0"),
    (lambda: SAM(epsilon=0.1, p=3.0), r"SAM\(epsilon=0.1\): epsilon must be 0 with p=3.0, steps=1"),
    (lambda: SAM(epsilon=0.1, steps=2), r"SAM\(epsilon=0.1\): epsilon must be 0 with p=2.0, steps=2"),
    (lambda: SAM(epsilon=0.1, second_order=True), r"cannot be combined with PNorm\(.*epsilon=0.1\)"),
    (lambda: SAM(epsilon=0.1, perturbation=PNorm(0.1)), r"SAM\(epsilon=0.1\): epsilon must be left at its default"),
    (lambda: PNorm(epsilon=0.1, p=3.0), r"PNorm\(epsilon=0.1\): epsilon must be 0 with p=3.0"),
    (lambda: SAM(0.05, 1e-12, 1), r"SAM\(interval=1e-12\): interval must be an integer >= 1"),  # Composer's order
]


@pytest.mark.parametrize(("make", "why"), REFUSED, ids=lambda case: case if isinstance(case, str) else "")
def test_what_it_has_no_meaning_for_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
