"""One step as it is being taken: what the parts answer, and what is remembered once it was taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sam_algos.core.objective.answers import NOTHING, Ascent, Decision, Memory, Rho, Update
from sam_algos.core.objective.context import Context
from sam_algos.core.objective.evaluation import Evaluation
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Parts, Schedule
from sam_algos.core.profiling import within
from sam_algos.core.stepping.memory import apart, commit, holds_vectors
from sam_algos.core.tensors.gradients import multiply_, put_in_place
from sam_algos.core.tensors.vector import Vector

__all__ = ["Attempt"]


class _NoDirection(Exception):
    """The perturbation has no direction to climb in: the step is a plain one."""


class Attempt:
    """One step: asks the parts, who run its passes, and remembers what they said if the base optimizer steps.

    Args:
        context (Context): What its passes need.
        parts (Parts): The parts to ask.
        base (Optimizer): The base optimizer.
        closure (callable): Zeroes the gradients, runs forward and backward, returns the loss.
        memory (dict): What is remembered so far; only `remember` changes it.
        scaler (GradScaler, optional): What the closure scales its loss by.
        accumulating (bool): Whether further microbatches of the step will follow.

    Attributes:
        evaluation (Evaluation): The passes.
        decision (Decision): The policy's answer.
        still (bool): Whether the radius is zero for every parameter, so that the step is the base optimizer's.
    """

    def __init__(
        self,
        context: Context,
        parts: Parts,
        base: Optimizer,
        closure: Callable[..., Any],
        memory: dict[str, Any],
        *,
        scaler: GradScaler | None = None,
        accumulating: bool = False,
    ) -> None:
        if not callable(closure):
            raise TypeError(
                f"The closure has to be a function that computes the loss and its gradients, not a "
                f"{type(closure).__name__}: see `wrap` of the method."
            )
        self.evaluation = Evaluation(
            context, base, closure, memory["step"], memory["sharp"], scaler=scaler, accumulating=accumulating
        )
        self.decision, self.still = Decision(False), False
        self._context, self._parts, self._memory = context, parts, memory
        self._remember: dict[str, Memory] = {}
        self._of_radius: Memory = NOTHING
        schedule = parts.perturbation.rho
        if not isinstance(schedule, Schedule):
            self._move_by(schedule)
        elif not schedule.reads_gradient:
            self._ask_radius(schedule)

    def ask(self) -> None:
        """Ask the parts, and lay the gradient that they answer on the parameters."""
        evaluation, schedule = self.evaluation, self._parts.perturbation.rho
        try:
            self.decision = self._parts.policy.decide(self._view("policy"))
            if self.decision.remember:
                self._remember["policy"] = apart(self.decision.remember)
            if isinstance(schedule, Schedule) and schedule.reads_gradient:
                self._ask_radius(schedule)
            gradient = self._update()
        except BaseException:
            if evaluation.latest is not None and evaluation.maximized:
                multiply_(evaluation.maximized, -1.0)  # the program sees the gradients that its closure left
            raise
        latest = evaluation.latest
        if latest is None or gradient.values is not latest.values:  # else it lies where the pass left it
            evaluation.norm()  # of the first gradient, which may lie there
            put_in_place(gradient, evaluation.params)
        if evaluation.maximized:
            multiply_(evaluation.maximized, -1.0)

    def _ask_radius(self, schedule: Schedule) -> None:
        answer = schedule.radius(self._view("perturbation"))
        if isinstance(answer, Rho):
            self._remember["perturbation"] = self._of_radius = apart(answer.remember)
            answer = answer.rho
        self._move_by(answer)

    def _move_by(self, radius: float | Tensor) -> None:
        self.evaluation.radius = radius
        self.still = self._context.radii.still(radius)

    def _view(self, axis: str) -> Step:
        return Step(self.evaluation, self._memory[axis])

    def _update(self) -> Vector:
        """Ask samples, perturbation and descent for the gradient, and for what to remember."""
        evaluation, descent = self.evaluation, self._parts.descent
        if self.decision.sharp and not self.still:
            evaluation.repeatable = not self._context.needs.one_pass
            try:
                chosen = self._parts.samples.sharp(self._view("samples"), self._climb)
            except _NoDirection:
                self._remember["perturbation"] = self._of_radius  # what some groups of samples climbed by is void
                evaluation.look_away()
            else:
                update = within("sam/descent", descent.sharp, self._view("descent"), chosen.gradient)
                return self._keep(update, samples=chosen.remember)
        evaluation.repeatable &= evaluation.begun
        plain = evaluation.gradient(evaluation.here)
        if self.still:
            return plain
        return self._keep(within("sam/descent", descent.flat, self._view("descent")))

    def _keep(self, update: Update, samples: Memory = NOTHING) -> Vector:
        """Note what to remember once the step is taken, apart from memory that will be written into."""
        for axis, memory in (("samples", samples), ("descent", update.remember)):
            if memory:
                self._remember[axis] = apart(memory, update.gradient)
        if climbed := self._remember.get("perturbation"):
            self._remember["perturbation"] = apart(climbed, update.gradient)
        return update.gradient

    def _climb(self, view: Step) -> Ascent:
        """Ask the perturbation how to climb from a view."""
        evaluation = self.evaluation
        view = view.view(self._memory["perturbation"], synchronized=self._context.needs.synchronized)
        evaluation.climbing = True
        try:
            ascent = within("sam/ascent", self._parts.perturbation.ascend, view)
        finally:
            evaluation.climbing = False
        if ascent is None or not ascent.direction.params:
            raise _NoDirection
        if ascent.remember:
            written = [ascent.direction] if ascent.disposable or ascent.direction.is_gradient else []
            self._remember["perturbation"] = {**self._of_radius, **apart(ascent.remember, *written)}
        return ascent

    def stepped(self) -> set[int]:
        """The parameters with a gradient, by ``id``, where vectors are to be remembered of those that are stepped."""
        params = self.evaluation.params if self._remember and holds_vectors(self._remember) else []
        return {id(p) for p in params if p.grad is not None}

    def remember(self, stepped: set[int]) -> None:
        """The base optimizer has stepped: keep what the parts answered."""
        evaluation, memory = self.evaluation, self._memory
        # Discard what was computed from a gradient that is not finite, and what nothing was stepped by.
        if self._remember and (norm := evaluation.norm()) is not None and math.isfinite(float(norm)):
            commit(memory, self._remember, stepped, evaluation.base.state)
        memory["step"] += 1
        memory["sharp"] += int(evaluation.climbed)
        if self._context.stopwatch is not None:
            memory["seconds"] = self._context.stopwatch.known
