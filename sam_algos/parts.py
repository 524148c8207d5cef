"""The contracts of a method's parts, and all that writing one takes: import them from here.

`sam_algos.core.parts` explains the contracts. The ranges of options (`UnitInterval`, `Seed`, ...) annotate the fields
of parts and methods, which are checked against them. `Vector` is the arithmetic on one tensor per parameter; `norm`,
`norms` and `largest` work on lists of tensors, and `reciprocal` inverts a norm that may be zero.
"""

from __future__ import annotations

from sam_algos.core.objective.view import Step
from sam_algos.core.options import (
    Finite,
    Fraction,
    NameOrNone,
    NonNegative,
    NormOrder,
    Positive,
    PositiveInt,
    PositiveOrNone,
    Probability,
    ProbabilityOrNone,
    Seed,
    UnitInterval,
)
from sam_algos.core.parts import (
    Ascent,
    Climb,
    Decision,
    Descent,
    Memory,
    Part,
    Parts,
    Perturbation,
    Policy,
    Radius,
    Rho,
    Samples,
    Schedule,
    Update,
    WholeBatch,
    buffers_of,
)
from sam_algos.core.samples import AscentFraction, Groups
from sam_algos.core.schedules import Cosine, Linear, Proportional
from sam_algos.core.tensors.lists import largest, norm, norms, reciprocal
from sam_algos.core.tensors.vector import Vector

__all__ = [
    "Ascent",
    "AscentFraction",
    "Climb",
    "Cosine",
    "Decision",
    "Descent",
    "Finite",
    "Fraction",
    "Groups",
    "Linear",
    "Memory",
    "NameOrNone",
    "NonNegative",
    "NormOrder",
    "Part",
    "Parts",
    "Perturbation",
    "Policy",
    "Positive",
    "PositiveInt",
    "PositiveOrNone",
    "Probability",
    "ProbabilityOrNone",
    "Proportional",
    "Radius",
    "Rho",
    "Samples",
    "Schedule",
    "Seed",
    "Step",
    "UnitInterval",
    "Update",
    "Vector",
    "WholeBatch",
    "buffers_of",
    "largest",
    "norm",
    "norms",
    "reciprocal",
]
