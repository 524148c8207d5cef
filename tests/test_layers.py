"""Folders say what their modules may import, and the package works with and without Composer."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sam_algos"
HAS_COMPOSER = importlib.util.find_spec("composer") is not None

# What each folder may import besides the standard library; a folder of ours stands for itself and those below it.
MAY_IMPORT = {
    "core": {"torch", "typing_extensions", "sam_algos.core"},  # the second comes with the first
    "methods": {"torch", "sam_algos.core", "sam_algos.method", "sam_algos.methods", "sam_algos.parts"},
    "method.py": {"torch", "composer", "sam_algos.core", "sam_algos.trainer"},
    "__init__.py": {
        "sam_algos.batchnorm",
        "sam_algos.core",
        "sam_algos.method",
        "sam_algos.methods",
        "sam_algos.parts",
    },
    "parts.py": {"sam_algos.core"},
    "batchnorm.py": {"torch", "sam_algos.core"},
    "trainer": {"torch", "composer", "sam_algos.batchnorm", "sam_algos.core", "sam_algos.method", "sam_algos.trainer"},
    "integrations/__init__.py": set(),
    "integrations/lightning.py": {"sam_algos.core", "sam_algos.method"},  # a mixin, for either of Lightning's names
    "integrations/transformers.py": {"torch", "transformers", "sam_algos.core", "sam_algos.method"},
}
WITHOUT_COMPOSER = "import sys; sys.modules['composer'] = None\n"


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_modules_import_what_their_folder_may(place: str) -> None:
    files = [PACKAGE / place] if place.endswith(".py") else list((PACKAGE / place).glob("**/*.py"))
    assert files
    for file in files:
        for name in imports(file):
            allowed = any(name == may or name.startswith(f"{may}.") for may in MAY_IMPORT[place])
            assert allowed or name.partition(".")[0] in sys.stdlib_module_names, f"{file}: {name}"


def modules_of_core() -> dict[str, Path]:
    """Every module of core by its name in the table of ``core/__init__.py``."""
    core = PACKAGE / "core"
    files = [file for file in core.glob("**/*.py") if file.name != "__init__.py"]
    return {".".join(file.relative_to(core).with_suffix("").parts): file for file in files}


def test_core_runs_one_way_in_the_order_of_its_table() -> None:
    """A module imports from the rows above its own only, in functions and for typing too."""
    modules = modules_of_core()
    named = re.findall(r"`([a-z_.]+)`", (PACKAGE / "core" / "__init__.py").read_text())
    order = list(dict.fromkeys(name for name in named if name in modules))
    assert set(order) == set(modules)
    for place, module in enumerate(order):
        for name in imports(modules[module]):
            name = name.removeprefix("sam_algos.core.")
            found = next((m for m in order if name == m or name.startswith(f"{m}.")), None)
            assert found is None or order.index(found) < place, f"{module} imports {found}"


def test_no_two_modules_of_core_share_a_name() -> None:
    names = [name.rpartition(".")[2] for name in modules_of_core()]
    assert len(set(names)) == len(names)


def test_every_integration_has_a_rule() -> None:
    files = {f"integrations/{path.name}" for path in (PACKAGE / "integrations").iterdir() if path.suffix == ".py"}
    assert files <= MAY_IMPORT.keys()


def test_tests_mirror_the_folders_of_the_package() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= {path.name for path in (ROOT / "tests").iterdir()}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_composer_every_method_wraps_and_trains() -> None:
    code = WITHOUT_COMPOSER + (
        "import torch, sam_algos\n"
        "for name, cls in sam_algos.METHODS.items():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))\n"
        "    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\n"
        "    optimizer = cls().wrap(base, model=model, total_steps=3)\n"
        "    x = torch.randn(4, 2)\n"
        "    def closure(samples=lambda batch: batch):\n"
        "        return model(samples(x)).square().mean(1)\n"
        "    for _ in range(3):\n"
        "        assert float(optimizer.step(closure)) > 0\n"
        "    print(name)\n"
        "assert not any(module.startswith('composer') for module, m in sys.modules.items() if m)\n"
    )
    from sam_algos import METHODS

    assert python(code).split() == list(METHODS)


def test_the_package_alone_imports_nothing_and_its_names_no_slow_part_of_pytorch() -> None:
    heavy = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "numpy.random"]
    code = WITHOUT_COMPOSER + (
        "import sam_algos\n"
        "assert 'torch' not in sys.modules\n"
        "import torch; before = set(sys.modules)\n"
        "sam_algos.SAM, sam_algos.Method\n"
        f"print(*(set({heavy!r}) & (set(sys.modules) - before)))\n"
    )
    assert python(code).split() == []


@pytest.mark.skipif(not HAS_COMPOSER, reason="Composer is not installed here")
def test_with_composer_every_method_is_an_algorithm_although_only_this_package_was_imported() -> None:
    code = (
        "import sam_algos\n"
        "methods = [cls() for cls in sam_algos.METHODS.values()]\n"
        "from composer.core import Algorithm\n"
        "print(all(isinstance(method, Algorithm) for method in methods))\n"
    )
    assert python(code).split() == ["True"]


def test_without_composer_its_trainer_says_what_is_missing_and_what_to_use() -> None:
    code = WITHOUT_COMPOSER + (
        "for statement in ('from sam_algos.trainer import RecalibrateBatchNorm', 'import sam_algos.trainer'):\n"
        "    try:\n"
        "        exec(statement)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name, error)\n"
    )
    lines = python(code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("composer sam_algos.trainer needs MosaicML Composer")
        assert "pip install 'sam_algos[composer]'" in line
        assert "sam_algos.recalibrate" in line


def test_what_is_not_there_is_an_attribute_error() -> None:
    import sam_algos

    with pytest.raises(AttributeError, match="has no attribute 'SAMM'"):
        _ = sam_algos.SAMM
    assert "SAM" in dir(sam_algos)
    assert set(sam_algos.METHODS) == {name.lower() for name in dir(sam_algos) if name.lower() in sam_algos.METHODS}
