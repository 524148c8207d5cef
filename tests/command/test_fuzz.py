"""Recipes with something wrong in them, or something odd: one line, or a trained network, and nothing else.

``SAM_ALGOS_FUZZ=5000 python -m pytest tests/command/test_fuzz.py`` tries more of them; each case is told by its number.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sam_algos.command import main
from sam_algos.recipes.naming.arguments import Form
from sam_algos.recipes.naming.catalogue import catalogue
from tests.recipes.writing import Write

CASES = int(os.environ.get("SAM_ALGOS_FUZZ", "120"))

RECIPE: dict[str, Any] = {
    "model": {"name": "small_cnn", "width": 2},
    "train_dataset": {"name": "digits", "label_noise": 0.4},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "scheduler": {"name": "cosine"},
    "algorithms": {"label_smoothing": {"smoothing": 0.1}},
    "method": "aesam",
    "methods": {"sam": {"algorithms": {"sam": {"rho": 0.1}}}},
    "callbacks": {},
    "max_duration": "1ba",
    "global_train_batch_size": 16,
    "global_eval_batch_size": 360,
    "save_folder": None,
}

# Others reach for a network, a window or a server.
QUIET = ("LRMonitor", "NaNMonitor", "SpeedMonitor", "EarlyStopper", "ThresholdStopper", "OptimizerMonitor")

SECTIONS = [
    ("optimizer", "optimizer"),
    ("scheduler", "scheduler"),
    ("model", "model"),
    ("train_dataset", "dataset"),
    ("eval_dataset", "dataset"),
]
SMALL = ("small_cnn", "hf_causal_lm", "hf_sequence_classification")

VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 0.0, 0.5, -0.5, 1e-3, 1e3, float("nan"), float("inf"), "", " ", "x", "sgd",
    "1ep", "2ba", "0ba", "-1ba", "1dur", "${seed}", "${", "${nothing}", "{run_name}", "{", "???", "auto",
    "sam", "cpu", "fp32", "a\nb", "é\0", "0x1f", "1_000", "~", "yes", "2020-01-01",
    {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4}, {"name": "x"}, {"name": "linear"},
    [], [1], {}, {1: 2}, {"": {}},
]  # fmt: skip


def paths(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*above, key)
        yield from paths(value, (*above, key))


def arguments(form: Form, dice: random.Random) -> dict[str, Any]:
    """Some arguments of a name, half of them at their own default."""
    chosen = dice.sample(sorted(form.arguments), min(len(form.arguments), dice.randrange(3)))
    required = [name for name, argument in form.arguments.items() if argument.default is None and dice.random() < 0.8]
    found = {}
    for name in {*chosen, *required}:
        default = form.arguments[name].default
        if default is not None and dice.random() < 0.5:
            try:
                found[name] = yaml.safe_load(default.replace("None", "null"))
                continue
            except yaml.YAMLError:
                pass
        found[name] = dice.choice(VALUES)
    return found


def mutated(dice: random.Random) -> dict[str, Any]:
    tree = copy.deepcopy(RECIPE)
    groups = catalogue().groups
    for _ in range(dice.choice((1, 1, 2, 3))):
        kind, (*above, key) = dice.randrange(6), dice.choice(list(paths(tree)))
        inner = tree
        for step in above:
            inner = inner[step]
        if kind == 0:
            del inner[key]
        elif kind == 1:
            inner[key] = dice.choice(VALUES)
        elif kind == 2:
            text = str(key)
            inner[text[: (at := dice.randrange(len(text) + 1))] + dice.choice("axz_. ") + text[at:]] = inner.pop(key)
        elif kind == 3:
            section, group = dice.choice(SECTIONS)
            name = dice.choice(sorted(groups[group])) if group != "model" else dice.choice(SMALL)
            tree[section] = {"name": name, **arguments(groups[group][name], dice)}
        elif kind == 4:
            name = dice.choice(sorted(groups["algorithm"]))
            tree["method"] = dice.choice([None, tree.get("method")])
            tree["algorithms"] = {name: arguments(groups["algorithm"][name], dice)}
        else:
            name = dice.choice(QUIET)
            tree["callbacks"] = {name: arguments(groups["callback"][name], dice)}
    return tree


def text_of(tree: dict[str, Any], dice: random.Random) -> str:
    text = yaml.safe_dump(tree)
    if dice.random() < 0.15:  # what a slip of the hand does
        at = dice.randrange(len(text))
        text = (
            text[:at] + dice.choice([":", "{", "]", "\t", "- ", "#", "&a ", "*a", "'", "\n---\n", ""]) + text[at + 1 :]
        )
    return text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_any_recipe_is_one_line_or_a_trained_network(
    write: Write, capfd: pytest.CaptureFixture[str], part: int
) -> None:
    trained = 0
    for case in range(part, CASES, 4):
        dice = random.Random(case)
        path = write(text_of(mutated(dice), dice))
        argv = [str(path), "progress_bar=false", "save_folder=null", f"run_name=case{case}"]
        valid, (_, problem) = main(["validate", *argv]), capfd.readouterr()
        code, (out, err) = main(["train", *argv]), capfd.readouterr()
        told = f"case {case}: exit {code}\n{path.read_text()}\n{out}\n{err}"
        assert valid in (0, 2) and (valid == 0 or (code, err) == (2, problem)), told + problem
        if code == 0:
            trained += 1
            assert out.count("\n") >= 9 and "log" in out, told
        else:
            assert code in (1, 2) and out == "", told
            assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, told
            assert code == 1 or not Path(f"runs/case{case}").exists(), told
    assert 0 < trained < len(range(part, CASES, 4))
