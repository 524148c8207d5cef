"""Every range refuses every bad value, and every option has a range: it says what it is, where, and what would do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from sam_algos import METHODS, PARTS, SAM, Interval, PNorm, Policy, SharpnessAware
from sam_algos.core import options
from sam_algos.core.options import Options, Range, plain, ranges

NOT_NUMBERS = ["0.1", None, True, np.bool_(True), math.nan, np.float32("nan"), [0.1], 1j]
NOT_INTEGERS = [1.0, np.float64(1), "1", None, True, math.nan, 1j]


@dataclass(frozen=True, repr=False)
class Every(Options):
    """One option of each range."""

    positive: options.Positive = 1.0
    non_negative: options.NonNegative = 1.0
    finite: options.Finite = 1.0
    unit: options.UnitInterval = 0.5
    fraction: options.Fraction = 0.5
    probability: options.Probability = 0.5
    probability_or_none: options.ProbabilityOrNone = None
    positive_or_none: options.PositiveOrNone = None
    order: options.NormOrder = 2.0
    count: options.PositiveInt = 1
    seed: options.Seed = 0
    name: options.NameOrNone = None
    integer: int = 0
    flag: bool = False
    scope: Literal["element", "layer"] = "element"
    policy: Policy = Interval()  # noqa: RUF009


BAD: dict[str, list[Any]] = {
    "positive": [0, 0.0, -0.05, math.inf, -math.inf, np.float32(0), *NOT_NUMBERS],
    "non_negative": [-1e-9, math.inf, -math.inf, np.int64(-1), *NOT_NUMBERS],
    "finite": [math.inf, -math.inf, *NOT_NUMBERS],
    "unit": [-0.1, 1, 1.0, 2.0, *NOT_NUMBERS],
    "fraction": [0, 0.0, -0.1, 1.1, *NOT_NUMBERS],
    "probability": [-0.1, 1.1, *NOT_NUMBERS],
    "probability_or_none": [-0.1, 1.1, "none", *(value for value in NOT_NUMBERS if value is not None)],
    "positive_or_none": [0, -1.0, math.inf, *(value for value in NOT_NUMBERS if value is not None)],
    "order": [0.99, 0, -2, -math.inf, *NOT_NUMBERS],
    "count": [0, -1, np.int64(0), *NOT_INTEGERS],
    "seed": [-1, *NOT_INTEGERS],
    "name": ["", "-", 1, True, 0.1, [], b"x"],
    "integer": NOT_INTEGERS,
    "flag": [0, 1, "yes", None],
    "scope": ["tensor", "", None, 1, []],
    "policy": [None, Interval, PNorm(), "interval"],
}
GOOD: dict[str, list[Any]] = {
    "positive": [1e-12, 1, 0.05, 1e6, np.float32(0.5), np.int64(3)],
    "non_negative": [0, 0.0, 3, np.float64(0)],
    "finite": [0, -1e9, 1e9, 10**300],
    "unit": [0, 0.0, 0.999],
    "fraction": [1e-9, 0.5, 1, 1.0],
    "probability": [0, 1, 0.5],
    "probability_or_none": [None, 0, 1, 0.5, np.float32(0.5)],
    "positive_or_none": [None, 1e-12, 3, np.float32(0.5)],
    "order": [1, 1.0, 1.001, 2, math.inf, np.float32("inf")],
    "count": [1, 10**6, np.int32(4)],
    "seed": [0, 10**9, 10**400, np.uint64(2**63)],
    "name": [None, "exp_avg", "-velocity"],
    "integer": [0, -3, 10**9, np.int8(-3)],
    "flag": [True, False],
    "scope": ["element", "layer"],
    "policy": [Interval(3)],
}
ALLOWED = {
    "positive": "a finite number > 0",
    "non_negative": "a finite number >= 0",
    "finite": "a finite number",
    "unit": "a number in [0, 1)",
    "fraction": "a number in (0, 1]",
    "probability": "a number in [0, 1]",
    "probability_or_none": "a number in [0, 1], or None",
    "positive_or_none": "a finite number > 0, or None",
    "order": "a number >= 1, infinity included",
    "count": "an integer >= 1",
    "seed": "an integer >= 0",
    "name": "a name, or None",
    "integer": "an integer",
    "flag": "True or False",
    "scope": "one of 'element', 'layer'",
    "policy": "a Policy",
}


@pytest.mark.parametrize("name", BAD)
def test_a_range_refuses_every_bad_value(name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(ValueError) as error:
            Every(**{name: value})
        assert str(error.value) == f"Every({name}={value!r}): {name} must be {ALLOWED[name]}."


@pytest.mark.parametrize("name", GOOD)
def test_a_range_accepts_every_good_value_as_a_python_number(name: str) -> None:
    for value in GOOD[name]:
        found = getattr(made := Every(**{name: value}), name)
        assert found == value
        assert type(found) in (int, float, bool, str, type(None), Interval)
        assert eval(repr(made), {"Every": Every, "Interval": Interval}) == made


@pytest.mark.parametrize("name", ["positive", "finite", "order"])
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "hugely negative"])
def test_an_integer_too_large_for_a_float_is_refused_with_a_short_message(name: str, value: int) -> None:
    with pytest.raises(ValueError) as error:
        Every(**{name: value})
    shown = f"Every({name}=an integer too large for a float): {name} must be {ALLOWED[name]}."
    assert str(error.value) == shown


def test_every_range_is_tested_here() -> None:
    """One that is added to the module has to be added above."""
    named = [hint.__metadata__[0] for hint in vars(options).values() if hasattr(hint, "__metadata__")]
    assert {found.allowed for found in named if isinstance(found, Range)} <= set(ALLOWED.values())
    assert BAD.keys() == GOOD.keys() == ALLOWED.keys() == ranges(Every).keys()


def test_plain_numbers_are_pythons_own() -> None:
    for value, expected in [(np.float32(0.5), 0.5), (np.int64(3), 3), (True, True), ("a", "a"), (None, None)]:
        assert plain(value) == expected
        assert type(plain(value)) is type(expected)
    assert math.isnan(plain(np.float64("nan")))


CLASSES = [*METHODS.values(), SharpnessAware, *(cls for axis in PARTS.values() for cls in axis.values())]
each_class = pytest.mark.parametrize("cls", CLASSES)
each_axis = pytest.mark.parametrize("cls", [SAM, SharpnessAware, *(next(iter(a.values())) for a in PARTS.values())])


@each_class
def test_every_option_of_every_class_refuses_a_foreign_value(cls: type[Any]) -> None:
    assert [*ranges(cls)] == [field.name for field in dataclasses.fields(cls) if field.init]
    value = object()
    for name, allowed in ranges(cls).items():
        message = f"{cls.__name__}({name}={value!r}): {name} must be {allowed.allowed}."
        for make in (cls, lambda **option: dataclasses.replace(cls(), **option)):
            with pytest.raises(ValueError) as error:
                make(**{name: value})
            assert str(error.value) == message


@each_axis
def test_numpy_numbers_become_python_numbers(cls: type[Any]) -> None:
    kinds = {float: np.float64, int: np.int64}
    numbers = {f.name: kinds[type(f.default)](f.default) for f in dataclasses.fields(cls) if type(f.default) in kinds}
    made = cls(**numbers)
    assert made == cls()
    assert repr(made) == repr(cls())
    assert all(type(getattr(made, name)) in kinds for name in numbers)


@each_axis
def test_an_unknown_option_is_refused(cls: type[Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'radius'"):
        cls(radius=1)


def test_every_class_reads_its_arguments_as_its_base_class_does() -> None:
    """So what the shared options do, and what an unknown one does, is tested with a few classes."""
    assert {cls.__new__ for cls in CLASSES} == {Options.__new__}
    for cls in METHODS.values():
        assert {"synchronize", "nonfinite", "ascent_fraction"} < ranges(cls).keys()
