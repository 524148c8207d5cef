"""Sharpness-aware training for PyTorch and MosaicML Composer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_algos.batchnorm import recalibrate
    from sam_algos.core.stepping.optimizer import SharpnessAwareOptimizer
    from sam_algos.method import Method
    from sam_algos.methods import *
    from sam_algos.methods import METHODS, PARTS
    from sam_algos.parts import (
        Ascent,
        Climb,
        Decision,
        Descent,
        Part,
        Parts,
        Perturbation,
        Policy,
        Samples,
        Schedule,
        Step,
        Update,
        Vector,
    )

__version__ = "0.1.0"

_HOMES = {
    "batchnorm": ("recalibrate",),
    "core.stepping.optimizer": ("SharpnessAwareOptimizer",),
    "method": ("Method",),
    "parts": (
        "Ascent", "Climb", "Decision", "Descent", "Part", "Parts", "Perturbation", "Policy", "Samples", "Schedule",
        "Step", "Update", "Vector",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Import lazily: PyTorch and Composer take seconds to import, and `--help` needs neither.
    from importlib import import_module

    if name == "__all__":
        return __dir__()
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{next((home for home, names in _HOMES.items() if name in names), 'methods')}")
    if name not in home.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_advise(name)}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def _advise(name: str) -> str:
    """Suggest a name in place of one that does not exist."""
    from difflib import get_close_matches

    if name == "RecalibrateBatchNorm":
        return ": it is Composer's, `from sam_algos.trainer import RecalibrateBatchNorm`"
    names = {known.lower(): known for known in reversed(__dir__())}
    near = get_close_matches(name.lower().replace("_", ""), names, n=1, cutoff=0.75)
    return f". Did you mean {names[near[0]]!r}?" if near else ""


def __dir__() -> list[str]:
    from sam_algos import methods

    return sorted({*methods.__all__, *(name for names in _HOMES.values() for name in names)})
