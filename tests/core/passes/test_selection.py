"""Some of a batch's samples: which, how many, and in what structure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sam_algos.core.passes.selection import EVERYTHING, First, Rows, largest, sample_count, tensors_in
from tests.cases import same

X, Y = torch.arange(12.0).view(6, 2), torch.arange(6)
CHOSEN = torch.tensor([1, 4, 5])


def test_rows_are_taken_from_every_tensor_and_from_lists_with_an_entry_for_each() -> None:
    batch = {"x": X, "names": list("abcdef"), "pair": (Y, torch.ones(())), "scale": 2.0}
    found = Rows(CHOSEN, 6)(batch)
    expected = {"x": X[CHOSEN], "names": ["b", "e", "f"], "pair": (Y[CHOSEN], torch.ones(())), "scale": 2.0}
    assert same(found, expected)
    assert Rows(CHOSEN, 6).share(6) == 0.5


def test_rows_of_a_batch_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="chosen from a batch of 6, and this one has 5"):
        Rows(CHOSEN, 6)(X[:5])


def test_rows_of_equal_indices_are_two_selections() -> None:
    """Results are kept by selection; tensors do not compare as one truth value."""
    one, other = Rows(CHOSEN, 6), Rows(CHOSEN.clone(), 6)
    assert len({one: 1, other: 2}) == 2


def test_first_samples_of_equal_fractions_are_one_selection() -> None:
    assert len({First(0.5): 1, First(0.5): 2, First(0.25): 3}) == 2


@pytest.mark.parametrize(("fraction", "share"), [(0.5, 0.5), (0.25, 2 / 6), (1.0, 1.0), (0.6, 4 / 6)])
def test_the_share_of_the_first_samples_is_what_rounding_makes_of_it(fraction: float, share: float) -> None:
    assert First(fraction).share(6) == share
    assert len(First(fraction)(X)) == share * 6


def test_everything_is_the_batch_itself() -> None:
    batch: Any = {"x": object()}
    assert EVERYTHING(batch) is batch
    assert EVERYTHING.share(6) == 1


def test_the_largest_come_in_ascending_order_of_their_indices() -> None:
    values = torch.tensor([3.0, -1.0, 7.0, math.inf, 2.0])
    assert largest(values, 3).tolist() == [0, 2, 3]
    assert largest(values, 5).tolist() == [0, 1, 2, 3, 4]


def test_samples_are_counted_in_the_first_dimension_of_every_tensor() -> None:
    batch = {"x": X, "more": [Y, {"t": torch.ones(())}], "no": "tensor"}
    assert len(list(tensors_in(batch))) == 3
    assert sample_count(batch) == 6
    with pytest.raises(ValueError, match="tensors of 5 and 6 samples"):
        sample_count((X, Y[:5]))


class _OnlyItems(dict[str, Any]):
    """As Hugging Face's outputs are, a mapping that refuses to be updated as a whole."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("refused")


def test_a_mapping_that_refuses_updates_keeps_its_class() -> None:
    found = Rows(CHOSEN, 6)(_OnlyItems(x=X))
    assert type(found) is _OnlyItems and same(dict(found), {"x": X[CHOSEN]})
