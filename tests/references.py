"""Oracles: the methods written out from their equations in float64, sharing nothing with the package.

A rule maps ``(t, w, g, at)`` to the gradient for the base optimizer, ``w`` and ``g`` being lists of tensors
and ``at(epsilon)`` is the gradient of the same mini-batch, with the same random draws, at ``w + epsilon``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Vector = list[Tensor]
At = Callable[[Vector], Vector]
Rule = Callable[[int, Vector, Vector, At], Vector]


def dot(a: Vector, b: Vector) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def pnorm_epsilon(g: Vector, rho: float, p: float) -> Vector:
    """Equation 2 of the SAM paper."""
    if p == 1:  # the limit: all of the radius on the steepest weight
        peak = max(float(x.abs().max()) for x in g)
        return [rho * x.sign() * (x.abs() == peak) for x in g]
    if math.isinf(p):
        return [rho * x.sign() for x in g]
    q = p / (p - 1)
    denominator = sum(float((x.abs() ** q).sum()) for x in g) ** (1 / p)
    return [rho * x.sign() * x.abs() ** (q - 1) / denominator for x in g]


def adaptive_epsilon(
    w: Vector, g: Vector, names: Sequence[str], rho: float, eta: float, normalize_bias: bool, scope: str
) -> Vector:
    """The normalisation operator T of ASAM, its official form: biases have T = 1 unless asked otherwise."""
    scaled = []
    for x, name in zip(w, names, strict=True):
        t = torch.ones_like(x)
        if "weight" in name or normalize_bias:
            t = x.abs() + eta
            if scope == "layer":
                t = torch.full_like(x, math.sqrt(float((x * x).sum())) + eta)
            elif scope == "filter" and x.dim() > 2:
                t = torch.stack([torch.full_like(f, math.sqrt(float((f * f).sum())) + eta) for f in x])
        scaled.append(t)
    length = norm([t * x for t, x in zip(scaled, g, strict=True)])
    return [rho * t * t * x / length for t, x in zip(scaled, g, strict=True)]


def sam(rho: float, p: float = 2, interval: int = 1) -> Rule:
    return lambda t, w, g, at: at(pnorm_epsilon(g, rho, p)) if t % interval == 0 else g


def asam(names: Sequence[str], **options: Any) -> Rule:
    return lambda t, w, g, at: at(adaptive_epsilon(w, g, names, **options))


def ae_threshold(x: float, memory: list[float], c: float, delta: float) -> float:
    """Update ``memory = [mean, variance]`` by ``x``, and return the threshold that ``x`` is held against."""
    memory[0] = delta * memory[0] + (1 - delta) * x
    memory[1] = delta * memory[1] + (1 - delta) * (x - memory[0]) ** 2
    return memory[0] + c * math.sqrt(memory[1])


def ae_policy(delta: float, lambda_1: float, lambda_2: float, total: int, record: list[bool]) -> Callable[..., bool]:
    """AE-SAM's decisions, which it also writes down in ``record``."""
    memory = [0.0, math.exp(-10)]

    def is_sharp(t: int, g: Vector) -> bool:
        x = dot(g, g)
        c = t / total * lambda_1 + (1 - t / total) * lambda_2
        record.append(x >= ae_threshold(x, memory, c, delta))
        return record[-1]

    return is_sharp


def aesam(is_sharp: Callable[..., bool], rho: float) -> Rule:
    return lambda t, w, g, at: at(pnorm_epsilon(g, rho, 2)) if is_sharp(t, g) else g


def reuse(is_sharp: Callable[..., bool], rho: float, alpha: float) -> Rule:
    """LookSAM's use of the orthogonal part, whatever says when it is refreshed."""
    kept: list[Vector] = []

    def rule(t: int, w: Vector, g: Vector, at: At) -> Vector:
        if is_sharp(t, g):
            sharp = at(pnorm_epsilon(g, rho, 2))
            along = dot(sharp, g) / dot(g, g)
            kept[:] = [[s - along * x for s, x in zip(sharp, g, strict=True)]]
            return sharp
        if not kept:
            return g
        length = alpha * norm(g) / norm(kept[0])
        return [x + length * v for x, v in zip(g, kept[0], strict=True)]

    return rule


def looksam(rho: float, k: int, alpha: float) -> Rule:
    return reuse(lambda t, g: t % k == 0, rho, alpha)


def sgd(lr: float, momentum: float = 0, weight_decay: float = 0, nesterov: bool = False) -> Callable[..., Vector]:
    velocity: Vector = []

    def update(w: Vector, g: Vector) -> Vector:
        g = [x + weight_decay * y for x, y in zip(g, w, strict=True)]
        velocity[:] = [momentum * v + x for v, x in zip(velocity, g, strict=True)] if velocity else g
        ahead = [x + momentum * v for x, v in zip(g, velocity, strict=True)] if nesterov else velocity
        return [y - lr * v for y, v in zip(w, ahead, strict=True)]

    return update


def adamw(lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> Callable[..., Vector]:
    first: dict[int, Any] = {}
    second: dict[int, Any] = {}
    t = [0]

    def update(w: Vector, g: Vector) -> Vector:
        t[0] += 1
        new = []
        for i, (y, x) in enumerate(zip(w, g, strict=True)):
            first[i] = betas[0] * first.get(i, 0) + (1 - betas[0]) * x
            second[i] = betas[1] * second.get(i, 0) + (1 - betas[1]) * x * x
            m, v = first[i] / (1 - betas[0] ** t[0]), second[i] / (1 - betas[1] ** t[0])
            new.append(y - lr * weight_decay * y - lr * m / (v.sqrt() + 1e-8))
        return new

    return update


def gradient(model: nn.Module, w: Vector, batch: tuple[Tensor, Tensor], buffers: dict[str, Tensor]) -> Vector:
    names = [name for name, _ in model.named_parameters()]
    leaves = [x.detach().clone().requires_grad_() for x in w]
    x, y = batch
    out = functional_call(model, {**dict(zip(names, leaves, strict=True)), **buffers}, (x,))
    return list(torch.autograd.grad(F.mse_loss(out, y), leaves))


def train(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], rule: Rule, update: Callable[..., Vector]
) -> None:
    """Train ``model``: one pass at ``w`` counts for BatchNorm and the random stream; others do not."""
    w = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(2)
    for t, batch in enumerate(batches):
        before = torch.get_rng_state()
        g = gradient(model, w, batch, {})
        after = torch.get_rng_state()

        def at(epsilon: Vector, w: Vector = w, batch: Any = batch, before: Tensor = before) -> Vector:
            torch.set_rng_state(before)
            copies = {name: b.clone() for name, b in model.named_buffers()}
            return gradient(model, [x + e for x, e in zip(w, epsilon, strict=True)], batch, copies)

        w = update(w, rule(t, w, g, at))
        torch.set_rng_state(after)
    for p, x in zip(model.parameters(), w, strict=True):
        p.data.copy_(x)
