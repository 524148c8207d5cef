"""What the tests of training share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam_algos import train

Capture = pytest.CaptureFixture[str]


def lines(text: str) -> dict[str, str]:
    return {line[:20].strip(): line[21:] for line in text.strip().splitlines()}


def metrics(table: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(table["log"]).read_text().splitlines()]


def refused(argv: list[str], capsys: Capture, message: str) -> None:
    assert train.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def fails(error: BaseException) -> Callable[..., None]:
    def fit(*args: object, **kwargs: object) -> None:
        raise error

    return fit
