"""Every algorithm of Composer with every kind of method: see `tests.trainer.matrix`."""

from __future__ import annotations

import pytest

from tests.trainer.matrix import METHODS, TABLE, cell, composer_algorithms, observe, table, written
from tests.trainer.matrix_cases import ENTRIES

WITHOUT_LOSSES = {"alibi", "gated_linear_units", "no_op_model", "seq_length_warmup"}
"""Whose model computes the loss of the batch, and never that of each sample."""
RUN = sorted(set(ENTRIES) - {"sam"})
WITH_ALL = ("augmix", "cutmix", "ema", "ghost_batchnorm", "gradient_clipping", "gyro_dropout", "squeeze_excite")
"""One that acts in each place: on images, on batches, on the weights, on layers, on gradients, by its own draws."""
WIDEST = ("AELookSAM", "ESAM", "MomentumSAM")
"""Their steps are those of the other methods and more: sharp and flat, on the whole batch and on some samples."""
CELLS = [(name, method) for name in RUN for method in (METHODS if name in WITH_ALL else WIDEST)]


def test_every_algorithm_of_composer_is_classified() -> None:
    assert set(ENTRIES) == composer_algorithms()


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_an_algorithm_and_a_method_do_not_disturb_each_other(name: str, method: str) -> None:
    expected = "no loss of each sample" if method == "ESAM" and name in WITHOUT_LOSSES else "works"
    assert cell(name, method) == written(name, method) == expected


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_frozen(method: str) -> None:
    assert observe("layer_freezing", method).frozen


@pytest.mark.parametrize("method", METHODS)
def test_composers_own_sam_is_refused(method: str) -> None:
    assert cell("sam", method) == written("sam", method) == "refused"


def test_the_table_in_the_repository_is_laid_out_as_a_new_one() -> None:
    assert TABLE.read_text() == table(written)
