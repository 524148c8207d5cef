"""One step as it is being taken: what the parts answer, and what is remembered once it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sam_algos.core.objective.context import Surroundings
from sam_algos.core.objective.evaluation import Evaluation
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Ascent, Decision, Memory, Update
from sam_algos.core.profiling import span
from sam_algos.core.schedules import Schedule
from sam_algos.core.stepping.memory import apart, commit, holds_vectors
from sam_algos.core.tensors.gradients import are_finite, multiply_, put_in_place

__all__ = ["Attempt"]


class _NoDirection(Exception):
    """The perturbation has no direction to climb in: the step is a plain one."""


class Attempt:
    """One step: asks the parts, who run its passes, and remembers what they said if the base optimizer steps.

    Args:
        around (Surroundings): What its passes need, and the parts.
        closure (callable): Zeroes the gradients, runs forward and backward, returns the loss.
        memory (dict): What is remembered so far; changed by `remember` only, but for the count of what was not finite.

    Attributes:
        evaluation (Evaluation): The passes.
    """

    def __init__(self, around: Surroundings, closure: Callable[..., Any], memory: dict[str, Any]) -> None:
        if not callable(closure):
            raise TypeError(
                f"The closure has to be a function that computes the loss and its gradients, not a "
                f"{type(closure).__name__}: see `wrap` of the method."
            )
        if around.stopwatch is not None and not around.passes.begun:
            around.stopwatch.start(memory["seconds"])
        around.radii.read(around.base)
        self.evaluation = Evaluation(around, closure, memory["step"], memory["sharp"])
        self._around = around
        self._memory = memory
        self._decision = Decision(False)
        self._still = around.radii.still(self.evaluation.radius)
        self._remember: dict[str, Memory] = {}

    def ask(self) -> bool:
        """Ask the parts, and lay the gradient that they answer on the parameters; whether a step may be taken on it."""
        evaluation, parts = self.evaluation, self._around.parts
        self._decision = parts.policy.decide(self._view("policy"))
        policy = apart(self._decision.remember)
        try:
            update, remember = self._update()
        except BaseException:
            if evaluation.latest is not None:
                multiply_(evaluation.maximized, -1.0)  # the program sees the gradients that its closure left
            raise
        gradient, latest = update.gradient, evaluation.latest
        self._remember = {"policy": policy, **{axis: apart(memory, gradient) for axis, memory in remember.items()}}
        if latest is None or gradient.values is not latest.values:  # else it lies where the pass left it
            put_in_place(gradient, evaluation.params)
        if evaluation.maximized:
            multiply_(evaluation.maximized, -1.0)
        scaler = self._around.passes.scaler
        scaled = scaler is not None and scaler.is_enabled()  # it leaves such steps out itself
        finite = self._around.nonfinite == "pass" or scaled or are_finite(evaluation.params)
        self._memory["nonfinite"] += int(not finite)
        return finite

    def _view(self, axis: str) -> Step:
        return Step(self.evaluation, self._memory[axis])

    def _update(self) -> tuple[Update, dict[str, Memory]]:
        """Ask samples, perturbation and descent for the gradient, and for what to remember."""
        _, _, descent, samples = self._around.parts
        evaluation, own = self.evaluation, self._view("descent")
        if self._decision.sharp and not self._still:
            evaluation.repeatable = not self._around.one_pass
            climbed: dict[str, Memory] = {}
            try:
                chosen = samples.sharp(self._view("samples"), lambda view: self._climb(view, climbed))
                with span("sam/descent"):
                    update = descent.sharp(own, chosen.gradient)
                return update, {**climbed, "samples": chosen.remember, "descent": update.remember}
            except _NoDirection:
                evaluation.look_away()
        evaluation.repeatable &= evaluation.gradients + evaluation.forwards > 0
        plain = own.gradient
        if self._still:
            return Update(plain), {}
        with span("sam/descent"):
            update = descent.flat(own)
        return update, {"descent": update.remember}

    def _climb(self, view: Step, remember: dict[str, Memory]) -> Ascent:
        """Ask the perturbation how to climb from a view."""
        view = view.view(self._memory["perturbation"], synchronized=self._around.synchronize)
        with span("sam/ascent"), self.evaluation.climbing():
            ascent = self._around.parts.perturbation.ascend(view)
        if ascent is None or not ascent.direction:
            raise _NoDirection
        written = [ascent.direction] if ascent.disposable or ascent.direction.is_gradient else []
        remember["perturbation"] = apart(ascent.remember, *written)
        return ascent

    def stepped(self) -> set[int]:
        """The parameters with a gradient, by ``id``, where vectors are to be remembered of those that are stepped."""
        params = self.evaluation.params if holds_vectors(self._remember) else []
        return {id(p) for p in params if p.grad is not None}

    def remember(self, stepped: set[int]) -> None:
        """The base optimizer has stepped: keep what the parts answered."""
        evaluation, memory = self.evaluation, self._memory
        # What a gradient that is not finite has touched would stay so, and without one nothing was stepped.
        known = evaluation.grad_norm is not None and math.isfinite(float(evaluation.grad_norm))
        commit(memory, self._remember if known else {}, stepped, self._around.base.state)
        memory["step"] += 1
        memory["sharp"] += int(evaluation.climbed)
        if not self._still:
            self._around.activity.note(self._decision.sharp, evaluation.climbed, evaluation.progress)
        if self._around.stopwatch is not None:
            memory["seconds"] = self._around.stopwatch.known

    def report(self) -> dict[str, float]:
        """The figures of the step; and log them, and stop its watch if it was taken."""
        evaluation, memory, around = self.evaluation, self._memory, self._around
        grad_norm = math.nan if evaluation.grad_norm is None else float(evaluation.grad_norm)
        if around.nonfinite == "pass" and evaluation.grad_norm is not None and not math.isfinite(grad_norm):
            memory["nonfinite"] += 1
        metrics = {
            "sam/applied": float(evaluation.climbed),
            "sam/fraction": memory["sharp"] / max(1, memory["step"]),
            "sam/gradients": evaluation.gradients,
            **({"sam/forwards": evaluation.forwards} if around.reads_losses else {}),
            "sam/grad_norm": grad_norm,
            **({"sam/rho": evaluation.radius} if isinstance(around.parts.perturbation.rho, Schedule) else {}),
            "sam/nonfinite": float(memory["nonfinite"]),
            **{f"sam/{name}": value for name, value in self._decision.log.items()},
        }
        around.passes.log(metrics)
        if around.stopwatch is not None and memory["step"] > evaluation.index:
            around.stopwatch.stop(evaluation.climbed)
        return metrics
