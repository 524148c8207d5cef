"""Tiny measurements through the command line's own functions; what they measure is not looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import environment, phases, timing, workloads
from benchmarks.__main__ import parse, run
from benchmarks.contenders import AGAIN, FLOOR, PLAIN
from benchmarks.results import BenchmarkError, load_result
from benchmarks.traffic import count
from benchmarks.watch import PHASES

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own
]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "copy_bandwidth", lambda: 1e10)
    monkeypatch.setattr(timing, "_WARM_UP", 1)
    monkeypatch.setattr(workloads, "_mlp", lambda: nn.Linear(784, 10))
    monkeypatch.setattr(phases, "Copy", lambda: environment.Copy(1000))


def measure(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    args = parse([*arguments, "--out", str(tmp_path), "--name", "x"])
    for path in run(args):
        assert path.stat().st_size > 0
    return json.loads((tmp_path / "x.json").read_text())


COST = ("cost", "model.width=2", "--seconds", "0", "--rounds", "2")


def test_cost_of_a_recipe_in_the_trainer(tmp_path: Path):
    result = measure(tmp_path, *COST, "--workloads", "recipe", "--modes", "trainer")
    table = result["summary"]["recipe/trainer"]
    assert result["complete"] and table["rounds"] == 2
    gradients = {name: row["gradients"] for name, row in table["rows"].items()}
    assert list(gradients)[:4] == [PLAIN, AGAIN, "plain, fused=True", FLOOR]
    assert gradients[PLAIN] == gradients["AESAM(lambda=inf)"] == gradients["SSSAM(probability=0)"] == 1
    assert gradients[FLOOR] == gradients["SAM(interval=1)"] == gradients["AESAM(lambda=-inf)"] == 2
    assert gradients["Composer's SAM(interval=2)"] == gradients["LookSAM(k=2)"] == 1.5
    assert 0 < table["base_share"] < 1


def test_cost_in_a_bare_loop_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = (*COST, "--workloads", "mlp", "--modes", "bare")
    turns = iter(range(10**6))
    turn = timing.Rotation.turn

    def interrupted(self: timing.Rotation) -> str:
        if next(turns) == 70:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(timing.Rotation, "turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, *COST[:-1], "12", *arguments[len(COST) :])
    kept = load_result(tmp_path / "x.json")
    measured = len(kept.data["mlp/bare"]["samples"][PLAIN]["wall"])
    assert not kept.complete and measured >= 1
    resumed = [*COST[:-1], "12", *arguments[len(COST) :], "--resume"]
    with pytest.raises(BenchmarkError, match="other settings"):
        measure(tmp_path, *arguments, "--resume")
    result = measure(tmp_path, *resumed)
    samples = result["data"]["mlp/bare"]["samples"]
    assert {len(columns["wall"]) for columns in samples.values()} == {12}
    assert samples[PLAIN]["wall"][:measured] == kept.data["mlp/bare"]["samples"][PLAIN]["wall"]
    text = (tmp_path / "x.md").read_text()
    assert "### MLP" in text and "| SAM(interval=1) | 2.00 |" in text and "| CPU |" in text


def test_phases(tmp_path: Path):
    result = measure(tmp_path, "phases", "--seconds", "0", "--rounds", "2", "--workloads", "mlp", "--tensors", "tiny")
    for mode in ("bare", "trainer"):
        sam = result["summary"][f"mlp/{mode}"]["rows"]["SAM(interval=1)"]
        assert set(sam["phases"]) == set(PHASES)
        assert all(sam["phases"][phase] > 0 for phase in ("first pass", "norm", "perturb", "second pass", "base step"))
    rows = result["summary"]["tensors/tiny"]["rows"]
    assert 32 <= rows["SAM()"]["bytes"] <= 32.5
    assert rows["AESAM, flat"]["bytes"] < 12.5, "packed, and read"
    assert rows["SAM()"]["ratio"] == 1


def test_pareto_trains_what_is_missing_and_its_report_needs_no_other_file(tmp_path: Path):
    arguments = ["pareto", "model.width=2", "max_duration=2ba", "--methods", "aesam", "--seeds"]
    result = measure(tmp_path, *arguments, "1")
    assert [run["method"] for run in result["data"]["runs"]] == ["plain", "plain, twice the epochs", "aesam"]
    assert [run["steps"] for run in result["data"]["runs"]] == [2, 4, 2]
    more = measure(tmp_path, *arguments, "2", "--resume")
    assert more["data"]["runs"][:3] == result["data"]["runs"] and len(more["data"]["runs"]) == 6
    page = tmp_path / "report.html"
    run(parse(["report", str(tmp_path / "x.json"), "--output", str(page)]))
    text = page.read_text()
    assert "data:image/svg+xml;base64," in text and "<td>aesam</td>" in text
    assert "http://" not in text and "https://" not in text


def test_pareto_refuses_a_method_that_is_not_there(tmp_path: Path):
    with pytest.raises(BenchmarkError, match=r"--methods nosam: must be one of sam, asam"):
        measure(tmp_path, "pareto", "--methods", "nosam")


def test_traffic_counts_what_operations_read_and_write():
    a, b, out = torch.ones(100), torch.ones(100), torch.empty(100)
    assert count(lambda: torch.add(a, b, out=out)).bytes == 1200
    assert count(lambda: a.add_(b)).bytes == 1200
    assert count(lambda: a.copy_(b)).bytes == 800
    assert count(lambda: a.clone()).bytes == 800
    assert count(lambda: torch._foreach_add_([a], [b])).bytes == 1200
    views = count(lambda: a.view(10, 10).detach())
    assert (views.bytes, views.operations) == (0, 0)
