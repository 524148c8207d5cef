"""Tiny measurements through the command line's own functions; what they measure is not looked at."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import environment, gpu, loops, targets, timing, workloads
from benchmarks.__main__ import main, parse, run
from benchmarks.contenders import contenders
from benchmarks.report import tables
from benchmarks.results import BenchmarkError, load_result
from benchmarks.summary import AGAIN, FLOOR, PHASES, PLAIN, REST
from sam_algos import METHODS

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own
]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "copy_bandwidth", lambda: 1e10)
    monkeypatch.setattr(timing, "WARM_UP", 0)
    monkeypatch.setattr(workloads, "mlp", lambda: nn.Linear(784, 10))


def measure(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    args = parse([*arguments, "--out", str(tmp_path), "--name", "x"])
    for path in run(args):
        assert path.stat().st_size > 0
    return json.loads((tmp_path / "x.json").read_text())


def shown(tmp_path: Path) -> dict[str, dict[str, list[str]]]:
    """The rows of all tables of the result, by title and name."""
    found = tables(load_result(tmp_path / "x.json"))
    return {table.title: {name: list(cells) for name, *cells in table.rows} for table in found}


COST = ("cost", "model.width=2", "--seconds", "0", "--rounds", "2")


def test_cost_of_a_recipe_in_the_trainer(tmp_path: Path):
    result = measure(tmp_path, *COST, "--modes", "trainer")
    [rows] = shown(tmp_path).values()
    assert result["complete"] and list(result["data"]) == ["recipe/trainer"]
    gradients = {name: float(cells[0]) for name, cells in rows.items()}
    assert list(gradients)[:4] == [PLAIN, AGAIN, "plain, fused=True", FLOOR]
    assert gradients[PLAIN] == gradients["AESAM(lambda=inf)"] == gradients["SSSAM(probability=0)"] == 1
    assert gradients[FLOOR] == gradients["SAM(interval=1)"] == gradients["AESAM(lambda=-inf)"] == 2
    assert gradients["Composer's SAM(interval=2)"] == gradients["LookSAM(k=2)"] == 1.5


@pytest.mark.parametrize("optimizer", ["adamw", "decoupled_adamw", "decoupled_sgdw"])
def test_cost_with_other_optimizers(tmp_path: Path, optimizer: str):
    (tmp_path / "recipe.yaml").write_text(f"base: digits/base\noptimizer: {{name: {optimizer}, lr: 0.001}}\n")
    measure(tmp_path, "cost", str(tmp_path / "recipe.yaml"), *COST[1:], "--modes", "bare", "--quick")
    [rows] = shown(tmp_path).values()
    assert ("plain, fused=True" in rows) == (optimizer == "adamw")
    assert float(rows["pytorch_optimizer's SAM"][0]) == 2


def test_cost_in_a_bare_loop_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = ("cost", "--workloads", "mlp", "--modes", "bare", "--seconds", "0", "--rounds")
    turns = iter(range(10**6))
    turn = timing.Rotation.turn

    def interrupted(self: timing.Rotation) -> str:
        if next(turns) == 70:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(timing.Rotation, "turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, *arguments, "6")
    kept = load_result(tmp_path / "x.json")
    measured = len(kept.data["mlp/bare"]["samples"][PLAIN]["wall"])
    assert not kept.complete and measured >= 1
    with pytest.raises(BenchmarkError, match="other settings"):
        measure(tmp_path, *arguments, "2", "--resume")
    samples = measure(tmp_path, *arguments, "6", "--resume")["data"]["mlp/bare"]["samples"]
    assert {len(columns["wall"]) for columns in samples.values()} == {6}
    assert samples[PLAIN]["wall"][:measured] == kept.data["mlp/bare"]["samples"][PLAIN]["wall"]
    text = (tmp_path / "x.md").read_text()
    assert "### MLP" in text and "| SAM(interval=1) | 2.00 |" in text and "| CPU |" in text


def test_cost_of_a_small_network_beside_fifteen_lines(tmp_path: Path):
    result = measure(tmp_path, "cost", "--workloads", "mnist1d", "--modes", "bare", "--seconds", "0", "--rounds", "2")
    table = result["data"]["mnist1d/bare"]
    assert table["parameters"] == 40 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    assert {len(column) for column in table["unit"].values()} == {2} and min(table["unit"]["cpu"]) > 0
    [rows] = shown(tmp_path).values()
    gradients = {name: float(cells[0]) for name, cells in rows.items()}
    assert (gradients["SAM in fifteen lines"], gradients["Momentum-SAM in fifteen lines"]) == (2, 1)
    assert gradients["Composer's SAM(interval=1)"] == 2
    extra = {name: cells[-1] for name, cells in rows.items()}
    assert {name for name, cell in extra.items() if cell == "–"} == {*FROM_TORCH, "ESAM()"}


FROM_TORCH = (PLAIN, AGAIN, "plain, fused=True", FLOOR)

TWO_PROCESSES = """
import sys
from torch import nn
from benchmarks import environment, timing, workloads
from benchmarks.__main__ import parse, run
environment.copy_bandwidth, timing.WARM_UP, workloads.mlp = lambda: 1e10, 0, lambda: nn.Linear(784, 10)
arguments = "cost --workloads mlp --modes ddp --seconds 0 --rounds 1 --name x --out".split()
run(parse([*arguments, sys.argv[1]]))
"""


def test_cost_with_two_processes(tmp_path: Path):
    """In a process of its own, as a fork of one that has other threads may wait for ever."""
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    done = subprocess.run(command, cwd=environment.ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "SAM(synchronize=True)" in load_result(tmp_path / "x.json").data["mlp/ddp"]["samples"]


class EndsInTheOther:
    """Ends the process that it is sent to: before that has begun, or by an error while the other one waits."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun

    def __reduce__(self) -> Any:
        return (partial, (os._exit,)) if self.begun else (os._exit, (3,))

    def __call__(self, optimizer: Any) -> Any:
        return loops.Seat(optimizer)


@pytest.mark.parametrize("begun", [False, True])
def test_a_second_process_that_ends_is_an_error_at_once(begun: bool):
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    task = workloads.Task(network, optimizer, itertools.repeat((torch.ones(3, 2), torch.zeros(3, dtype=torch.long))))
    chosen = {PLAIN: contenders(optimizer, mode="ddp", essential=False)[PLAIN]}
    rotation = timing.Rotation([PLAIN], {}, seconds=0, rounds=9, title="")
    with pytest.raises(BenchmarkError, match=f"The second process ended with exit status {1 if begun else 3}"):
        loops.run("ddp", task, chosen, rotation, EndsInTheOther(begun))


def test_a_method_that_refuses_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Choosy(METHODS["sam"]):
        def wrap(self, *args: Any, **options: Any) -> Any:
            raise ValueError("Choosy: not this one")

    monkeypatch.setitem(METHODS, "choosy", Choosy)
    measure(tmp_path, "cost", "--workloads", "mlp", "--modes", "bare", "--seconds", "0", "--rounds", "1", "--quick")
    text = (tmp_path / "x.md").read_text()
    assert "| Choosy() |" not in text and "Left out: Choosy(). Choosy: not this one" in text


def test_phases_of_a_recipe(tmp_path: Path):
    result = measure(tmp_path, "phases", *COST[1:])
    for mode in ("bare", "trainer"):
        ranges = result["data"][f"recipe/{mode}"]["ranges"]
        for name in (PLAIN, "SAM(interval=1)", "Composer's SAM(interval=1)"):
            assert set(ranges[name]) == {*PHASES, REST}
            assert all(min(ranges[name][phase]) > 0 for phase in ("pass", "base step", REST))
    assert "pytorch_optimizer's SAM" in result["data"]["recipe/bare"]["ranges"]


STUDY = """
recipe: digits/base
lengths: [1ba, 2ba]
trials: 1
finalists: 1
choice_seeds: 1
seeds: {seeds}
baselines: [SGD]
overrides: {{model.width: 2}}
space: {{optimizer.weight_decay: [0.1]}}
contenders: {{SGD: {{}}, SAM: {{algorithms.sam.rho: [{rho}]}}}}
"""


def study(tmp_path: Path, *options: str, seeds: int = 2, rho: float = 0.5) -> dict[str, Any]:
    (tmp_path / "small.yaml").write_text(STUDY.format(seeds=seeds, rho=rho))
    return measure(tmp_path, "study", str(tmp_path / "small.yaml"), *options)


def test_a_study_trains_what_is_missing(tmp_path: Path):
    result = study(tmp_path, "--jobs", "2")
    runs = result["data"]["runs"]
    assert result["complete"] and len(runs) == 2 * 2 * 3
    assert {tuple(run["job"]): run["gradients"] for run in runs}[("SAM", "2ba", 0, 1001)] == 4
    assert all(0 <= run["accuracy"] <= 1 and run["cpu_seconds"] > 0 for run in runs)
    more = study(tmp_path, "--resume", seeds=3)
    assert more["data"]["runs"][:12] == runs and len(more["data"]["runs"]) == 16
    assert "| **SAM** |" in (tmp_path / "x.md").read_text()
    with pytest.raises(BenchmarkError, match="the choices of 'SAM' have changed"):
        study(tmp_path, "--resume", rho=0.7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: x", "small.yaml: not a study: .*missing"),
        (STUDY.format(seeds=2, rho=-1).replace("rho", "roh"), "roh"),
        (STUDY.format(seeds=2, rho=1).replace("sam.", "smaa."), "unknown"),
    ],
)
def test_a_study_is_refused_before_anything_is_trained(tmp_path: Path, text: str, message: str):
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        measure(tmp_path, "study", str(tmp_path / "small.yaml"))
    assert not list(tmp_path.glob("x.*"))


def test_targets_trains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "TARGETS", {"target_fraction": (0.5,), "target_overhead": (0.1,)})
    arguments = ["targets", "model.width=2", "max_duration=5ba", "--seeds"]
    result = measure(tmp_path, *arguments, "1")
    variants = ["target_fraction=0.5", "plain", "target_overhead=0.1", "plain"]
    assert [run["variant"] for run in result["data"]["runs"]] == variants
    assert [run["fraction"] for run in result["data"]["runs"]][:2] == [pytest.approx(0.5, abs=0.2), 0]
    more = measure(tmp_path, *arguments, "2", "--resume")
    assert more["data"]["runs"][:4] == result["data"]["runs"] and len(more["data"]["runs"]) == 8
    assert "| target_overhead=0.1 | 2 |" in (tmp_path / "x.md").read_text()


def test_gpu_does_everything_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "NETWORKS", ("vit_s16",))
    monkeypatch.setattr(gpu, "tests", lambda seconds: {"pytest -m gpu": f"asked for {seconds:.0f} s"})
    arguments = ("gpu", "--device", "cpu", "--quick", "--minutes")
    first = measure(tmp_path, *arguments, "0")
    assert first["data"]["facts"]["Left out"]["vit_s16/bfloat16"] == "no time left: --resume continues"
    with pytest.raises(BenchmarkError, match="other settings"):
        measure(tmp_path, *arguments, "5", "--resume")
    found = measure(tmp_path, *arguments, "5", "--overwrite")
    assert [key for key in found["data"] if key != "facts"] == ["vit_s16/float32", "vit_s16/bfloat16"]
    table = found["data"]["vit_s16/bfloat16"]
    assert table["synchronisations"]["SAM(interval=1)"] == 0 and "SAM(interval=1)" in table["ranges"]
    text = (tmp_path / "x.md").read_text()
    assert "works: off by" in text and "CUDA graph of a step of SAM | RuntimeError" in text
    assert "| host synchronisations |" in text and "asked for 60 s" in text


def test_gpu_refuses_a_machine_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("benchmarks.__main__.restart_if_unprepared", lambda *_: None)
    assert main(["gpu", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == "error: gpu: this machine has no CUDA device that PyTorch can see\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("import sys; print('1 passed'); sys.exit(0)", {"pytest -m gpu": "1 passed (exit status 0)"}),
        ("print('FAILED a - b'); print('1 failed')", {"pytest -m gpu": "1 failed (exit status 0)", "FAILED a - b": ""}),
        ("import time; time.sleep(60)", {"pytest -m gpu": "not finished after 1 s"}),
    ],
)
def test_gpu_says_what_the_tests_say(output: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    original = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **options: original([sys.executable, "-c", output], **options))
    assert gpu.tests(1.0) == expected
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    assert gpu.tests(1.0) == {"pytest -m gpu": "pytest is not installed"}


WITHOUT_COMPOSER = """
import sys
sys.modules["composer"] = None
from torch import nn
from benchmarks import environment, timing, workloads
environment.copy_bandwidth, timing.WARM_UP, workloads.mlp = lambda: 1e10, 0, lambda: nn.Linear(784, 10)
try:
    import sam_algos.methods
except ImportError:
    sys.exit(77)
from benchmarks.__main__ import parse, run
arguments = "phases --modes bare --workloads mlp --seconds 0 --rounds 1 --name x --out".split()
run(parse([*arguments, sys.argv[1]]))
try:
    run(parse(["cost", "--modes", "trainer", "--name", "y", "--workloads", "mlp", "--out", sys.argv[1]]))
except ValueError as error:
    print(error)
"""


def test_bare_loops_do_without_composer(tmp_path: Path):
    command = [sys.executable, "-c", WITHOUT_COMPOSER, str(tmp_path)]
    done = subprocess.run(command, cwd=environment.ROOT, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("sam_algos itself needs Composer")
    assert done.returncode == 0, done.stderr
    assert "without Composer: --modes bare --workloads mlp" in done.stdout and (tmp_path / "x.md").exists()
