"""What the parts of every axis, and those that they hold, have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch.optim import Optimizer

from sam_algos.core.options import Options

if TYPE_CHECKING:
    from sam_algos.core.parts import Parts

__all__ = ["Memory", "Part", "buffers_of"]

Memory = Mapping[str, Any]
"""What a part remembers, by name: Python numbers and vectors, both equal on all ranks (see `Part.reads_gradient`)."""


class Part(Options, ABC):
    """Base of the parts of every axis.

    Attributes:
        reads_gradient: Whether it reads the plain gradient, that of the whole batch at ``w``, as more than a direction
            to climb: it is then synchronised between processes, as whatever is remembered of it has to be, and what a
            descent reads is kept through later passes (one copy of the parameters).
        reads_progress: Whether it reads ``step.progress``, so that the number of steps has to be known.
        reads_losses: Whether it reads ``step.losses``, so that the loss of each sample has to be known.
        reads_scale: Whether its answer depends on the scale of the gradient, other than in proportion: under a
            ``GradScaler`` the scale then has to be known.
        reads_seconds: Whether it reads ``step.seconds``, so that steps are timed. It reads them on the same steps on
            all processes, which there average their readings.
        buffers: Names of the vectors that it remembers. They live in the base optimizer's state, and so in its
            checkpoint; before the first step they are empty, which is zero.
    """

    reads_gradient: ClassVar[bool] = False
    reads_progress: ClassVar[bool] = False
    reads_losses: ClassVar[bool] = False
    reads_scale: ClassVar[bool] = False
    reads_seconds: ClassVar[bool] = False
    buffers: ClassVar[tuple[str, ...]] = ()

    def initial(self) -> Memory:
        """The numbers that it remembers before the first step: all that it will ever return, by name."""
        return {}

    def check(self, optimizer: Optimizer) -> None:
        """Refuse a base optimizer that it cannot work with.

        Raises:
            ValueError: If so.
        """

    def conflict(self, others: Parts) -> str | None:
        """Why it cannot be combined with these parts; None if it can."""
        return None

    def tree(self) -> Iterator[Part]:
        """This part and those that it holds."""
        yield self
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(inner := getattr(self, field.name), Part):
                yield from inner.tree()


def buffers_of(kind: type[Part]) -> set[str]:
    """The names of all vectors that parts of a kind remember, any of which a checkpoint may hold."""
    return {*kind.buffers}.union(*map(buffers_of, kind.__subclasses__()))
