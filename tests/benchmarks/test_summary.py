from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.names import color, users_name
from benchmarks.plots import frontier
from benchmarks.report import _cost as table_of_cost
from benchmarks.report import verdict
from benchmarks.results import BenchmarkError
from benchmarks.study import FRESH, Job, Study, scores
from benchmarks.summary import (
    AGAIN,
    FLOOR,
    PLAIN,
    Quartiles,
    agrees,
    compare,
    extra,
    interval,
    median_interval,
    summarize_cost,
    summarize_study,
    summarize_targets,
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


def timed(outside: list[float], gradients: list[float]) -> dict[str, list[float]]:
    return {"outside": outside, "gradients": gradients}


def test_extra_is_what_a_sharp_step_spends_beyond_the_floor_in_units():
    """A base step of one second; sharp steps add 4 and 6 times half a second, the plain one nothing."""
    floor = timed([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert extra(timed([3.0, 1.0, 4.0], [2.0, 1.0, 2.0]), floor, unit=0.5) == (5.0, 4.0, 6.0)
    assert extra(timed([1.5] * 3, [1.0] * 3), floor, unit=0.5) == (1.0, 1.0, 1.0), "of all steps where none is sharp"
    assert extra({"gradients": [2.0] * 3}, floor, unit=0.5) is None


def with_cpu_times() -> dict:
    """A table in which the wall clock sees twice the CPU time, and every SAM step adds 0.1 s, two units."""
    table = cost()
    for name, columns in table["samples"].items():
        columns["cpu"] = [seconds / 2 for seconds in columns["wall"]]
        columns["wall"] = [seconds * (1 + i) for i, seconds in enumerate(columns["wall"])]
        columns["outside"] = [0.3 if "SAM" in name else 0.2] * len(columns["cpu"])
    table["contenders"][PLAIN]["package"] = "torch"
    return {**table, "title": "x", "parameters": 1, "clock": "cpu", "unit": {"wall": [9.0], "cpu": [0.05]}}


def test_a_table_in_cpu_time_is_summarized_in_cpu_time():
    summary = summarize_cost(with_cpu_times())
    assert summary["rows"]["SAM(interval=1)"]["ms"].median == pytest.approx(1050)
    assert summary["floor"] == pytest.approx(1.9) and summary["unit"] == 0.05
    assert summary["against"]["Composer's SAM(interval=1)"] == pytest.approx([2.1 / 2.3] * 3)


def test_a_table_shows_the_unit_where_it_was_measured():
    shown = table_of_cost(with_cpu_times())
    column = shown.header.index("extra, in units of norm + write")
    cells = {row[0]: row[column] for row in shown.rows}
    assert cells["SAM(interval=1)"] == "2.00 (2.00 to 2.00)" and cells[PLAIN] == "–"
    text = " ".join(shown.notes)
    assert "Times are CPU times of the process." in text and "other memory (50 ms here)" in text
    old = table_of_cost({**cost(), "title": "x", "parameters": 1})
    assert not [title for title in old.header if "extra" in title] and "CPU time" not in " ".join(old.notes)


def test_a_step_by_hand_is_compared_with_the_method_that_takes_the_same():
    table = cost()
    for name, seconds in {"MomentumSAM()": 1.5, "Momentum-SAM in fifteen lines": 1.2}.items():
        table["samples"][name] = columns([seconds] * 8, [1.0] * 8)
        table["contenders"][name] = {"line": name, "package": "x"}
    text = verdict(summarize_cost(table))
    assert "Momentum-SAM in fifteen lines: MomentumSAM() / its 1.250, 95 % interval 1.250–1.250: ours is slower" in text


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


STUDY = {
    "recipe": "", "lengths": ["1ep", "2ep"], "space": {"lr": [1, 2]}, "trials": 2, "finalists": 1, "choice_seeds": 1,
    "overrides": {},
}  # fmt: skip
GROWN = {"contenders": {"SGD": {}, "SAM": {"rho": [1, 2]}}, "baselines": ["SGD"], "seeds": 2}


def trained(study: Study, contender: str, length: str, trial: int, seed: int, accuracy: float) -> dict:
    return {
        "job": [contender, length, trial, seed], "chosen": study.configuration(contender, trial), "steps": 10,
        "accuracy": accuracy, "train_accuracy": 1.0, "gradients": 20 if contender == "SAM" else 10, "forwards": 0,
        "cpu_seconds": 3.0 if length == "2ep" else 1.0,
    }  # fmt: skip


def finished(accuracy: Callable[[Job], float]) -> tuple[Study, list[dict]]:
    """A study whose every run has the accuracy that a function of the job gives."""
    study, runs = Study(**STUDY, **GROWN), []
    while todo := study.plan(scores(runs)):
        runs.append(trained(study, *todo[0], accuracy(todo[0])))
    return study, runs


def test_a_study_chooses_on_validation_images_and_compares_seed_by_seed():
    def accuracy(job: Job) -> float:
        if job.seed < FRESH:  # the second configuration looks better, and the longer training
            return 0.5 + 0.1 * job.trial + (0.01 if job.length == "2ep" else 0.0)
        return {"SGD": 0.7, "SAM": 0.8}[job.contender] + 0.1 * (job.seed - FRESH)

    _, runs = finished(accuracy)
    assert all(run["job"][2] == 1 for run in runs if run["job"][3] >= FRESH)
    rows = summarize_study(STUDY, {"study": GROWN, "runs": runs})
    assert [(row["contender"], row["length"], row["best"]) for row in rows] == [
        ("SGD", "1ep", False), ("SGD", "2ep", True), ("SAM", "1ep", False), ("SAM", "2ep", True),
    ]  # fmt: skip
    sam = rows[3]
    assert sam["accuracy"][0] == pytest.approx(0.85) and sam["accuracy"][1] > 0.1
    assert sam["against"]["SGD"] == pytest.approx((0.1, 0.0), abs=1e-9)
    assert (sam["gradients"], sam["cpu_seconds"], rows[0]["cpu_seconds"]) == pytest.approx((2.0, 1.0, 1 / 3))
    json.dumps(rows, allow_nan=False)


def test_a_study_gives_every_contender_the_same_schedules_and_the_finalists_more_seeds():
    study = Study(**{**STUDY, "trials": 3, "choice_seeds": 3, "finalists": 2}, **GROWN)
    shared = [[study.configuration(name, trial)["lr"] for trial in range(3)] for name in ("SGD", "SAM")]
    assert shared[0] == shared[1] and set(shared[0]) == {1, 2}
    jobs, done = [], {}
    while todo := study.plan(done):
        jobs.append(todo[0])
        done[todo[0]] = float(todo[0].trial)
    for length in study.lengths:
        chosen = {job.trial for job in jobs if job.length == length and 1 <= job.seed < FRESH}
        assert chosen == {1, 2}
        assert {job.trial for job in jobs if job.length == length and job.seed >= FRESH} == {2}
    assert len(jobs) == len(set(jobs)) == 2 * 2 * (3 + 2 * 2 + 2)


def test_a_study_tests_on_validation_images_until_everything_is_chosen():
    study = Study(**STUDY, **GROWN)
    parts = [study.overrides_of(Job("SGD", "1ep", 0, seed)) for seed in (0, FRESH)]
    assert "train_dataset.evaluate=validation" in parts[0] and "train_dataset.evaluate=test" in parts[1]


def test_targets_are_compared_with_the_plain_runs_beside_them():
    seconds = {"target_fraction=0.2": 7.0, "plain": 2.0, "target_overhead=0.1": 3.3, "plain, after": 4.0}
    figures = {"early": 0.2, "fraction": 0.2, "least": 0.19, "most": 0.21}
    runs = [
        {"variant": name.split(",")[0], "seed": seed, "turn": turn, "seconds": value, **figures}
        for seed in (0, 1)
        for turn, (name, value) in enumerate(seconds.items())
    ]
    rows = summarize_targets(runs)
    assert rows["target_fraction=0.2"] == {"n": 2, **figures, "overhead": None}
    assert rows["target_overhead=0.1"]["overhead"] == pytest.approx((0.1, 0.0), abs=1e-12)
    assert summarize_targets(runs[:3])["target_overhead=0.1"]["overhead"] is None, "its plain run after is to come"


def test_differences_are_taken_seed_by_seed_where_both_have_been_trained():
    study, runs = finished(lambda job: 0.1 * (job.seed % 7) + (0.01 if job.contender == "SAM" else 0.0))
    three = {**GROWN, "seeds": 3}
    more = [trained(study, "SGD", length, 1, FRESH + 2, 0.9) for length in study.lengths]
    by_chance = [run for run in runs if run["job"][:2] != ["SAM", "1ep"]][::-1]
    rows = summarize_study(STUDY, {"study": three, "runs": [*more, *by_chance, *runs]})
    assert rows[-1]["against"]["SGD"][0] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds: must be an integer in [2, 999], got 1"),
        ({"choice_seeds": FRESH}, "choice_seeds: must be an integer in [1, 999], got 1000"),
        ({"trials": "many"}, "trials: must be an integer in [1, 999], got 'many'"),
        ({"lengths": "8ep"}, "lengths: must be a list that is not empty, got '8ep'"),
        ({"space": {"lr": 1}}, "space.lr: must be a list that is not empty, got 1"),
        ({"contenders": {"SGD": None}}, "contenders.SGD: must be a mapping, {} for the plain recipe, got None"),
        ({"baselines": ["SDG"]}, "baselines: 'SDG' must be one of SGD, SAM"),
        ({"overrides": {"lr": 3}}, "overrides: lr is the study's own to choose"),
        ({"overrides": {"seed": 3}}, "overrides: seed is the study's own to choose"),
    ],
)
def test_wrong_studies(change: dict, message: str):
    with pytest.raises(BenchmarkError) as error:
        Study(**{**STUDY, **GROWN, **change})
    assert str(error.value) == message
