"""The named methods, one file per paper. An import line below registers a file's ``__all__``."""

from __future__ import annotations

import re

from sam_algos.method import Method
from sam_algos.methods.aesam import *
from sam_algos.methods.asam import *
from sam_algos.methods.budget import *
from sam_algos.methods.composed import *
from sam_algos.methods.esam import *
from sam_algos.methods.fishersam import *
from sam_algos.methods.friendlysam import *
from sam_algos.methods.gradientnormpenalty import *
from sam_algos.methods.gsam import *
from sam_algos.methods.latesam import *
from sam_algos.methods.looksam import *
from sam_algos.methods.momentumsam import *
from sam_algos.methods.randomsam import *
from sam_algos.methods.sam import *
from sam_algos.methods.samon import *
from sam_algos.methods.sssam import *
from sam_algos.methods.stablesam import *
from sam_algos.methods.vasso import *
from sam_algos.methods.wsam import *
from sam_algos.parts import (
    AscentFraction,
    Cosine,
    Descent,
    Groups,
    Linear,
    Part,
    Perturbation,
    Policy,
    Proportional,
    Samples,
    Schedule,
    WholeBatch,
)

__all__ = ["METHODS", "PARTS", "AscentFraction", "Cosine", "Groups", "Linear", "Proportional", "WholeBatch"]

_FOUND = {name: value for name, value in list(globals().items()) if isinstance(value, type) and name[0] != "_"}

METHODS: dict[str, type[Method]] = {
    name.lower(): cls
    for name, cls in _FOUND.items()
    if issubclass(cls, Method) and cls is not Method and name != "SharpnessAware"
}
"""Every named method. The key, which recipes and the benchmark use, is the class's name in lower case."""

PARTS: dict[str, dict[str, type[Part]]] = {
    axis.__name__.lower(): {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): cls
        for name, cls in _FOUND.items()
        if issubclass(cls, axis) and cls is not axis
    }
    for axis in (Policy, Perturbation, Descent, Samples, Schedule)
}
"""Every part, by axis and by the name that recipes use: ``GradientNorm`` is ``gradient_norm``. Schedules are listed
here too, although they are not an axis."""

__all__ += [name for name, cls in _FOUND.items() if issubclass(cls, (Method, Part))]  # pyright: ignore[reportUnsupportedDunderAll]
