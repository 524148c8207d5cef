"""The implementations that are compared.

All of one workload train the same model; they share one base optimizer where they can, so that none finds its
momentum in a colder cache than in training.
"""

from __future__ import annotations

import inspect
import warnings
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
from benchmarks.summary import AGAIN, FLOOR, FUSED, PLAIN
from sam_algos import METHODS

OURS, COMPOSER, POPULAR = "sam_algos", "Composer", "pytorch_optimizer"

_STEPS = 10**9  # of the training that a bare loop is said to be part of

_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # by what stands in the name's brackets
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
        name: What the tables call it.
        line: Which of its kin it stands on one line with in the plot, as users call it.
        package: Whose it is.
        wrap: Makes the optimizer from the base optimizer and the model, for the bare loop.
        algorithm: Makes the algorithm that does so in the Trainer; without it `wrap` serves there too.
        modes: The loops in which it can be used, or tells something; all if empty.
        essential: Whether it is compared on large models too.
        reads_losses: Whether its closure gives a loss for each sample.
    """

    name: str
    line: str
    package: str
    wrap: Callable[[Optimizer, nn.Module], Any]
    algorithm: Callable[[], Any] | None = None
    modes: tuple[str, ...] = ()
    essential: bool = False
    reads_losses: bool = False


def contenders(base: Optimizer, *, mode: str, essential: bool) -> dict[str, Contender]:
    """All whose steps are compared, by name.

    Args:
        base: The base optimizer; where it cannot be fused, that is not measured.
        mode: In which of `benchmarks.loops.WHERE`.
        essential: Leave out what only shows the line between no and all sharp steps.

    Returns:
        dict[str, Contender]: The baselines first.
    """
    found = [*_baselines(base), *_ours(), *_peers()]
    return {c.name: c for c in found if (c.essential or not essential) and (not c.modes or mode in c.modes)}


def _baselines(base: Optimizer) -> Iterator[Contender]:
    for name, wrap in {PLAIN: _as_it_is, AGAIN: _as_it_is, FUSED: lambda base, _: fused(base), FLOOR: Floor}.items():
        if name != FUSED or fused(base) is not None:
            yield Contender(name, name, "torch", wrap, essential=True)


def _ours() -> Iterator[Contender]:
    for key, cls in METHODS.items():
        variants = _VARIANTS.get(key, {"": {}})  # a new method is measured with its defaults
        for label, options in variants.items():
            method, line, option = cls(**options), users_name(key, cls.__name__), label.partition("=")[0]
            yield Contender(
                f"{cls.__name__}({label})",
                f"{line}, {option}" if option in ("ascent_fraction", "synchronize") else line,
                OURS,
                partial(_wrapped, method),
                lambda method=method: method,
                modes=("ddp",) if option == "synchronize" else (),
                essential=label in _ESSENTIAL or len(variants) == 1,
                reads_losses=_reads_losses(method),
            )


def _wrapped(method: Any, base: Optimizer, model: nn.Module) -> Any:
    return method.wrap(base, model=model, total_steps=_STEPS)


def _reads_losses(method: Any) -> bool:
    """Whether a method asks its closure for the loss of each sample."""
    composition = getattr(method, "composition", lambda: None)()
    return bool(getattr(getattr(composition, "samples", None), "reads_losses", False))


def _peers() -> Iterator[Contender]:
    for k in (1, 2, 10) if find_spec("composer") else ():
        yield Contender(
            f"Composer's SAM(interval={k})", "Composer's SAM", COMPOSER, partial(_composers, k),
            partial(_composers_algorithm, k), essential=k == 1,
        )  # fmt: skip
    for k in (None, 1, 5) if find_spec(POPULAR) else ():
        line = f"{POPULAR}'s {'LookSAM' if k else 'SAM'}"
        name, options = (f"{line}(k={k})", {"k": k, "alpha": 0.1}) if k else (line, {})
        wrap = partial(_populars, "LookSAM" if k else "SAM", options)
        yield Contender(name, line, POPULAR, wrap, modes=("bare", "ddp"), essential=k != 5)


def _composers(interval: int, base: Optimizer, _: nn.Module) -> Any:
    return import_module("composer.algorithms.sam.sam").SAMOptimizer(base, interval=interval)


def _composers_algorithm(interval: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that its checkpoints cannot be resumed
        return import_module("composer.algorithms").SAM(interval=interval)


def _populars(cls: str, options: dict[str, Any], base: Optimizer, _: nn.Module) -> Any:
    return FirstPassOutside(getattr(import_module(POPULAR), cls), base, rho=0.05, **options)


def _as_it_is(base: Optimizer, _: nn.Module) -> Optimizer:
    return base


def fused(base: Optimizer) -> Optimizer | None:
    """The same optimizer with ``fused=True`` and a state of its own; None where there is no such thing."""
    if "fused" not in inspect.signature(type(base)).parameters:
        return None
    try:
        return alike(base, [{"params": group["params"]} for group in base.param_groups], foreach=None, fused=True)
    except (TypeError, ValueError, RuntimeError):  # not on this device, or not with these options
        return None


def alike(base: Optimizer, params: Any, **changes: Any) -> Optimizer:
    """An optimizer of the same class with the same options; ``defaults`` may hold more than its constructor takes."""
    taken = inspect.signature(type(base)).parameters
    options = {key: value for key, value in {**base.defaults, **changes}.items() if key in taken}
    return type(base)(params, **options)


class Delegate:
    """Stands in for an optimizer: whatever is not defined here is that one's."""

    _step_supports_amp_closure = True

    def __init__(self, optimizer: Any) -> None:
        self.inner = optimizer

    def __getattr__(self, name: str) -> Any:
        """The optimizer's own."""
        return getattr(self.inner, name)


class Floor(Delegate):
    """Two closures and one base step: what any SAM step has to do at least."""

    def __init__(self, base: Optimizer, _: nn.Module) -> None:
        super().__init__(base)

    def step(self, closure: Callable[..., Any]) -> Any:
        """Both passes and the step, and nothing in between."""
        closure = torch.enable_grad()(closure)
        loss = closure()
        closure(loss_dict={})
        self.inner.step()
        return loss


class FirstPassOutside(Delegate):
    """An optimizer of pytorch_optimizer, whose caller runs the first pass.

    Args:
        cls: The optimizer's class.
        base: It makes a base optimizer of its own like this one, which here shares this one's state.
        **options: Its arguments.
    """

    def __init__(self, cls: Any, base: Optimizer, **options: Any) -> None:
        groups = [{"params": group["params"]} for group in base.param_groups]
        super().__init__(cls(groups, lambda params, **_: alike(base, params), **options))
        self.inner.base_optimizer.state = base.state

    def step(self, closure: Callable[..., Any]) -> Any:
        """The first pass, then the optimizer's step."""
        with torch.enable_grad():
            loss = closure()
        self.inner.step(closure)
        return loss
