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
from sam_algos.core.parts import Parts
from sam_algos.core.profiling import profiler, within
from sam_algos.core.stepping.memory import apart, commit, holds_vectors
from sam_algos.core.tensors.gradients import multiply_, put_in_place
from sam_algos.core.tensors.vector import Vector

__all__ = ["Attempt"]


_PLAIN = Decision(False)


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
        self.decision, self.still = _PLAIN, False
        self._context, self._parts, self._memory = context, parts, memory
        self._remember: dict[str, Memory] = {}
        self._of_radius: Memory = NOTHING
        if context.needs.constant_radius:
            self._move_by(parts.perturbation.rho)  # pyright: ignore[reportArgumentType]
        elif not context.needs.schedule_reads_gradient:
            self._ask_radius()

    def ask(self) -> None:
        """Ask the parts, and lay the gradient that they answer on the parameters."""
        evaluation, needs = self.evaluation, self._context.needs
        try:
            self.decision = self._parts.policy.decide(Step(evaluation, self._memory["policy"]))
            if self.decision.remember:
                self._remember["policy"] = apart(self.decision.remember)
            if needs.schedule_reads_gradient:
                self._ask_radius()
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

    def _ask_radius(self) -> None:
        schedule: Any = self._parts.perturbation.rho
        answer = schedule.radius(Step(self.evaluation, self._memory["perturbation"]))
        if isinstance(answer, Rho):
            self._remember["perturbation"] = self._of_radius = apart(answer.remember)
            answer = answer.rho
        self._move_by(answer)

    def _move_by(self, radius: float | Tensor) -> None:
        self.evaluation.radius = radius
        self.still = self._context.radii.still(radius)

    def _update(self) -> Vector:
        """Ask samples, perturbation and descent for the gradient, and for what to remember."""
        evaluation, descent = self.evaluation, self._parts.descent
        if self.decision.sharp and not self.still:
            evaluation.repeatable = not self._context.needs.one_pass
            try:
                chosen = self._parts.samples.sharp(Step(evaluation, self._memory["samples"]), self._climb)
            except _NoDirection:
                self._remember.pop("perturbation", None)  # what some groups of samples climbed by
                if self._of_radius:
                    self._remember["perturbation"] = self._of_radius
                evaluation.look_away()
            else:
                own, sharp, g_s = Step(evaluation, self._memory["descent"]), descent.sharp, chosen.gradient
                update = within("sam/descent", sharp, own, g_s) if profiler._is_profiler_enabled else sharp(own, g_s)
                return self._keep(update, samples=chosen.remember)
        evaluation.repeatable &= evaluation.begun
        if self.still:
            return evaluation.gradient(evaluation.here)
        own, flat = Step(evaluation, self._memory["descent"]), descent.flat
        return self._keep(within("sam/descent", flat, own) if profiler._is_profiler_enabled else flat(own))

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
        ascend = self._parts.perturbation.ascend
        evaluation.climbing = True
        try:
            ascent = within("sam/ascent", ascend, view) if profiler._is_profiler_enabled else ascend(view)
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
