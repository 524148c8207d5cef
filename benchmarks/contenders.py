"""The implementations to compare.

All contenders of a workload train the same model. They share one base optimizer where possible, so that no contender
finds its momentum in a colder cache than in real training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.names import users_name
from benchmarks.summary import AGAIN, FLOOR, FUSED, MOMENTUM_BY_HAND, PLAIN, SAM_BY_HAND
from sam_algos import METHODS

POPULAR = "pytorch_optimizer"
_COMPOSER = "composer.algorithms.sam.sam"

_STEPS = 10**9  # total_steps for the bare loop

_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # by the label in the name's brackets
    "sam": {
        **{f"interval={k}": {"interval": k} for k in (1, 2, 5, 10)},
        **{f"ascent_fraction={share:g}": {"ascent_fraction": share} for share in (0.25, 0.5)},
        "synchronize=True": {"synchronize": True},
    },
    "sssam": {f"probability={p:g}": {"probability": p} for p in (0.0, 0.25, 0.5, 0.75, 1.0)},
    "aesam": {
        f"lambda={label}": {"lambda_1": c, "lambda_2": c}
        for label, c in {"-inf": -1e9, "-1": -1.0, "-0.5": -0.5, "0": 0.0, "1": 1.0, "inf": 1e9}.items()
    },
    "looksam": {f"k={k}": {"k": k} for k in (1, 2, 5, 10)},
    "aelooksam": {"lambda=1": {"lambda_1": 1.0, "lambda_2": 1.0}},
}
_ESSENTIAL = (
    "interval=1", "ascent_fraction=0.25", "synchronize=True", "lambda=-inf", "lambda=inf", "k=1", "k=5",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One implementation with its settings.

    Args:
        name: Its name in tables.
        line: The line that it belongs to in the plot, by display name. Contenders of one method share a line.
        package: The package that it comes from.
        wrap: Makes the optimizer from the base optimizer and the model.
        method: The algorithm that wraps the optimizer in the Trainer; if None, `wrap` is used there too.
        modes: The loops in which it works and is informative; all if empty.
        essential: Whether to compare it on large models too.
    """

    name: str
    line: str
    package: str
    wrap: Callable[[Optimizer, nn.Module], Any]
    method: Any = None
    modes: tuple[str, ...] = ()
    essential: bool = False

    @property
    def reads_losses(self) -> bool:
        """Whether its step asks the closure for the loss of each sample."""
        composition = getattr(self.method, "composition", lambda: None)()
        return bool(getattr(getattr(composition, "samples", None), "reads_losses", False))


def contenders(base: Optimizer, *, mode: str, essential: bool) -> dict[str, Contender]:
    """All contenders by name, the baselines first.

    Args:
        base: The base optimizer. If it cannot be fused, the fused baseline is left out.
        mode: The loop, one of `benchmarks.loops.WHERE`.
        essential: Leave out the variants that only fill the line between no and all sharp steps.
    """
    found = [*_baselines(base), *_ours(), *_by_hand(base), *_peers()]
    return {c.name: c for c in found if (c.essential or not essential) and (not c.modes or mode in c.modes)}


def _baselines(base: Optimizer) -> Iterator[Contender]:
    plain, floor = (lambda base, _: base), lambda base, _: Floor(base)
    quick = {FUSED: lambda base, _: fused(base)} if fused(base) is not None else {}
    wraps = {PLAIN: plain, AGAIN: plain, **quick, FLOOR: floor}
    for name, wrap in wraps.items():
        yield Contender(name, name, "torch", wrap, essential=True)


def _ours() -> Iterator[Contender]:
    for key, cls in METHODS.items():
        variants = _VARIANTS.get(key, {"": {}})  # a new method is measured with its defaults
        for label, options in variants.items():
            method, line, option = cls(**options), users_name(key, cls.__name__), label.partition("=")[0]
            yield Contender(
                f"{cls.__name__}({label})",
                f"{line}, {option}" if option in ("ascent_fraction", "synchronize") else line,
                "sam_algos",
                lambda base, model, method=method: method.wrap(base, model=model, total_steps=_STEPS),
                method,
                modes=("ddp",) if option == "synchronize" else (),
                essential=label in _ESSENTIAL or len(variants) == 1,
            )


def _by_hand(base: Optimizer) -> Iterator[Contender]:
    """Minimal implementations of the equations, as a user might write them in a training loop."""
    steps = {SAM_BY_HAND: SAMByHand, **({MOMENTUM_BY_HAND: MomentumByHand} if base.defaults.get("momentum") else {})}
    for name, step in steps.items():
        yield Contender(name, name, "by hand", step, modes=("bare",), essential=True)


def _peers() -> Iterator[Contender]:
    for k in (1, 2, 10) if find_spec("composer") else ():
        wrap = lambda base, _, k=k: import_module(_COMPOSER).SAMOptimizer(base, interval=k)  # noqa: E731
        yield Contender(f"Composer's SAM(interval={k})", "Composer's SAM", "Composer", wrap, essential=k == 1)
    for k in (None, 1, 5) if find_spec(POPULAR) else ():
        line = f"{POPULAR}'s {'LookSAM' if k else 'SAM'}"
        name, options = (f"{line}(k={k})", {"k": k, "alpha": 0.1}) if k else (line, {})
        wrap = partial(FirstPassOutside, "LookSAM" if k else "SAM", options)
        yield Contender(name, line, POPULAR, wrap, modes=("bare", "ddp"), essential=k != 5)


def fused(base: Optimizer) -> Optimizer | None:
    """The same optimizer with ``fused=True`` and its own state; None if it cannot be fused."""
    if "fused" not in inspect.signature(type(base)).parameters:
        return None
    try:
        return alike(base, [{"params": group["params"]} for group in base.param_groups], foreach=None, fused=True)
    except (TypeError, ValueError, RuntimeError):  # not on this device, or not with these options
        return None


def alike(base: Optimizer, params: Any, **changes: Any) -> Optimizer:
    """An optimizer of the same class with the same options: the ``defaults`` that its constructor takes."""
    taken = inspect.signature(type(base)).parameters
    options = {key: value for key, value in {**base.defaults, **changes}.items() if key in taken}
    return type(base)(params, **options)


class Delegate:
    """Stands in for an optimizer, and delegates every attribute that is not defined here."""

    _step_supports_amp_closure = True

    def __init__(self, optimizer: Any) -> None:
        self.inner = optimizer

    def __getattr__(self, name: str) -> Any:
        """The optimizer's own attribute."""
        return getattr(self.inner, name)


class Floor(Delegate):
    """Two closures and one base step: the least that any SAM step has to do."""

    def step(self, closure: Callable[..., Any]) -> Any:
        """Both passes and the step, and nothing in between."""
        closure = torch.enable_grad()(closure)
        loss = closure()
        closure(loss_dict={})
        self.inner.step()
        return loss


class ByHand(Delegate):
    """A sharp step in fifteen lines. It assumes that the closure never fails and no other code reads the weights."""

    def __init__(self, base: Optimizer, _: nn.Module) -> None:
        super().__init__(base)
        self.params = [p for group in base.param_groups for p in group["params"]]

    def finish(self, closure: Callable[..., Any], directions: list[torch.Tensor], rho: float) -> Any:
        """The gradient at the displaced weights, and the base optimizer's step with it."""
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(directions)))
            kept = [p.clone() for p in self.params]
            torch._foreach_add_(self.params, torch._foreach_mul(directions, rho / norm))
        loss = closure()
        with torch.no_grad():
            torch._foreach_copy_(self.params, kept)
        self.inner.step()
        return loss


class SAMByHand(ByHand):
    """SAM."""

    def step(self, closure: Callable[..., Any]) -> Any:
        """Climb along the gradient."""
        loss = closure()
        self.finish(closure, [p.grad for p in self.params], rho=0.05)
        return loss


class MomentumByHand(ByHand):
    """Momentum-SAM."""

    def step(self, closure: Callable[..., Any]) -> Any:
        """Descend along the momentum; while any parameter has none, take a plain step."""
        if any("momentum_buffer" not in self.inner.state[p] for p in self.params):
            loss = closure()
            self.inner.step()
            return loss
        return self.finish(closure, [self.inner.state[p]["momentum_buffer"] for p in self.params], rho=-3.0)


class FirstPassOutside(Delegate):
    """An optimizer of pytorch_optimizer: the caller runs its first pass, and its base shares another's state."""

    def __init__(self, cls: str, options: dict[str, Any], base: Optimizer, _: nn.Module) -> None:
        groups = [{"params": group["params"]} for group in base.param_groups]
        make = getattr(import_module(POPULAR), cls)
        super().__init__(make(groups, lambda params, **_: alike(base, params), rho=0.05, **options))
        self.inner.base_optimizer.state = base.state

    def step(self, closure: Callable[..., Any]) -> Any:
        """The first pass, then the optimizer's step."""
        with torch.enable_grad():
            loss = closure()
        self.inner.step(closure)
        return loss
