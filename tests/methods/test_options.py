"""Every option refuses every bad value, and says what it is, where it was given and what would do."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from sam_algos import METHODS, Adaptive, GradientNorm, Interval, PNorm, Reuse, SharpnessAware
from sam_algos.core.options import ranges

NOT_NUMBERS = ["0.1", None, True, math.nan, [0.1], 1j]
NOT_INTEGERS = [1.0, "1", None, True, math.nan]

BAD: dict[str, list[Any]] = {
    "a finite number > 0": [0, 0.0, -0.05, math.inf, -math.inf, *NOT_NUMBERS],
    "a finite number >= 0": [-1e-9, math.inf, -math.inf, *NOT_NUMBERS],
    "a finite number": [math.inf, -math.inf, *NOT_NUMBERS],
    "a number in [0, 1)": [-0.1, 1, 1.0, 2.0, *NOT_NUMBERS],
    "a number in [0, 1]": [-0.1, 1.1, *NOT_NUMBERS],
    "a number >= 1, infinity included": [0.99, 0, -2, -math.inf, *NOT_NUMBERS],
    "an integer >= 1": [0, -1, *NOT_INTEGERS],
    "an integer >= 0": [-1, *NOT_INTEGERS],
    "an integer": NOT_INTEGERS,
    "True or False": [0, 1, "yes", None],
    "one of 'element', 'filter', 'layer'": ["tensor", "", None, 1, []],
    "one of 'pass', 'skip'": ["raise", "", None, True, []],
    "a Policy": [None, Interval, PNorm(), "interval"],
    "a Perturbation": [None, PNorm, Interval(), 0.05],
    "a Descent": [None, Reuse, PNorm()],
}
GOOD: dict[str, list[Any]] = {
    "a finite number > 0": [1e-12, 1, 0.05, 1e6],
    "a finite number >= 0": [0, 0.0, 3],
    "a finite number": [0, -1e9, 1e9],
    "a number in [0, 1)": [0, 0.0, 0.999],
    "a number in [0, 1]": [0, 1, 0.5],
    "a number >= 1, infinity included": [1, 1.0, 1.001, 2, math.inf],
    "an integer >= 1": [1, 10**6],
    "an integer >= 0": [0, 10**9],
    "an integer": [0, -3, 10**9],
}

CLASSES = [*METHODS.values(), SharpnessAware, Interval, GradientNorm, PNorm, Adaptive, Reuse]
OPTIONS = [(cls, name, allowed.allowed) for cls in CLASSES for name, allowed in ranges(cls).items()]


def cases(table: dict[str, list[Any]], otherwise: list[Any]) -> pytest.MarkDecorator:
    """Each option of each class with each of its values; ``otherwise`` for a range that the table lacks."""
    rows = [(c, name, allowed, v) for c, name, allowed in OPTIONS for v in table.get(allowed, otherwise)]
    ids = [f"{cls.__name__}({name}={value!r})" for cls, name, _, value in rows]
    return pytest.mark.parametrize(("cls", "name", "allowed", "value"), rows, ids=ids)


@cases(BAD, otherwise=[object])
def test_refuses(cls: type, name: str, allowed: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        cls(**{name: value})
    assert str(error.value) == f"{cls.__name__}({name}={value!r}): {name} must be {allowed}."


@cases(GOOD, otherwise=[])
def test_accepts(cls: type, name: str, allowed: str, value: Any) -> None:
    options = cls(**{name: value})
    assert getattr(options, name) == value
    assert eval(repr(options), {cls.__name__: cls}) == options


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_option_is_refused(cls: type) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'radius'"):
        cls(radius=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_replace_validates_too(cls: type) -> None:
    for name in ranges(cls):
        with pytest.raises(ValueError, match=rf"^{cls.__name__}\({name}="):
            dataclasses.replace(cls(), **{name: object()})


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_every_option_of_a_method_has_a_range(cls: type) -> None:
    assert [*ranges(cls)] == [field.name for field in dataclasses.fields(cls) if field.init]
    assert {"synchronize", "nonfinite"} < ranges(cls).keys()
