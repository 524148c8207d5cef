from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sam_algos.recipes import RecipeError
from sam_algos.recipes.errors import unknown
from sam_algos.recipes.naming.names import construct, lookup


class Colour(enum.Enum):
    RED = "red"


class Thing:
    def __init__(
        self, rate: float, count: int = 1, name_of: str | None = None, on: bool = False,
        pair: tuple[float, float] = (0, 1), colour: Colour = Colour.RED,
        call: Callable[[], int] | None = None, many: Sequence[str] = (), anything: Any = None,
        mixed: int | str = 0, **swallowed: Any,
    ) -> None:  # fmt: skip
        if rate < 0:
            raise ValueError(f"Thing(rate={rate}): must be\n >= 0")
        self.given = (rate, count, name_of, on, pair, colour, many, anything, mixed)


def test_construct_passes_arguments_on() -> None:
    thing = construct("things.a", Thing, {"rate": 1, "pair": [1, 2], "colour": "red", "many": ["x"]})
    assert thing.given == (1, 1, None, False, [1, 2], Colour.RED, ["x"], None, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "things.a.rate: required"),
        ({"rate": 1, "cuont": 2}, "things.a: unknown argument 'cuont'; did you mean 'count'?"),
        ({"rate": -1}, "things.a: Thing(rate=-1): must be >= 0"),
        ({"rate": "1"}, "things.a.rate: must be a number, got '1'"),
        ({"rate": True}, "things.a.rate: must be a number, got True"),
        ({"rate": 1, "count": 1.5}, "things.a.count: must be an integer, got 1.5"),
        ({"rate": 1, "name_of": 3}, "things.a.name_of: must be text, or null, got 3"),
        ({"rate": 1, "on": 1}, "things.a.on: must be true or false, got 1"),
        ({"rate": 1, "pair": 3}, "things.a.pair: must be a list, got 3"),
        ({"rate": 1, "colour": "rde"}, "things.a.colour: must be one of 'red', got 'rde'; did you mean 'red'?"),
        ({"rate": 1, "call": "abc"}, "things.a.call: must be null, got 'abc'"),
        ({"rate": 1, "many": "abc"}, "things.a.many: must be a list, got 'abc'"),
        ({"rate": 1, "mixed": []}, "things.a.mixed: must be an integer, or text, got []"),
        ({"rate": float("nan")}, "things.a.rate: must be a number, got nan"),
        ({"rate": 1, "count": 1e3}, "things.a.count: must be an integer, got 1000.0; write 1000"),
        ({"rate": 1, "name": "thing"}, "things.a: unknown argument 'name'; did you mean 'name_of'?"),
        ({"rate": 1, "given_here": 1}, "things.a: unknown argument 'given_here'; valid: "),
    ],
)
def test_construct_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        construct("things.a", Thing, arguments)
    assert "\n" not in str(caught.value)


def test_supplied_arguments_are_not_the_recipes() -> None:
    with pytest.raises(RecipeError, match="unknown argument 'rate'"):
        construct("things.a", Thing, {"rate": 2}, rate=1)


def test_functions_may_take_anything_and_blame_the_recipe() -> None:
    def build(**options: Any) -> Any:
        return {}[options["deep"]]

    with pytest.raises(RecipeError, match=r"^model: 'x'$"):
        construct("model", build, {"deep": "x"})


@pytest.mark.parametrize("name", ["CosineThing", "cosine_thing", "cosine", "Cosine", "COSINE_THING"])
def test_lookup_takes_any_spelling(name: str) -> None:
    assert lookup("here", "thing", name, {"CosineThing": 1, "Other": 2}) == 1


def test_lookup_prefers_the_exact_name() -> None:
    assert lookup("here", "thing", "sgd", {"SGD": 1, "sgd": 2}) == 2


@pytest.mark.parametrize(
    ("name", "valid", "message"),
    [
        ("smm", ["sam", "mixup"], "did you mean 'sam'?"),
        ("qqqq", ["sam", "mixup"], "valid: mixup, sam"),
        ("x", [], "there are none"),
        (3, ["sam"], "unknown thing 3; valid: sam"),
    ],
)
def test_unknown(name: object, valid: list[str], message: str) -> None:
    assert str(unknown("here", "thing", name, valid)).endswith(message)
