"""Gradients and losses at points near the weights: runs the passes that the parts ask for, each once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sam_algos.core.objective.context import Surroundings
from sam_algos.core.objective.sight import Left, Look, explain_stale_graph
from sam_algos.core.objective.stopwatch import Seconds
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Ascent
from sam_algos.core.passes.contract import Outcome, Pass
from sam_algos.core.passes.replay import fresh_caches, fresh_shards
from sam_algos.core.passes.selection import EVERYTHING, Selection
from sam_algos.core.profiling import span
from sam_algos.core.refusals import refuse_memory_of_hooks
from sam_algos.core.schedules import Schedule
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.gradients import collect, put_in_place
from sam_algos.core.tensors.parameters import Name
from sam_algos.core.tensors.vector import Vector

__all__ = ["Evaluation", "NoOutcome", "Point"]


class NoOutcome(Exception):
    """A pass overflowed in half precision, and the program around skips the step; or microbatches are still to come."""


@dataclass(frozen=True, eq=False)
class Point:
    """A point: the weights themselves, or a displaced one, compared by identity."""

    displaced: Any = None


@dataclass
class _Result:
    """What a pass left: its gradient, None once it was written into, and the loss of each sample if asked for."""

    gradient: Vector | None
    losses: Tensor | None
    synchronized: bool
    has_gradient: bool
    share: float


class Evaluation:
    """The passes of one step.

    Args:
        around: What they need.
        closure: Zeroes the gradients, runs forward and backward, returns the loss.
        index: Steps taken before this one.
        sharp: How many of them were sharp.

    Attributes:
        params (list[Tensor]): The optimizer's parameters, frozen ones too, as a closure may unfreeze them.
        maximized (list[Tensor]): Those for which it maximises the loss. Their gradients change sign where they come in,
            so that to parts all is minimised, and again where they go out to the base optimizer.
        loss: That of the first pass.
        grad_norm (HostValue | None): ``‖g‖`` of the first pass, on its way to the host.
        climbed (bool): Whether a gradient was computed away from ``w``.
        latest (Vector | None): The gradient that lies on the parameters.
        repeatable (bool): Whether passes may follow the next one.
        radius (float): ``ρ`` of this step.
    """

    def __init__(self, around: Surroundings, closure: Callable[..., Any], index: int, sharp: int = 0) -> None:
        self.index = index
        self.sharp = sharp
        self.progress = around.passes.progress(index)
        self.base = around.base
        self.params = [p for group in self.base.param_groups for p in group["params"]]
        self.maximized = around.maximized()
        if around.reads_losses and 0 < len(self.maximized) < len(self.params):
            raise ValueError(
                "The base optimizer has maximize=True in some of its parameter groups, and this method compares the "
                "loss of each sample, which cannot both grow and fall. Maximise all groups or none."
            )
        self.loss: Any = None
        self.grad_norm: tensors.HostValue | None = None
        self._shares: dict[bool, list[float]] = {True: [], False: []}  # of passes with a gradient, and without
        self.climbed = False
        self.latest: Vector | None = None
        self.repeatable = True
        self._around = around
        self._closure = closure
        self._here = Point()
        # What is known of a point is let go with the last view from it, so that many points cost no more than one.
        self._results: WeakKeyDictionary[Point, dict[Selection, _Result]] = WeakKeyDictionary()
        self._climbing = False
        self._ran = 0
        self._began: Selection | None = None  # on which samples the first pass ran, if it was at w
        self._averaged = False
        rho = around.parts.perturbation.rho
        self.radius = rho.radius(Step(self, {})) if isinstance(rho, Schedule) else rho

    @property
    def gradients(self) -> float:
        """How many gradients were computed; one on a quarter of the samples is a quarter."""
        return math.fsum(self._shares[True])

    @property
    def forwards(self) -> float:
        """The same for forward passes without a gradient."""
        return math.fsum(self._shares[False])

    @contextmanager
    def climbing(self) -> Iterator[None]:
        """While the perturbation is asked, the descent is still to come."""
        self._climbing = True
        try:
            yield
        finally:
            self._climbing = False

    def gradient(self, point: Point | None, selection: Selection, synchronized: bool) -> Vector:
        """The gradient there, from a pass if it is not known."""
        found = self._known(point).get(selection)
        if found is None or not found.has_gradient or (synchronized and not found.synchronized):
            found = self._run(point, selection, synchronized, with_gradient=True)
        if found.gradient is None:
            raise RuntimeError(
                "A part reads a gradient after its memory was written into. A part that reads the plain gradient "
                "after the ascent declares reads_gradient = True."
            )
        return found.gradient

    def gradient_norm(self, point: Point | None, selection: Selection, synchronized: bool) -> float:
        """The norm of the gradient there, as a Python number."""
        gradient = self.gradient(point, selection, synchronized)
        norm = self.grad_norm if self._ran == 1 and self.grad_norm is not None else gradient.norm()
        with self._around.passes.working("sam/wait"):
            return float(norm)

    def seconds(self) -> Seconds:
        """What steps take."""
        if self._around.stopwatch is None:
            raise RuntimeError("A part reads the seconds that steps take and does not declare reads_seconds = True.")
        return self._around.stopwatch.read(self.params[0].device)

    def scratch(self, point: Point | None, selection: Selection, synchronized: bool) -> Vector:
        """The gradient there, to be written into."""
        gradient = self.gradient(point, selection, synchronized)
        if self._climbing and self._around.keeps_gradient:
            return gradient.clone()
        values = list(gradient.values)  # the pass's own list says what lies on the parameters
        tensors.own_(values, gradient.params)
        if all([mine is left for mine, left in zip(values, gradient.values, strict=True)]):
            values = gradient.values
        if gradient:  # nothing to write into otherwise, and the step will be a plain one
            self._known(point)[selection].gradient = None
        return Vector(gradient.params, values)

    def losses(self, point: Point | None, selection: Selection) -> Tensor:
        """The loss of each sample there, from a forward pass if it is not known."""
        found = self._known(point).get(selection)
        if found is None:
            found = self._run(point, selection, synchronized=True, with_gradient=False)
        if found.losses is None:
            raise RuntimeError("A part reads the loss of each sample and does not declare reads_losses = True.")
        return -found.losses if self.maximized else found.losses

    def share(self, selection: Selection) -> float:
        """How much of the batch a selection is, of which a pass has run at ``w``."""
        return self._known(None)[selection].share

    def displaced(self, ascent: Ascent) -> Point:
        """The point that an ascent leads to; nothing moves yet."""
        direction = ascent.direction
        disposable = ascent.disposable
        if not self._around.keeps_gradient and (direction.is_gradient or not self._climbing):
            disposable |= direction.is_gradient
            for result in [result for results in self._results.values() for result in results.values()]:
                result.gradient = None  # nobody reads it after the ascent
        scales = self._around.scales(ascent, self.radius)
        return Point(self._around.displacement(direction.params, direction.values, scales, disposable))

    def _known(self, point: Point | None) -> dict[Selection, _Result]:
        """What is known of a point."""
        return self._results.setdefault(point or self._here, {})

    def model(self) -> nn.Module:
        """The model that the passes run."""
        return self._around.passes.model()

    def names(self, params: list[Tensor]) -> list[Name]:
        """What the model calls parameters."""
        return self._around.names(params)

    def moves(self, p: Tensor) -> bool:
        """Whether a parameter's radius is above 0."""
        return bool(self._around.moving([p], self.radius))

    def states(self) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """What the base optimizer's state has of each trained parameter."""
        state = self._around.base.state
        return [(p, found) for p in self.params if p.requires_grad and (found := state.get(p))]

    def recall(self, buffer: str) -> Vector:
        """What the base optimizer's state has under a name."""
        found = [(p, value) for p, state in self.states() if (value := state.get(buffer)) is not None]
        return Vector([p for p, _ in found], shards.local_parts([value for _, value in found]))

    def epsilon(self, ascent: Ascent) -> Vector:
        """``ε`` as a vector."""
        values = zip(ascent.direction.values, self._around.scales(ascent, self.radius), strict=True)
        return Vector(ascent.direction.params, [value * scale.to(value.device) for value, scale in values])

    def _run(self, point: Point | None, selection: Selection, synchronized: bool, with_gradient: bool) -> _Result:
        """Run a pass, and take in what it leaves."""
        look = self._look(point) if with_gradient else None
        plan = self._plan(selection, synchronized, with_gradient, repeatable=self.repeatable or look is not None)
        if self.latest is not None:
            tensors.own_(self.latest.values, self.latest.params)  # a part may hold it through this pass
        for p in self.params if self._ran else ():
            p.grad = None  # closures must not zero gradients that are kept, or that hold the displaced weights
        if self._ran and self._around.private:
            self.base.zero_grad()  # also those of samples, which the base optimizer would take for one batch's
        self.latest = None
        places = [] if point is None else [point.displaced]
        known = (
            self._began is selection
        )  # the loss at w; then, too, a model that compiles has done so for these samples
        outcome = self._pass(plan, *([look] if look is not None and known else []), *places, first=not self._ran)
        self._ran += 1
        share = 1.0 if outcome is None else outcome.share
        self._shares[with_gradient].append(share)
        self.climbed |= with_gradient and point is not None
        if outcome is None:
            raise NoOutcome
        if self._ran == 1:
            self.loss = outcome.loss
            self._began = selection if point is None else None
        if not outcome.complete:
            raise NoOutcome
        if with_gradient:
            self._averaged |= outcome.synchronized
            self.latest = self._collect()
        result = _Result(self.latest, outcome.losses, outcome.synchronized, with_gradient, share)
        self._known(point)[selection] = result
        if look is not None and self.latest is not None:
            there, at_w = Left(outcome.loss, self.latest), [self.loss] if known else []
            settled = look.judge(there, at_w, partial(self._aside, plan))
            self._around.sight.judged(look, settled=settled)
        return result

    def _plan(self, selection: Selection, synchronized: bool, with_gradient: bool, *, repeatable: bool) -> Pass:
        """How the next pass is to be run, if it may run."""
        if self._ran and not self.repeatable:
            raise RuntimeError("A part asks for a second pass; a perturbation that reads one has own_pass = True.")
        if with_gradient and synchronized and self._averaged:
            refuse_memory_of_hooks(self.model())
        return Pass(
            params=self.params,
            selection=selection,
            synchronize=synchronized,
            gradient=with_gradient,
            losses=self._around.reads_losses and selection is EVERYTHING,
            repeatable=repeatable,
        )

    def _pass(self, plan: Pass, *places: AbstractContextManager[Any], first: bool) -> Outcome | None:
        """Run the closure, at the weights or within what displaces them."""
        passes = self._around.passes
        if first and not places:
            with self._whole_shards():
                return passes.first(self._closure, plan)
        try:
            with ExitStack() as stack:
                for place in (self._whole_shards(), fresh_caches(), *places):
                    stack.enter_context(place)
                return (passes.first if first else passes.again)(self._closure, plan)
        except RuntimeError as error:
            explain_stale_graph(error)
            raise

    def _whole_shards(self) -> AbstractContextManager[Any]:
        return fresh_shards(self.model()) if shards.is_sharded(self.params) else nullcontext()

    def _look(self, point: Point | None) -> Look | None:
        """A look at the pass that is to run, if it is the first displaced one of its kind."""
        if point is None or not (moving := self._to_be_looked_at()):
            return None
        model, sight = self.model(), self._around.sight
        look = Look(model, point.displaced, moving)
        if look.processes.unknown:  # a process that ran more passes than another could wait for it in vain
            sight.judged(look, settled=True)
            return None
        return look if sight.is_everywhere(look.processes, model, looks=True) else None

    def look_away(self) -> None:
        """Tell processes that look at their displaced pass that this one runs none, for lack of a direction."""
        if moving := self._to_be_looked_at():
            processes = shards.Processes(self.model(), moving)
            if not processes.unknown:
                self._around.sight.is_everywhere(processes, self.model(), looks=False)

    def _to_be_looked_at(self) -> list[Tensor]:
        """The parameters that a displaced pass would move, if it is the first of its kind; none if it is not."""
        around = self._around
        if around.private:  # one more pass would leave its gradients of samples to the base optimizer
            return []
        if self.climbed or not around.passes.can_repeat() or not around.sight.needs_look(self._closure, self.model()):
            return []
        return around.moving(self.params, self.radius)

    def _aside(self, plan: Pass, *places: AbstractContextManager[Any]) -> Left | None:
        """Run the closure once more, uncounted, and put the gradients back that lie on the parameters."""
        latest = cast(Vector, self.latest)  # a pass has just left it
        tensors.own_(latest.values, latest.params)
        for p in self.params:
            p.grad = None
        try:
            outcome = self._pass(plan, *places, first=False)
            return None if outcome is None or not outcome.complete else Left(outcome.loss, self._take(owned=False))
        finally:
            put_in_place(latest, self.params)

    def _collect(self) -> Vector:
        """Take in the gradients that a pass left, and the norm of the first."""
        gradient = self._take(owned=self.repeatable and (self._ran == 1 or self._climbing))
        if self.grad_norm is None and gradient:
            with span("sam/norm"):
                self.grad_norm = tensors.HostValue(gradient.norm())
        return gradient

    def _take(self, *, owned: bool) -> Vector:
        return collect(self.params, self._around.names, owned=owned, maximized=self.maximized)
