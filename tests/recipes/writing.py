from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sam_algos.recipes.naming.catalogue import catalogue

TINY = """
model: {name: small_cnn, width: 2}
train_dataset: {name: digits}
optimizer: {name: sgd, lr: 0.1}
max_duration: 1ep
global_train_batch_size: 720
progress_bar: false
"""

Write = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def listed() -> None:
    """Have the names that recipes can use in the cache, so that no command says that it lists them."""
    catalogue()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe into an empty working directory's parent: runs land where tests can see them."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def write(text: str = TINY, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write
