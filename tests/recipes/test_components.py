from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import composer.algorithms
import pytest
import torch

from sam_algos import METHODS
from sam_algos.recipes import RecipeError
from sam_algos.recipes.naming import components as c

CARDS = sorted(Path(composer.algorithms.__file__).parent.glob("*/metadata.json"))
COMPOSERS = {name: facts["class_name"] for card in CARDS for name, facts in json.loads(card.read_text()).items()}
NEEDED: dict[str, dict[str, Any]] = {
    "alibi": {"max_sequence_length": 8},
    "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0},
    "stochastic_depth": {"target_layer_name": "ResNetBottleneck"},
}
SCHEDULES = {
    "cosine": {}, "cosine_with_warmup": {"t_warmup": "1ep"}, "CosineAnnealingScheduler": {"alpha_f": 0.1},
    "cosine_annealing_with_warmup": {"t_warmup": "10ba"}, "linear_decay_with_warmup": {"t_warmup": "1ep"},
    "constant": {}, "multi_step": {"milestones": ["1ep", "2ep"]}, "step_lr": {"step_size": 3},
    "one_cycle_lr": {"max_lr": 0.1, "total_steps": 10},
}  # fmt: skip


def one_parameter() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


def test_composer_has_the_algorithms_we_know() -> None:
    assert len(COMPOSERS) == 28


@pytest.mark.parametrize("name", COMPOSERS)
@pytest.mark.filterwarnings("ignore")  # NoOpModel and others warn about themselves
def test_every_algorithm_of_composer(name: str) -> None:
    if name == "gated_linear_units" and find_spec("transformers") is None:
        with pytest.raises(RecipeError, match=r"pip install 'mosaicml\[nlp\]'"):
            c.build_algorithms({name: {}})
        return
    (algorithm,) = c.build_algorithms({name: {} if name == "sam" else NEEDED.get(name, {})})
    expected = METHODS["sam"] if name == "sam" else getattr(composer.algorithms, COMPOSERS[name])
    assert type(algorithm) is expected


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    (method,) = c.build_algorithms({name: {"rho": 0.25}})
    assert method == METHODS[name](rho=0.25)


def test_mixture_keeps_its_order() -> None:
    built = c.build_algorithms({"mixup": {"alpha": 0.3}, "aesam": {}, "label_smoothing": {"smoothing": 0.1}})
    assert [type(algorithm).__name__ for algorithm in built] == ["MixUp", "AESAM", "LabelSmoothing"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"aesma": {}}, "algorithms.aesma: unknown algorithm 'aesma'; did you mean 'aesam'?"),
        ({"aesam": {"rh": 1}}, "algorithms.aesam: unknown argument 'rh'; did you mean 'rho'?"),
        ({"aesam": {"rho": -1}}, "algorithms.aesam.rho: "),
        ({"asam": {"rho": -1.0}}, "algorithms.asam.rho: "),
        ({"sam": {"rho": "big"}}, "algorithms.sam.rho: "),
        ({"sam": {"rho": float("nan")}}, "algorithms.sam.rho: "),
        ({"sam": {"interval": 0}}, "algorithms.sam.interval: "),
        ({"looksam": {"k": 0}}, "algorithms.looksam.k: "),
        ({"aesam": {"delta": 1.0}}, "algorithms.aesam.delta: "),
        ({"sam": {}, "aesam": {}}, "algorithms: sam and aesam cannot be combined"),
        ({"sam": {}, "SAM": {}}, "algorithms: sam and SAM cannot be combined"),
        ({"mixup": {"alpha": "x"}}, "algorithms.mixup.alpha: must be a number, got 'x'"),
        ({"gradient_clipping": {}}, "algorithms.gradient_clipping.clipping_type: required"),
        (
            {"low_precision_layernorm": {"apply_at": "inti"}},
            "got 'inti'; did you mean 'init'?",
        ),
    ],
)
def test_wrong_algorithm(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        c.build_algorithms(entries)


@pytest.mark.parametrize("spelling", [str, str.lower])
@pytest.mark.parametrize("name", c.optimizers())
def test_every_optimizer(name: str, spelling: Any) -> None:
    optimizer = c.build_optimizer({"name": spelling(name), "lr": 0.25}, one_parameter())
    assert type(optimizer).__name__ == name
    assert float(optimizer.param_groups[0]["lr"]) == 0.25


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "sdg"}, "optimizer.name: unknown optimizer 'sdg'; did you mean 'SGD'?"),
        ({"name": "lbfgs"}, "optimizer.name: unknown optimizer 'lbfgs'"),
        (
            {"name": "sgd", "momentun": 0.9},
            "optimizer: unknown argument 'momentun'; did you mean 'momentum'?",
        ),
        ({"name": "sgd", "lr": -1.0}, "optimizer: Invalid learning rate: -1.0"),
        ({"name": "sgd", "lr": "fast"}, "optimizer.lr: must be a number, got 'fast'"),
        ({"name": "sgd", "params": []}, "optimizer: unknown argument 'params'"),
        ({"name": "adamw", "betas": 3}, "optimizer.betas: must be a list, got 3"),
        ({"name": "adamw", "betas": [1]}, "optimizer: "),
        ({"name": "decoupled_sgdw"}, "optimizer: "),
    ],
)
def test_wrong_optimizer(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        c.build_optimizer(section, one_parameter())


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers(name: str) -> None:
    optimizer = torch.optim.SGD(one_parameter(), lr=0.1)
    assert c.build_scheduler({"name": name, **SCHEDULES[name]}, optimizer) is not None


def test_no_scheduler() -> None:
    assert c.build_scheduler(None, torch.optim.SGD(one_parameter(), lr=0.1)) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "cosin"}, "scheduler.name: unknown scheduler 'cosin'; did you mean 'cosine'?"),
        ({"name": "cosine", "t_max": 1.5}, "scheduler.t_max: must be text, got 1.5"),
        ({"name": "cosine_with_warmup"}, "scheduler.t_warmup: required"),
        ({"name": "cosine", "alpha": 1}, "scheduler: unknown argument 'alpha'; did you mean 'alpha_f'?"),
    ],
)
def test_wrong_scheduler(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        c.build_scheduler(section, torch.optim.SGD(one_parameter(), lr=0.1))


@pytest.mark.parametrize("name", ["lr_monitor", "LRMonitor", "nan_monitor", "speed_monitor", "oom_observer"])
def test_callbacks(name: str) -> None:
    (callback,) = c.build_collection("callbacks", c.callbacks(), {name: {}})
    assert type(callback).__name__.lower() == name.replace("_", "").lower()


@pytest.mark.parametrize("name", ["in_memory", "InMemoryLogger", "in_memory_logger"])
def test_loggers(name: str) -> None:
    (logger,) = c.build_collection("loggers", c.loggers(), {name: {}})
    assert type(logger).__name__ == "InMemoryLogger"


@pytest.mark.parametrize(
    ("key", "entries", "message"),
    [
        (
            "callbacks",
            {"lr_monitr": {}},
            "callbacks.lr_monitr: unknown callback 'lr_monitr'; did you mean 'LRMonitor'?",
        ),
        (
            "callbacks",
            {"nan_monitor": {"x": 1}},
            "callbacks.nan_monitor: unknown argument 'x'; there are none",
        ),
        ("callbacks", {"early_stopper": {}}, "callbacks.early_stopper.monitor: required"),
        ("loggers", {"wanbd": {}}, "loggers.wanbd: unknown logger 'wanbd'; did you mean 'WandBLogger'?"),
        (
            "loggers",
            {"tensorboard": {"logdir": "x"}},
            "loggers.tensorboard: unknown argument 'logdir'; did you mean",
        ),
    ],
)
def test_wrong_entry(key: str, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        c.build_collection(key, getattr(c, key)(), entries)
