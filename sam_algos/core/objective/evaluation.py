"""Gradients and losses at points near the weights: runs the passes that the parts ask for, each once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import ref

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sam_algos.core.objective.answers import Ascent
from sam_algos.core.objective.context import Context
from sam_algos.core.objective.sight import Left, Look, explain_stale_graph
from sam_algos.core.objective.stopwatch import Seconds
from sam_algos.core.passes.contract import Outcome, Pass
from sam_algos.core.passes.replay import FreshCaches, fresh_shards
from sam_algos.core.passes.selection import EVERYTHING, Selection
from sam_algos.core.profiling import within
from sam_algos.core.refusals import refuse_memory_of_hooks
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.displacement import Displaced
from sam_algos.core.tensors.gradients import collect, put_in_place
from sam_algos.core.tensors.parameters import Name
from sam_algos.core.tensors.vector import Vector

__all__ = ["Evaluation", "NoOutcome", "Point"]


class NoOutcome(Exception):
    """A pass overflowed in half precision, and the program around skips the step; or microbatches are still to come."""


class Point:
    """The weights themselves, or displaced ones; compared by identity.

    What passes have left there is let go with the last view from it, so that many points cost no more than one.
    """

    __slots__ = ("__weakref__", "displaced", "known")

    def __init__(self, displaced: Displaced | None = None) -> None:
        self.displaced = displaced
        self.known: dict[Selection, _Result] = {}


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
        context: What they need.
        base: The base optimizer.
        closure: Zeroes the gradients, runs forward and backward, returns the loss.
        index: Steps taken before this one.
        sharp: How many of them were sharp.
        scaler: What the closure scales its loss by.
        accumulating: Whether further microbatches of the step will follow.

    Attributes:
        params (list[Tensor]): The optimizer's parameters, frozen ones too, as a closure may unfreeze them.
        maximized (list[Tensor]): The parameters for which it maximises the loss. Their gradients change sign when they
            come in, so that parts always minimise, and again when they go out to the base optimizer.
        here (Point): The weights themselves.
        radius (float | Tensor): ``ρ`` of this step, as the attempt found it.
        loss: The loss of the first pass.
        climbed (bool): Whether a gradient was computed away from ``w``.
        sharded (bool): Whether any parameter is sharded.
        latest (Vector | None): The gradient that lies on the parameters.
        repeatable (bool): Whether passes may follow the next one.
        climbing (bool): Whether the perturbation is being asked, so that the descent is still to come.
    """

    def __init__(
        self,
        context: Context,
        base: Optimizer,
        closure: Callable[..., Any],
        index: int,
        sharp: int = 0,
        *,
        scaler: GradScaler | None = None,
        accumulating: bool = False,
    ) -> None:
        self.index, self.sharp, self.progress = index, sharp, context.passes.progress(index)
        self.base = base
        self._read_groups(context.needs.losses)
        self.here = Point()
        self.radius: float | Tensor = math.nan
        self.loss: Any = None
        self.climbed = self.climbing = False
        self.latest: Vector | None = None
        self.repeatable = True
        self._context, self._closure = context, closure
        self._scaler, self._accumulating = scaler, accumulating
        self.sharded = shards.is_sharded(self.params)
        self._ran = 0
        self._gradients: list[float] = []  # the share of the batch of each pass with a gradient
        self._forwards: list[float] = []  # and of each one without
        self._points: list[ref[Point]] = []  # displaced ones
        self._began: Selection | None = None  # the samples of the first pass, if it ran at w
        self._averaged = False
        self._owned = False  # whether each tensor of `latest` has memory of its own
        self._first: Vector | None = None
        self._norm: tensors.HostValue | None = None

    def _read_groups(self, compares_losses: bool) -> None:
        base: Any = self.base
        own = getattr(base, "maximize", False)
        self.params: list[Tensor] = []
        self.maximized: list[Tensor] = []
        for group in base.param_groups:
            self.params += group["params"]
            if group.get("maximize", own):
                self.maximized += group["params"]
        if compares_losses and 0 < len(self.maximized) < len(self.params):
            raise ValueError(
                "The base optimizer has maximize=True in some of its parameter groups, and this method compares the "
                "loss of each sample, which cannot both grow and fall. Maximise all groups or none."
            )

    @property
    def gradients(self) -> float:
        """How many gradients were computed; one on a quarter of the samples counts as a quarter."""
        return math.fsum(self._gradients)

    @property
    def forwards(self) -> float:
        """The same for forward passes without a gradient."""
        return math.fsum(self._forwards)

    @property
    def begun(self) -> bool:
        """Whether a pass has run."""
        return self._ran > 0

    def gradient(self, point: Point, selection: Selection = EVERYTHING, *, synchronized: bool = True) -> Vector:
        """The gradient there, from a pass if it is not known."""
        found = point.known.get(selection)
        if found is None or not found.has_gradient or (synchronized and not found.synchronized):
            found = self._run(point, selection, synchronized, with_gradient=True)
        if found.gradient is None:
            raise RuntimeError(
                "A part reads a gradient after its memory was written into. A part that reads the plain gradient "
                "after the ascent declares reads_gradient = True."
            )
        return found.gradient

    def gradient_norm(self, point: Point, selection: Selection, *, synchronized: bool) -> float:
        """The norm of the gradient there, as a Python number."""
        gradient = self.gradient(point, selection, synchronized=synchronized)
        norm = self.norm() if self._ran == 1 else None
        return self._context.passes.work("sam/wait", float, gradient.norm() if norm is None else norm)

    def norm(self) -> tensors.HostValue | None:
        """``‖g‖`` of the first gradient of the step, on its way to the host; None while there is none."""
        if self._norm is None and self._first is not None:
            self._norm = tensors.HostValue(within("sam/norm", self._first.norm))
            self._first = None
        return self._norm

    @property
    def known_norm(self) -> tensors.HostValue | None:
        """The norm of the first gradient, if it was computed."""
        return self._norm

    @property
    def unread_gradient(self) -> Vector | None:
        """The first gradient, if its norm was not computed: it then lies on the parameters as the pass left it."""
        return self._first

    def seconds(self, point: Point, selection: Selection, *, synchronized: bool) -> Seconds:
        """How long steps take, once the device is through with the gradient there."""
        if self._context.stopwatch is None:
            raise RuntimeError("A part reads the seconds that steps take and does not declare reads_seconds = True.")
        self.gradient_norm(point, selection, synchronized=synchronized)
        return self._context.stopwatch.read(self.params[0].device)

    def scratch(self, point: Point, selection: Selection, *, synchronized: bool) -> Vector:
        """The gradient there, to be written into."""
        gradient = self.gradient(point, selection, synchronized=synchronized)
        if self.climbing and self._context.needs.gradient_after_ascent:
            return gradient.clone()
        if gradient is self._first:
            self.norm()
        values = list(gradient.values)  # the pass's own list says what lies on the parameters
        tensors.own_(values, gradient.params)
        if all([mine is left for mine, left in zip(values, gradient.values, strict=True)]):
            values = gradient.values
        if gradient:  # nothing to write into otherwise, and the step will be a plain one
            point.known[selection].gradient = None
        return Vector(gradient.params, values)

    def losses(self, point: Point, selection: Selection) -> Tensor:
        """The loss of each sample there, from a forward pass if it is not known."""
        found = point.known.get(selection)
        if found is None:
            found = self._run(point, selection, synchronized=True, with_gradient=False)
        if found.losses is None:
            raise RuntimeError("A part reads the loss of each sample and does not declare reads_losses = True.")
        return -found.losses if self.maximized else found.losses

    def share(self, selection: Selection) -> float:
        """The share of the batch that a selection is, once a pass has run on it at ``w``."""
        return self.here.known[selection].share

    def displaced(self, ascent: Ascent) -> Point:
        """The point that an ascent leads to; nothing moves yet."""
        direction = ascent.direction
        disposable = ascent.disposable
        if not self._context.needs.gradient_after_ascent and (direction.is_gradient or not self.climbing):
            disposable |= direction.is_gradient
            for point in (self.here, *(point() for point in self._points)):
                for result in () if point is None else point.known.values():
                    result.gradient = None  # nobody reads it after the ascent
        scales = self._context.radii.scales(ascent, self.radius)
        point = Point(self._context.displacement(direction.params, direction.values, scales, disposable))
        self._points.append(ref(point))
        return point

    def model(self) -> nn.Module:
        """The model that the passes run."""
        return self._context.passes.model()

    def names(self, params: list[Tensor]) -> list[Name]:
        """What the model calls parameters."""
        return self._context.names(params)

    def moves(self, p: Tensor) -> bool:
        """Whether a parameter's radius is above 0."""
        return bool(self._context.radii.moving([p], self.radius))

    def states(self) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """What the base optimizer's state has of each trained parameter."""
        state = self.base.state
        return [(p, found) for p in self.params if p.requires_grad and (found := state.get(p))]

    def recall(self, buffer: str) -> Vector:
        """What the base optimizer's state has under a name."""
        found = [(p, value) for p, state in self.states() if (value := state.get(buffer)) is not None]
        return Vector([p for p, _ in found], shards.local_parts([value for _, value in found]))

    def epsilon(self, ascent: Ascent) -> Vector:
        """``ε`` as a vector."""
        values = zip(ascent.direction.values, self._context.radii.scales(ascent, self.radius), strict=True)
        return Vector(ascent.direction.params, [value * scale.to(value.device) for value, scale in values])

    def _run(self, point: Point, selection: Selection, synchronized: bool, *, with_gradient: bool) -> _Result:
        """Run a pass, and take in what it leaves."""
        first = not self._ran
        look = self._look(point) if with_gradient and point.displaced is not None else None
        plan = self._plan(selection, synchronized, with_gradient, repeatable=self.repeatable or look is not None)
        if not first:
            self._make_room()
        known = self._began is selection  # the loss at w; a compiled model has then been compiled for these samples
        outcome = self._pass(plan, point, *([look] if look is not None and known else []), first=first)
        self._ran += 1
        share = 1.0 if outcome is None else outcome.share
        (self._gradients if with_gradient else self._forwards).append(share)
        self.climbed |= with_gradient and point.displaced is not None
        if outcome is None:
            raise NoOutcome
        if first:
            self.loss = outcome.loss
            self._began = selection if point.displaced is None else None
        if not outcome.complete:
            raise NoOutcome
        if with_gradient:
            self._averaged |= outcome.synchronized
            self._collect(owned=self.repeatable and (first or self.climbing))
        result = _Result(self.latest, outcome.losses, outcome.synchronized, with_gradient, share)
        point.known[selection] = result
        if look is not None and self.latest is not None:
            there, at_w = Left(outcome.loss, self.latest), [self.loss] if known else []
            settled = look.judge(there, at_w, partial(self._aside, plan))
            self._context.sight.judged(look, settled=settled)
        return result

    def _plan(self, selection: Selection, synchronized: bool, with_gradient: bool, *, repeatable: bool) -> Pass:
        """How the next pass is to be run, if it may run."""
        if self._ran and not self.repeatable:
            raise RuntimeError("A part asks for a second pass; a perturbation that reads one has own_pass = True.")
        if with_gradient and synchronized and self._averaged:
            refuse_memory_of_hooks(self.model())
        return Pass(
            self.params,
            selection,
            synchronize=synchronized,
            gradient=with_gradient,
            losses=self._context.needs.losses and selection is EVERYTHING,
            repeatable=repeatable,
            accumulating=self._accumulating,
            scaler=self._scaler,
        )

    def _make_room(self) -> None:
        """Take the gradients of the pass before off the parameters, as closures must not zero what is kept."""
        self.norm()
        if self.latest is not None and not self._owned:
            tensors.own_(self.latest.values, self.latest.params)  # a part may hold it through the next pass
        self.latest = None
        for p in self.params:
            p.grad = None
        if self._context.private:
            self.base.zero_grad()  # also those of samples, which the base optimizer would take for one batch's

    def _pass(self, plan: Pass, point: Point, *looks: AbstractContextManager[Any], first: bool) -> Outcome | None:
        """Run the closure at a point."""
        passes = self._context.passes
        if first and point.displaced is None:
            if not self.sharded:
                return passes.first(self._closure, plan)
            with fresh_shards(self.model()):
                return passes.first(self._closure, plan)
        run = passes.first if first else passes.again
        try:
            with FreshCaches(), self._place(point, looks):
                return run(self._closure, plan)
        except RuntimeError as error:
            explain_stale_graph(error)
            raise

    def _place(self, point: Point, looks: tuple[AbstractContextManager[Any], ...]) -> AbstractContextManager[Any]:
        """What to run a pass at a point within."""
        if point.displaced is not None and not looks and not self.sharded:
            return point.displaced
        return self._places(*looks, *([] if point.displaced is None else [point.displaced]))

    @contextmanager
    def _places(self, *places: AbstractContextManager[Any]) -> Iterator[None]:
        with ExitStack() as stack:
            if self.sharded:
                stack.enter_context(fresh_shards(self.model()))
            for place in places:
                stack.enter_context(place)
            yield

    def _look(self, point: Point) -> Look | None:
        """A look at the pass that is to run, if it is the first displaced one of its kind."""
        if not (moving := self._to_be_looked_at()):
            return None
        model, sight = self.model(), self._context.sight
        look = Look(model, cast(Displaced, point.displaced), moving)
        if look.processes.unknown:  # a process that ran more passes than another could wait for it in vain
            sight.judged(look, settled=True)
            return None
        return look if sight.is_everywhere(look.processes, model, looks=True) else None

    def look_away(self) -> None:
        """Tell processes that look at their displaced pass that this one runs none, for lack of a direction."""
        if moving := self._to_be_looked_at():
            processes = shards.Processes(self.model(), moving)
            if not processes.unknown:
                self._context.sight.is_everywhere(processes, self.model(), looks=False)

    def _to_be_looked_at(self) -> list[Tensor]:
        """The parameters that a displaced pass would move, if it is the first of its kind; none if it is not."""
        context = self._context
        if context.private:  # one more pass would leave its gradients of samples to the base optimizer
            return []
        if self.climbed or not context.passes.can_repeat() or not context.sight.needs_look(self._closure, self.model()):
            return []
        return context.radii.moving(self.params, self.radius)

    def _aside(self, plan: Pass, *places: AbstractContextManager[Any]) -> Left | None:
        """Run the closure once more, uncounted, and put the gradients back that lie on the parameters."""
        latest = cast(Vector, self.latest)  # a pass has just left it
        tensors.own_(latest.values, latest.params)
        for p in self.params:
            p.grad = None
        try:
            outcome = self._pass(plan, self.here, *places, first=False)
            return None if outcome is None or not outcome.complete else Left(outcome.loss, self._take(owned=False))
        finally:
            put_in_place(latest, self.params)

    def _collect(self, *, owned: bool) -> None:
        """Take in the gradients that a pass left."""
        self.latest, self._owned = self._take(owned=owned), owned
        if self._norm is None and self._first is None and self.latest.params:
            self._first = self.latest

    def _take(self, *, owned: bool) -> Vector:
        return collect(self.params, self._context.names, owned=owned, maximized=self.maximized, sharded=self.sharded)
