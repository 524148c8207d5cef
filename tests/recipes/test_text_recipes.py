"""The recipes for text that come with the package, as they are and with a model of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sam_algos import train
from sam_algos.recipes import load_recipe
from sam_algos.recipes.run import prepare
from tests.command.running import Capture, lines
from tests.recipes.test_huggingface import GPT2, TextBlocks, blocks, build
from tests.recipes.writing import Write

__all__ = ["blocks"]


@pytest.mark.parametrize("name", ["text/causal_lm", "text/classification"])
def test_the_shipped_recipes_train(name: str, write: Write, capsys: Capture) -> None:
    write()
    argv = [name, "max_duration=2ba", "global_train_batch_size=4", "global_eval_batch_size=300", "save_folder=null"]
    assert train.main([*argv, "method=aesam", "progress_bar=false", "--traceback"]) == 0
    score = {"text/causal_lm": "test perplexity", "text/classification": "clean test accuracy"}[name]
    assert float(lines(capsys.readouterr().out)[score].removesuffix(" %")) > 1


def test_a_shipped_recipe_takes_a_pretrained_model(write: Write, tmp_path: Path, blocks: TextBlocks) -> None:
    write()
    model = build(blocks, "hf_causal_lm", config={**GPT2, "n_positions": 64})
    model.model.save_pretrained(tmp_path / "saved")
    recipe = load_recipe("text/causal_lm", ["model.pretrained=../saved", "model.config=null", "save_folder=null"])
    run = prepare(recipe, "test")
    trained: Any = run.trainer.state.model
    assert torch.equal(trained.model.transformer.wte.weight, model.model.transformer.wte.weight)
