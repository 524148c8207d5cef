"""The implementations that are compared.

All of one workload train the same model; they share one base optimizer where they can, so that none finds its
momentum in a colder cache than in training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from composer.algorithms import SAM as ComposerSAM
from composer.algorithms.sam.sam import SAMOptimizer as ComposerSAMOptimizer
from torch import nn
from torch.optim import Optimizer

from benchmarks.seats import Contender, FirstPassOutside, Floor
from sam_algos import AESAM, ASAM, METHODS, SAM, SSSAM, AELookSAM, LookSAM, Method

PLAIN, AGAIN, FUSED, FLOOR = "plain", "plain, again", "plain, fused=True", "floor"
OURS, COMPOSER, POPULAR = "sam_algos", "Composer", "pytorch_optimizer"

_ALWAYS, _NEVER = -1e9, 1e9  # thresholds of AE-SAM
_STEPS = 10**9  # of the training that a bare loop is said to be part of


def contenders(*, essential: bool, mode: str) -> dict[str, Contender]:
    """All whose steps are compared, by name.

    Args:
        essential: Leave out what only shows the line between no and all sharp steps.
        mode: In which of `benchmarks.loops.LOOPS`.

    Returns:
        dict[str, Contender]: The baselines first.
    """
    found = _installed([*_baselines(), *_ours(), *_peers()])
    return {c.name: c for c in found if (c.essential or not essential) and (not c.modes or mode in c.modes)}


def optimizer_sides() -> dict[str, Contender]:
    """Those whose work between and after the passes is compared, by name; ``line`` is the kind of step."""
    flat, reuse, refresh = "AESAM, flat", "LookSAM, reuse", "LookSAM, refresh"
    found = _installed([
        _method("SAM()", "SAM", SAM()),
        _method("SAM(), again", "SAM", SAM()),
        _composer("Composer's SAM", "SAM", 1),
        _popular("SAM", "SAM"),
        _method("ASAM()", "ASAM", ASAM()),
        _popular("SAM(adaptive=True)", "ASAM", adaptive=True),
        _method(refresh, refresh, LookSAM(k=1)),
        _popular(refresh, refresh, k=1, alpha=0.1),
        _method(reuse, reuse, LookSAM(k=_STEPS)),
        _popular(reuse, reuse, k=_STEPS, alpha=0.1),
        _method(flat, flat, AESAM(lambda_1=_NEVER, lambda_2=_NEVER)),
    ])  # fmt: skip
    return {c.name: c for c in found}


def _installed(found: Iterable[Contender]) -> list[Contender]:
    return [c for c in found if c.package != POPULAR or find_spec(POPULAR)]


def _baselines() -> Iterator[Contender]:
    for name, wrap in {PLAIN: _as_it_is, AGAIN: _as_it_is, FUSED: _fused, FLOOR: Floor}.items():
        yield Contender(name, name, "torch", wrap, essential=True)


def _ours() -> Iterator[Contender]:
    for k in (1, 2, 5, 10):
        yield _method(f"SAM(interval={k})", "SAM, interval", SAM(interval=k), essential=k == 1)
    for share in (0.25, 0.5):
        method = SAM(ascent_fraction=share)
        yield _method(f"SAM(ascent_fraction={share:g})", "SAM, ascent_fraction", method, essential=share == 0.25)
    yield _method("SAM(synchronize=True)", "SAM, synchronize", SAM(synchronize=True), essential=True, modes=("ddp",))
    for p in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield _method(f"SSSAM(probability={p:g})", "SSSAM, probability", SSSAM(probability=p))
    for c in (_ALWAYS, -1.0, -0.5, 0.0, 1.0, _NEVER):
        shift = {_NEVER: "inf", _ALWAYS: "-inf"}.get(c, f"{c:g}")
        method = AESAM(lambda_1=c, lambda_2=c)
        yield _method(f"AESAM(lambda={shift})", "AESAM, threshold", method, essential=abs(c) > 1)
    for k in (1, 2, 5, 10):
        yield _method(f"LookSAM(k={k})", "LookSAM, k", LookSAM(k=k), essential=k in (1, 5))
    yield _method("AELookSAM(lambda=1)", "AELookSAM", AELookSAM(lambda_1=1.0, lambda_2=1.0))
    yield _method("ASAM()", "ASAM", ASAM(), essential=True)
    covered = (SAM, SSSAM, AESAM, LookSAM, AELookSAM, ASAM)
    for cls in METHODS.values():
        if cls not in covered:  # a new method is measured with its defaults until it has fractions here
            yield _method(f"{cls.__name__}()", cls.__name__, cls())


def _peers() -> Iterator[Contender]:
    for k in (1, 2, 10):
        yield _composer(f"Composer's SAM(interval={k})", "Composer's SAM, interval", k)
    yield _popular("SAM", "pytorch_optimizer's SAM", essential=True)
    for k in (1, 5):
        line = "pytorch_optimizer's LookSAM"
        yield _popular(f"LookSAM(k={k})", line, essential=k == 1, k=k, alpha=0.1)


def _method(name: str, line: str, method: Method, *, essential: bool = False, modes: tuple[str, ...] = ()) -> Contender:
    def wrap(base: Optimizer, model: nn.Module) -> Optimizer:
        return method.wrap(base, model=model, total_steps=_STEPS)

    return Contender(name, line, OURS, wrap, lambda: method, essential=essential, modes=modes)


def _composer(name: str, line: str, interval: int) -> Contender:
    def algorithm() -> ComposerSAM:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its checkpoints cannot be resumed
            return ComposerSAM(interval=interval)

    def wrap(base: Optimizer, _: nn.Module) -> Optimizer:
        return ComposerSAMOptimizer(base, interval=interval)

    return Contender(name, line, COMPOSER, wrap, algorithm, essential=interval == 1)


def _popular(what: str, line: str, *, essential: bool = False, **options: Any) -> Contender:
    def wrap(base: Optimizer, _: nn.Module) -> FirstPassOutside:
        module = import_module(POPULAR)
        return FirstPassOutside(module.LookSAM if "k" in options else module.SAM, base, rho=0.05, **options)

    return Contender(f"{POPULAR}'s {what}", line, POPULAR, wrap, essential=essential, modes=("bare", "ddp"))


def _as_it_is(base: Optimizer, _: nn.Module) -> Optimizer:
    return base


def _fused(base: Optimizer, _: nn.Module) -> Optimizer:
    """The same optimizer with ``fused=True`` and a state of its own; itself where it has no such option."""
    if "fused" not in base.defaults:
        return base
    defaults = {key: value for key, value in base.defaults.items() if key != "foreach"}
    groups = [{"params": group["params"]} for group in base.param_groups]
    return type(base)(groups, **{**defaults, "fused": True})
