from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pareto import summarize, twice
from benchmarks.plots import frontier
from benchmarks.summary import Quartiles, agrees, compare, interval, median_interval

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


def columns(wall: list[float], passes: list[float]) -> dict[str, list[float]]:
    return {"wall": wall, "cpu": wall, "passes": passes}


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


def run(method: str, seed: int, curve: list[list[float]]) -> dict:
    seconds, accuracy = curve[-1]
    return {
        "method": method, "seed": seed, "curve": curve, "accuracy": accuracy, "seconds": seconds,
        "cpu_seconds": seconds, "gradients": 2.0 if method == "sam" else 1.0, "steps": 10,
    }  # fmt: skip


def test_pareto_measures_time_to_the_plain_optimizers_best_accuracy():
    runs = [
        run("plain", 0, [[1.0, 0.6], [2.0, 0.5]]),
        run("plain", 1, [[1.0, 0.8], [2.0, 0.7]]),
        run("sam", 0, [[2.0, 0.6], [4.0, 0.9]]),
        run("sam", 1, [[2.0, 0.1], [4.0, 0.2]]),
    ]
    summary = summarize(runs)
    assert summary["target"] == pytest.approx(0.7)
    sam = summary["rows"]["sam"]
    assert (sam["to_target"], sam["reached"], sam["n"], sam["work"]) == (4.0, 1, 2, 2.0)
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(("duration", "expected"), [("40ep", "80ep"), ("7ba", "14ba"), (3, 6)])
def test_twice(duration: int | str, expected: int | str):
    assert twice(duration) == expected
