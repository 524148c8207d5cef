"""Steps as parts see them, made of given parameters and gradients; and what hypothesis draws them from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_algos import (
    Descent,
    Interval,
    Parts,
    PNorm,
    SharpGradient,
    Step,
)
from sam_algos.core.objective.context import Context
from sam_algos.core.objective.evaluation import Evaluation
from sam_algos.core.objective.radii import OwnRadii
from sam_algos.core.passes.closures import ClosurePasses
from sam_algos.core.tensors.displacement import Displacement
from sam_algos.core.tensors.parameters import Name

# Derandomised: the examples are the same on every machine, and a failure on one is a failure on all.
checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4).filter(
    lambda found: any(math.prod(shape) for shape in found)
)
seeds = st.integers(0, 10_000)
radii = st.floats(1e-3, 10)
sizes = st.floats(-12, 12).map(lambda e: 10**e)


def observed(
    params: list[Tensor],
    grads: list[Tensor],
    names: Sequence[str] | None = None,
    *,
    index: int = 0,
    total: int | None = None,
    descent: Descent = SharpGradient(),  # noqa: B008
    memory: Any = None,
) -> Step:
    """A step whose only pass leaves ``grads``."""

    params = [p.detach().requires_grad_() for p in params]

    def closure() -> float:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return 0.0

    called = [Name(name, None) for name in names or ["weight"] * len(params)]
    base = torch.optim.SGD([*params, torch.zeros(0)], lr=0.1)
    context = Context(
        passes=ClosurePasses(nn.Module(), total),
        needs=Parts(Interval(), PNorm(), descent).needs(),
        names=lambda asked: [called[next(i for i, p in enumerate(params) if p is q)] for q in asked],  # pyright: ignore
        displacement=Displacement(),
        radii=OwnRadii(base),
        private=False,
    )
    evaluation = Evaluation(context, base, closure, index)
    evaluation.radius = 0.05
    return Step(evaluation, memory or {})


def draw(shapes: list[tuple[int, ...]], seed: int, size: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    new = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [new(s) for s in shapes], [size * new(s) for s in shapes]
