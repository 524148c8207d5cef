"""What a wheel and a package index get."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_folder_of_the_package_is_in_the_wheel() -> None:
    named = set(
        re.findall(
            r'"(sam_algos(?:\.\w+)*)",?', (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0]
        )
    )
    folders = {path.parent for path in (ROOT / "sam_algos").rglob("__init__.py")}
    assert named == {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"sam_algos.yamls"}


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (
            "https://x.org/y",
            "![p](https://x.org/y/raw/main/a.svg) [w](https://x.org/y/blob/main/b.md) [z](https://z) [t](#t)",
        ),
        (None, " w [z](https://z) [t](#t)"),
    ],
)
def test_an_index_gets_whole_addresses_or_words(repository: str | None, expected: str) -> None:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.for_index("![p](a.svg) [w](b.md) [z](https://z) [t](#t)", repository) == expected
