"""A forward pass on some of a microbatch's samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sam_algos.core.passes.selection import EVERYTHING, Rows, Selection, map_tensors, sample_count

__all__ = ["Microbatch"]


class Microbatch:
    """One forward pass on some of a microbatch's samples.

    Attributes:
        size: The number of its samples.
        count: The number of selected samples. If fewer than two are selected, others run with them.
        rows: The samples that run.
        weight: A factor for the loss, as Composer weighs microbatches by their whole sizes.
        losses: The loss of each selected sample, if asked for.
    """

    def __init__(self, batch: Any, selection: Selection, offset: int) -> None:
        self.whole = batch
        self.size = sample_count(batch)
        self.weight = 1.0
        self.losses: Tensor | None = None
        self.outputs: tuple[Any, Any] = (None, None)  # whole and narrow
        self.loss: Any = None
        rows: Any
        if isinstance(selection, Rows):
            rows = _within(selection, offset, self.size)
            self.weight = len(rows) * selection.size / (self.size * len(selection.indices))
        else:
            rows = selection.rows(self.size)
        self.count = len(range(*rows.indices(self.size))) if isinstance(rows, slice) else len(rows)
        self._of_the_loss: _Fixed | None = None
        if self.count < 2 and isinstance(rows, Tensor):  # BatchNorm needs two, and an empty pass has to run too
            chosen = rows.tolist()
            others = [i for i in range(min(2, self.size)) if i not in chosen]
            run = sorted([*chosen, *others[: 2 - len(chosen)]])
            rows = torch.tensor(run)
            self._of_the_loss = _Fixed(torch.tensor([run.index(i) for i in chosen])) if chosen else None
        self.rows = rows
        self._select = None if selection is EVERYTHING else _Fixed(self.rows)

    def narrow(self, batch: Any) -> Any:
        """The chosen samples of a batch."""
        return batch if self._select is None else self._select(batch)

    def widen(self, outputs: Any) -> Any:
        """Outputs with a row for each sample of the microbatch."""
        if self._select is None or not (isinstance(outputs, Tensor) and outputs.ndim):
            whole = outputs
        else:
            whole = outputs.new_zeros((self.size, *outputs.shape[1:]))
            whole[self.rows] = outputs
        self.outputs = whole, outputs
        return whole

    def of_the_loss(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        """Outputs and batch without the samples that were not selected but had to run."""
        if (chosen := self._of_the_loss) is None:
            return outputs, batch
        return chosen(outputs), chosen(batch)

    def narrow_outputs(self, outputs: Any) -> Any:
        """Outputs without the rows that were not run: the model's own outputs, unless an algorithm changed them."""
        whole, narrow = self.outputs
        if outputs is whole:
            return narrow
        return map_tensors(outputs, lambda t: t[self.rows] if len(t) == self.size else t)


class _Fixed(Selection):
    """Selects fixed rows of a batch, whatever its size."""

    def __init__(self, rows: slice | Tensor) -> None:
        self._rows = rows

    def rows(self, size: int) -> slice | Tensor:
        return self._rows


def _within(selection: Rows, offset: int, size: int) -> Tensor:
    """The chosen rows that lie in a microbatch, as indices into the microbatch."""
    chosen = selection.indices
    return chosen[(chosen >= offset) & (chosen < offset + size)] - offset
