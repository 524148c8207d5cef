"""Every algorithm of Composer with every kind of method: see `tests.trainer.matrix`."""

from __future__ import annotations

import pytest

from tests.trainer.matrix import METHODS, TABLE, cell, composer_algorithms, observe, problems, table
from tests.trainer.matrix_cases import ENTRIES

RUN = sorted(set(ENTRIES) - {"sam"})


def test_every_algorithm_of_composer_is_classified() -> None:
    assert set(ENTRIES) == composer_algorithms()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RUN)
def test_an_algorithm_and_a_method_do_not_disturb_each_other(name: str, method: str) -> None:
    assert problems(name, method) == []


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_frozen(method: str) -> None:
    assert observe("layer_freezing", method).frozen


@pytest.mark.parametrize("method", METHODS)
def test_composers_own_sam_is_refused(method: str) -> None:
    assert cell("sam", method) == "refused"


def test_the_table_in_the_repository_is_that_of_a_new_run() -> None:
    assert TABLE.read_text() == table()
