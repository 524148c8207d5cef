from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.names import color, users_name
from benchmarks.plots import frontier
from benchmarks.report import verdict
from benchmarks.summary import (
    AGAIN,
    FLOOR,
    PLAIN,
    Quartiles,
    agrees,
    compare,
    interval,
    median_interval,
    summarize_accuracy,
    summarize_cost,
)

positive = st.floats(1e-3, 1e3)


def test_quartiles_of_known_values():
    assert Quartiles.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert Quartiles.of([7.0]) == (7.0, 7.0, 7.0)


def test_mixed_quartiles_weigh_plain_and_sharp_steps_by_their_number():
    values, kinds = [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0]
    assert Quartiles.mixed(values, kinds) == (1.25, 1.25, 1.25)


@given(st.lists(positive, min_size=1, max_size=20))
def test_mixed_quartiles_of_one_kind_are_the_quartiles(values: list[float]):
    assert Quartiles.mixed(values, [1.0] * len(values)) == pytest.approx(Quartiles.of(values))


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t table: 2 degrees of freedom, 97.5 %
    assert interval([4.0]) == (4.0, None)


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (5, 0), (6, 0), (9, 1), (25, 7)])
def test_interval_of_a_median_is_the_sign_tests(n: int, rank: int):
    """Ranks from the table of the sign test at 5 %, two-sided."""
    values = [float((7 * i) % n) for i in range(n)] if math.gcd(7, n) == 1 else [float(i) for i in range(n)]
    assert median_interval(values) == (rank, n - 1 - rank)


def columns(wall: list[float], gradients: list[float]) -> dict[str, list[float]]:
    return {"wall": wall, "gradients": gradients}


def test_compare_takes_ratios_round_by_round():
    drifting = [1.0, 2.0, 4.0, 8.0]
    plain = columns(drifting, [1.0] * 4)
    floor = columns([2 * t for t in drifting], [2.0] * 4)
    alternating = columns([2.2 * drifting[0], drifting[1], 2.2 * drifting[2], drifting[3]], [2.0, 1.0, 2.0, 1.0])
    row = compare(alternating, plain, floor)
    assert row["gradients"] == 1.5
    assert row["ratio"] == pytest.approx([1.6, 1.6, 1.6])
    assert row["over_floor"] == pytest.approx(0.1)
    assert compare(plain, plain, floor)["over_floor"] is None


def cost(again: float = 1.0) -> dict:
    """A table of eight rounds in which SAM takes 2.1, another SAM 2.3 and the floor 1.9 plain steps."""
    times = {
        PLAIN: (1.0, 1.0), AGAIN: (again, 1.0), FLOOR: (1.9, 2.0), "SAM(interval=1)": (2.1, 2.0),
        "Composer's SAM(interval=1)": (2.3, 2.0),
    }  # fmt: skip
    return {
        "samples": {name: columns([seconds] * 8, [gradients] * 8) for name, (seconds, gradients) in times.items()},
        "contenders": {name: {"line": name, "package": "x"} for name in times},
    }


def test_the_ideal_line_ends_at_the_measured_floor():
    summary = summarize_cost(cost())
    assert summary["floor"] == pytest.approx(1.9) and summary["rounds"] == 8
    assert summary["rows"]["SAM(interval=1)"]["ratio"].median > summary["floor"], "what is over it is above the line"


@pytest.mark.parametrize(
    ("again", "said"),
    [(1.0, "interval 0.913–0.913: ours is faster"), (1.02, "No verdict: two equal optimizers came out at a ratio")],
)
def test_a_verdict_needs_two_equal_optimizers_to_agree(again: float, said: str):
    assert said in verdict(summarize_cost(cost(again)))


def test_users_names_and_their_colors_are_distinct():
    from sam_algos import METHODS

    names = [users_name(key) for key in METHODS]
    assert len({color(name) for name in names}) == len(names)
    assert color("SAM, ascent_fraction") == color("SAM") != color("Composer's SAM")


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, True), (1.0099, True), (0.98, False), (1.02, False)])
def test_agreement_is_one_percent(ratio: float, expected: bool):
    assert agrees(ratio) is expected


@given(st.dictionaries(st.text(max_size=3), st.tuples(positive, positive), min_size=1))
def test_frontier_is_what_nothing_cheaper_beats(points: dict[str, tuple[float, float]]):
    best = frontier(points)
    for name, (cost, accuracy) in points.items():
        beaten = any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points.values())
        if not beaten:
            assert points[name] in [points[b] for b in best]
    assert sorted(best, key=lambda name: points[name][1]) == best


def run(variant: str, seed: int, curve: list[list[float]]) -> dict:
    seconds, accuracy = curve[-1]
    return {
        "variant": variant, "seed": seed, "curve": curve, "accuracy": accuracy, "seconds": seconds,
        "gradients": 2.0 if variant == "SAM" else 1.0, "steps": 10,
    }  # fmt: skip


def test_accuracy_measures_time_to_the_plain_optimizers_best_accuracy():
    runs = [
        run("plain", 0, [[1.0, 0.6], [2.0, 0.5]]),
        run("plain", 1, [[1.0, 0.8], [2.0, 0.7]]),
        run("SAM", 0, [[2.0, 0.6], [4.0, 0.9]]),
        run("SAM", 1, [[2.0, 0.1], [4.0, 0.2]]),
    ]
    summary = summarize_accuracy(runs)
    assert summary["target"] == pytest.approx(0.7)
    sam = summary["rows"]["SAM"]
    assert (sam["to_target"], sam["reached"], sam["n"], sam["work"]) == (4.0, 1, 2, 2.0)
    json.dumps(summary, allow_nan=False)


def test_accuracy_without_a_plain_training_has_no_target():
    summary = summarize_accuracy([run("0.1", 0, [[1.0, 0.5]])])
    assert summary["target"] is None and summary["rows"]["0.1"]["reached"] == 0


@pytest.mark.parametrize(("duration", "expected"), [("40ep", "80ep"), ("7ba", "14ba"), (3, 6)])
def test_twice(duration: int | str, expected: int | str):
    from benchmarks.accuracy import twice

    assert twice(duration) == expected
