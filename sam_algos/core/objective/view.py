"""What a part sees of the step that is being taken."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam_algos.core.objective.answers import Ascent
from sam_algos.core.objective.evaluation import Evaluation, Point
from sam_algos.core.objective.stopwatch import Seconds
from sam_algos.core.passes.selection import EVERYTHING, Group, Rows, Selection, largest
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.parameters import Name
from sam_algos.core.tensors.vector import Vector

__all__ = ["Step"]


class Step:
    """A view of the step: from a point near the weights ``w``, on some samples, among some parameters.

    `at`, `on` and `among` give other views and run nothing. Reading `gradient` or `losses` runs the pass at
    that point on those samples, once; a second reading gets the same. The first pass of the step counts for BatchNorm
    and metrics; all others repeat it, with the same random draws, without a trace.

    Attributes:
        index (int): Steps taken before this one, from 0.
        sharp (int): How many of them were sharp: a gradient was computed away from ``w``.
        progress (float | None): The share of training that is done, ``t / T`` in [0, 1]; None where ``T`` is unknown.
        memory (Mapping): The numbers that the part which is asked remembers.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        memory: Mapping[str, Any],
        *,
        synchronized: bool = True,
        point: Point | None = None,
        selection: Selection = EVERYTHING,
        params: Collection[Tensor] | None = None,
    ) -> None:
        self.index = evaluation.index
        self.sharp = evaluation.sharp
        self.progress = evaluation.progress
        self.memory = memory
        self._evaluation = evaluation
        self._synchronized = synchronized
        self._point = evaluation.here if point is None else point
        self._selection, self._params = selection, params

    @property
    def params(self) -> list[Tensor]:
        """The parameters that are trained, on all processes in the same order."""
        return [p for p in self._evaluation.params if p.requires_grad]

    @property
    def model(self) -> nn.Module:
        """The model that the passes run; to look at only."""
        return self._evaluation.model()

    @property
    def lr(self) -> float:
        """The learning rate of the base optimizer's first parameter group."""
        return float(self._evaluation.base.param_groups[0]["lr"])

    @property
    def lr_max(self) -> float:
        """What that rate is scheduled down from: its peak in a cycle (OneCycleLR), else where its schedule starts."""
        group = self._evaluation.base.param_groups[0]
        found = next((group[key] for key in ("max_lr", "initial_lr") if key in group), None)
        return float(self._evaluation.base.defaults["lr"] if found is None else found)

    @property
    def gradient(self) -> Vector:
        """The gradient here, before any clipping, of the parameters that received one; not to be written into.

        Raises:
            RuntimeError: If it was read before, written into (`scratch`), and no part declares ``reads_gradient``.
        """
        gradient = self._evaluation.gradient(self._point, self._selection, synchronized=self._synchronized)
        return gradient if self._params is None else gradient.among(self._params)

    @property
    def gradient_norm(self) -> float:
        """``‖g‖`` of `gradient` as a Python number, which waits for the device."""
        if self._params is None:
            return self._evaluation.gradient_norm(self._point, self._selection, synchronized=self._synchronized)
        return float(self.gradient.norm())

    def scratch(self) -> Vector:
        """The `gradient`, to be written into: its own memory where nobody reads it afterwards, else a copy."""
        gradient = self._evaluation.scratch(self._point, self._selection, synchronized=self._synchronized)
        return gradient if self._params is None else gradient.among(self._params)

    @property
    def losses(self) -> Tensor:
        """The loss of each sample here, detached; a forward pass unless the gradient was read before."""
        return self._evaluation.losses(self._point, self._selection)

    @property
    def seconds(self) -> Seconds:
        """How long plain and sharp steps take, equal on all processes.

        Runs the pass here and waits for it, so that the device has finished the last step when the time is taken.
        """
        return self._evaluation.seconds(self._point, self._selection, synchronized=self._synchronized)

    def at(self, ascent: Ascent) -> Step:
        """The view from the displaced weights ``w + ε``."""
        return self._moved(point=self._evaluation.displaced(ascent))

    def epsilon(self, ascent: Ascent) -> Vector:
        """What an ascent moves the weights by, ``ε``, each parameter by its own radius."""
        return self._evaluation.epsilon(ascent)

    def on(self, selection: Selection) -> Step:
        """The view on some of the batch's samples."""
        return self._moved(selection=selection)

    def split(self, m: int) -> Iterator[Step]:
        """The views on consecutive groups of ``m`` samples, of each microbatch where there are several.

        Whoever takes a view runs its pass at ``w``, which tells the `share` of the batch that it is of.

        Raises:
            ValueError: If microbatches have different sizes, so that some samples are in no group.
        """
        shares: list[float] = []
        while math.fsum(shares) < 1 - 1e-9:
            group = self.on(Group(m * len(shares), m))
            yield group
            shares.append(group.share)

    @property
    def share(self) -> float:
        """How much of the batch these samples are, in (0, 1]; known once a pass has run on them at ``w``."""
        return self._evaluation.share(self._selection)

    def on_largest(self, values: Tensor, count: int) -> Step:
        """The view on the ``count`` samples with the largest of ``values``, one for each sample."""
        return self.on(Rows(largest(values, count), len(values)))

    def among(self, params: Collection[Tensor]) -> Step:
        """The view among some parameters: its gradient is zero at the others, and they stay where they are."""
        return self._moved(params=params)

    def names(self, params: list[Tensor]) -> list[Name]:
        """What the model calls parameters, and the layers that they belong to."""
        return self._evaluation.names(params)

    def weights(self, params: list[Tensor]) -> list[Tensor]:
        """This rank's part of the value ``w`` of each parameter; not to be written into."""
        return shards.local_parts([p.data for p in params])

    def recall(self, buffer: str) -> Vector:
        """What the base optimizer's state has under a name, its own or remembered by a part; empty if nothing yet."""
        return self._evaluation.recall(buffer)

    def states(self) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """The trained parameters of which the base optimizer's state has anything, with what it has; to look at."""
        return self._evaluation.states()

    def moves(self, p: Tensor) -> bool:
        """Whether a parameter's radius is above 0: its group's own, or that of the step."""
        return self._evaluation.moves(p)

    def random(self, seed: int) -> random.Random:
        """A random stream of this step's own: equal on all processes and after a resume, apart from the global ones."""
        return random.Random(f"{seed}/{self.index}")

    def normal(self, seed: int) -> Vector:
        """A vector of standard normal numbers, drawn as by `random`; with sharded parameters, this rank's part."""
        bits = self.random(seed).getrandbits(63)
        params = self.params
        streams = {d: torch.Generator(d).manual_seed(bits) for d in {p.device for p in params}}
        return Vector(params, [shards.normal_like(p, streams[p.device]) for p in params])

    def view(self, memory: Mapping[str, Any], *, synchronized: bool) -> Step:
        """The same place as another part sees it."""
        return Step(
            self._evaluation,
            memory,
            synchronized=synchronized,
            point=self._point,
            selection=self._selection,
            params=self._params,
        )

    def _moved(
        self,
        point: Point | None = None,
        selection: Selection | None = None,
        params: Collection[Tensor] | None = None,
    ) -> Step:
        return Step(
            self._evaluation,
            self.memory,
            synchronized=self._synchronized,
            point=self._point if point is None else point,
            selection=self._selection if selection is None else selection,
            params=self._params if params is None else params,
        )
