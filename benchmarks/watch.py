"""How a step's time divides into phases."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from composer.algorithms.sam.sam import SAMOptimizer as ComposerSAMOptimizer

from benchmarks.seats import Delegate, FirstPassOutside
from sam_algos import SharpnessAwareOptimizer

PASSES = ("first pass", "second pass")
PHASES = (
    "first pass",
    "norm",
    "perturb",
    "replay",
    "second pass",
    "restore",
    "descent",
    "base step",
    "framework",
)
"""In the order of a step. In ``replay`` the second pass is made to repeat the first, in ``descent`` the final
gradient is made from those of both passes."""


class Watch:
    """A clock with phases, of which one begins where another ends."""

    def __init__(self) -> None:
        """No step is being taken."""
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()
        self.phase = "framework"

    def begin(self, phase: str) -> None:
        """What comes now is ``phase``."""
        now = time.perf_counter()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    def restart(self) -> None:
        """A step begins."""
        self.begin("framework")
        self._seconds = {}

    def read(self) -> dict[str, float]:
        """The seconds of each phase since `restart`."""
        self.begin("framework")
        return {phase: self._seconds.get(phase, 0.0) for phase in PHASES}

    def around(self, owner: Any, method: str, phase: str, then: str = "framework") -> None:
        """Make ``owner.method()`` the phase ``phase``, and what follows it the phase ``then``."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.begin(phase)
            try:
                return original(*args, **kwargs)
            finally:
                self.begin(then)

        object.__setattr__(owner, method, watched)  # the parts of a method are frozen


class Watched(Delegate):
    """An optimizer whose steps are divided into phases.

    Args:
        optimizer: One of this package's, Composer's SAM, or one of pytorch_optimizer's.
    """

    def __init__(self, optimizer: Any) -> None:
        """Look into it."""
        super().__init__(optimizer)
        self._watch = Watch()
        self._look_into(optimizer.inner if isinstance(optimizer, FirstPassOutside) else optimizer)

    def _look_into(self, optimizer: Any) -> None:
        around = self._watch.around
        if isinstance(optimizer, SharpnessAwareOptimizer):
            policy, perturbation, descent = optimizer._parts
            around(optimizer, "_observe", "norm")
            around(policy, "decide", "norm" if policy.reads_gradient else "framework")
            around(perturbation, "ascend", "norm", then="perturb")
            around(optimizer._passes, "second", "replay", then="restore")
            around(descent, "after_sharp", "descent")
            around(descent, "after_flat", "descent")
        else:
            around(optimizer, "first_step", "perturb")
            around(optimizer, "second_step", "restore")
            if isinstance(optimizer, ComposerSAMOptimizer):
                around(optimizer, "_grad_norm", "norm", then="perturb")
        base = _OwnStep(optimizer.base_optimizer)
        around(base, "step", "base step")
        setattr(optimizer, "base_optimizer", base)  # noqa: B010

    def step(self, closure: Callable[..., Any]) -> Any:
        """Step, with the time of the closures told apart."""
        passes = iter(PASSES)

        def watched(**arguments: Any) -> Any:
            before = self._watch.phase
            self._watch.begin(next(passes))
            try:
                return closure(**arguments)
            finally:
                self._watch.begin(before)

        self._watch.restart()
        return self.inner.step(closure=watched)

    def figures(self) -> dict[str, float]:
        """The seconds of each phase of the last step."""
        return self._watch.read()


class _OwnStep(Delegate):
    """A base optimizer whose step can be watched for one of those that share it."""

    def step(self) -> Any:
        """The base optimizer's step."""
        return self.inner.step()
