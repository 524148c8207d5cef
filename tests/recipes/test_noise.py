from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_algos.recipes.data.samples import LabelledImages, flip_labels


def clean(n: int, classes: int) -> LabelledImages:
    return LabelledImages([(torch.tensor(float(i)),) for i in range(n)], [i % classes for i in range(n)], classes)


@given(n=st.integers(1, 200), classes=st.integers(2, 12), fraction=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_exactly_the_fraction_is_wrong(n: int, classes: int, fraction: float, seed: int) -> None:
    before = clean(n, classes)
    after = flip_labels(before, fraction, seed)
    assert int((before.labels != after.labels).sum()) == round(fraction * n)
    assert after.labels.min() >= 0
    assert after.labels.max() < classes
    assert torch.equal(before.labels, clean(n, classes).labels)
    assert torch.equal(after.labels, flip_labels(before, fraction, seed).labels)


def test_wrong_classes_are_equally_likely() -> None:
    before = clean(20_000, 5)
    after = flip_labels(before, 0.5, seed=0)
    shift = (after.labels - before.labels) % 5
    counts = torch.bincount(shift[shift > 0], minlength=5)[1:]
    expected = 10_000 / 4
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-squared, 3 degrees, p = 0.001


def test_seed_changes_the_draw_and_images_stay() -> None:
    before = clean(100, 10)
    one, two = flip_labels(before, 0.4, seed=0), flip_labels(before, 0.4, seed=1)
    assert not torch.equal(one.labels, two.labels)
    assert [float(one[i][0]) for i in range(100)] == list(range(100))
    assert one[3] == (torch.tensor(3.0), int(one.labels[3]))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got"):
        flip_labels(clean(10, 2), fraction, seed=0)


def test_a_single_class_has_no_wrong_labels() -> None:
    with pytest.raises(ValueError, match=r"must be 0 without at least two classes, got 0\.5"):
        flip_labels(clean(10, 1), 0.5, seed=0)
    assert flip_labels(clean(10, 1), 0.0, seed=0).labels.tolist() == [0] * 10
