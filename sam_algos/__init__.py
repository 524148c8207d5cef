"""Sharpness-aware training for PyTorch and MosaicML Composer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_algos.algorithm import Method
    from sam_algos.methods import METHODS
    from sam_algos.methods.aesam import AESAM, AELookSAM, GradientNorm
    from sam_algos.methods.asam import ASAM, Adaptive
    from sam_algos.methods.composed import SharpnessAware
    from sam_algos.methods.looksam import LookSAM, Reuse
    from sam_algos.methods.sam import SAM, Interval, PNorm, SharpGradient
    from sam_algos.methods.sssam import SSSAM, Bernoulli
    from sam_algos.optimizer import SharpnessAwareOptimizer
    from sam_algos.parts import Ascent, Decision, Descent, Parts, Perturbation, Policy, Step

__version__ = "0.1.0"

__all__ = [
    "AESAM",
    "ASAM",
    "METHODS",
    "SAM",
    "SSSAM",
    "AELookSAM",
    "Adaptive",
    "Ascent",
    "Bernoulli",
    "Decision",
    "Descent",
    "GradientNorm",
    "Interval",
    "LookSAM",
    "Method",
    "PNorm",
    "Parts",
    "Perturbation",
    "Policy",
    "Reuse",
    "SharpGradient",
    "SharpnessAware",
    "SharpnessAwareOptimizer",
    "Step",
]

_HOMES = {
    "sam_algos.algorithm": ("Method",),
    "sam_algos.methods": ("METHODS",),
    "sam_algos.methods.aesam": ("AESAM", "AELookSAM", "GradientNorm"),
    "sam_algos.methods.asam": ("ASAM", "Adaptive"),
    "sam_algos.methods.composed": ("SharpnessAware",),
    "sam_algos.methods.looksam": ("LookSAM", "Reuse"),
    "sam_algos.methods.sam": ("SAM", "Interval", "PNorm", "SharpGradient"),
    "sam_algos.methods.sssam": ("SSSAM", "Bernoulli"),
    "sam_algos.optimizer": ("SharpnessAwareOptimizer",),
    "sam_algos.parts": ("Ascent", "Decision", "Descent", "Parts", "Perturbation", "Policy", "Step"),
}


def __getattr__(name: str) -> Any:
    # Names are imported when first used: Composer takes seconds to import, and `--help` needs none of it.
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
