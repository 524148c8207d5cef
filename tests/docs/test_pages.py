"""The pages of the site: their code runs, their links lead somewhere, their tables are complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from sam_algos import AESAM, METHODS, SSSAM, Cosine, Method
from sam_algos.command import main
from tests.cases import make_batches, make_model, steps, wrap

ROOT = Path(__file__).parents[2]
OTHERS = ("README.md", "yamls/README.md", "benchmarks/README.md", "COMPATIBILITY.md", "PARTS.md", "CONTRIBUTING.md")
PAGES = {page.name: page for page in sorted((ROOT / "docs").glob("*.md"))} | {name: ROOT / name for name in OTHERS}
EXECUTED_ELSEWHERE = {"frameworks.md", "migration.md", "CONTRIBUTING.md"}

each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    consoles = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [
        found.split("#")[0].split()
        for found in re.findall(r"^(?:.*/bin/)?sam-algos (.*)$", "".join(consoles), re.MULTILINE)
    ]


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page)])
def test_the_code_of_a_page_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in EXECUTED_ELSEWHERE:
        pytest.skip("executed by tests of its own")
    monkeypatch.chdir(tmp_path)
    if name == "logs.md":
        train_as_the_page_says(monkeypatch)
    names = {"__name__": name, "torch": torch}
    for number, block in enumerate(blocks(PAGES[name]), 1):
        exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), names)


def train_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setenv("MPLBACKEND", "svg")
    ((name, *arguments),) = commands(PAGES["logs.md"])
    assert main([name, *arguments, "max_duration=2ep", "save_folder=null"]) == 0


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if commands(page)])
def test_the_commands_of_a_page_are_valid(name: str) -> None:
    for command, *arguments in commands(PAGES[name]):
        if command in ("train", "compare"):  # without training
            options = next((i for i, argument in enumerate(arguments) if argument[:2] == "--"), len(arguments))
            command, arguments = "validate", arguments[:options]
        assert main([command, *arguments]) == 0


def test_the_figures_of_readme_are_those_of_the_committed_comparison() -> None:
    found = json.loads((ROOT / "benchmarks/results/compare-mnist1d/compare.json").read_text())
    gains = {row["method"]: row["difference"] for row in found["table"]}
    text = " ".join(PAGES["README.md"].read_text().split())
    for method, words in (("momentumsam", "Momentum-SAM is {} points more"), ("sam", "SAM {} points for twice")):
        assert words.format(f"{gains[method]['mean']:.1f} ± {gains[method]['half']:.1f}") in text
    assert {row["seed"] for row in found["results"]} == set(range(1000, 1016)) and "(16 seeds, 10,000 test" in text
    table = PAGES["benchmarks/README.md"].read_text()
    assert all(f"{row['value']['mean']:.1f} ± {row['value']['half']:.1f}" in table for row in found["table"])


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@each_page
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose)
    included = re.findall(r"^```\{include\} (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [link for link in [*links, *included] if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("name", "cls"), METHODS.items(), ids=METHODS)
def test_every_method_has_a_row_that_names_its_file_and_arguments(name: str, cls: type[Method]) -> None:
    rows = re.findall(rf"^\| \[`{cls.__name__}\((.*?)\)`\]\((.*?)\)", PAGES["methods.md"].read_text(), re.MULTILINE)
    ((arguments, file),) = rows
    assert (ROOT / "docs" / file).resolve() == ROOT.joinpath(*cls.__module__.split(".")).with_suffix(".py")
    assert {argument for argument in arguments.split(", ") if argument != "…"} <= set(cls.__dataclass_fields__)


def test_the_table_of_logged_keys_is_complete() -> None:
    keys = set(re.findall(r"`((?:sam|recalibration)/\w+)`", PAGES["logs.md"].read_text().split("## From the file")[0]))
    methods: list[Method] = [cls() for cls in METHODS.values()]
    methods += [SSSAM(schedule="trigonometric"), AESAM(target_overhead=0.5), AESAM(rho=Cosine(0.1, 0.0))]
    logged: set[str] = set()
    for method in methods:
        model = make_model("batchnorm")
        optimizer = wrap(method, model)
        for _ in steps(model, optimizer, make_batches(8)):
            logged |= set(optimizer.metrics)
    assert logged | {"recalibration/forwards"} == keys


@pytest.mark.parametrize(
    "name", [name for name, page in PAGES.items() if "```yaml" in page.read_text(encoding="utf-8")]
)
def test_the_recipes_of_a_page_are_valid(name: str, tmp_path: Path) -> None:
    found = re.findall(r"^ *```yaml\n(.*?)^ *```", PAGES[name].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for text in "---\n".join(found).split("---\n"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text if "base:" in text else f"base: digits\n{text}")
        own = [method for method in METHODS if f"  {method}:" in text]
        assert main(["validate", str(path), *(f"method={method}" for method in own[:1] if "method:" not in text)]) == 0
