"""Every algorithm of Composer, by its name in a recipe, acts on a run of two batches."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from composer.core import Algorithm, Event
from composer.core import State as ComposerState
from PIL import Image

from sam_algos import train
from sam_algos.recipes.naming.components import algorithms
from tests.command.running import Capture
from tests.recipes.test_components import COMPOSERS
from tests.recipes.writing import Write

IMAGES = """
model: {name: small_cnn, width: 4}
train_dataset: {name: digits}
global_train_batch_size: 4
"""
BLOCKS = """
model: {name: hf_causal_lm, config: {model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 8, n_positions: 16}}
train_dataset: {name: python_docs, block_size: 16}
global_train_batch_size: 4
"""
PASSAGES = """
model:
  name: hf_sequence_classification
  config: {model_type: bert, num_hidden_layers: 1, num_attention_heads: 2, hidden_size: 8, intermediate_size: 16}
train_dataset: {name: python_topics, max_length: 16}
global_train_batch_size: 4
"""
COMMON = """
optimizer: {name: sgd, lr: 0.01}
max_duration: 2ba
global_eval_batch_size: 1000
save_folder: null
progress_bar: false
"""


@dataclass(frozen=True)
class Case:
    """How an algorithm is tried: its arguments, what it is tried on, and a warning that is its own."""

    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: str = IMAGES
    overrides: tuple[str, ...] = ()
    quiet: str = ""


_PILLOW = "'mode' parameter is deprecated"  # of torchvision's own call
_COLOURS = "train_dataset={name: imagefolder, path: ../images, image_size: 12, augmentation: basic}"

CASES = {
    "alibi": Case({"max_sequence_length": 16, "train_sequence_length_scaling": 0.5}, BLOCKS),
    "augmix": Case(quiet=_PILLOW),
    "blurpool": Case({"min_channels": 1}),
    "channels_last": Case(),
    "colout": Case(),
    "cutmix": Case(),
    "cutout": Case(),
    "ema": Case({"half_life": "1ba"}),
    "factorize": Case({"min_channels": 2, "latent_channels": 1, "min_features": 2, "latent_features": 1}),
    "gated_linear_units": Case({}, PASSAGES),
    "ghost_batchnorm": Case({"ghost_batch_size": 2}),
    "gradient_clipping": Case({"clipping_type": "norm", "clipping_threshold": 0.1}),
    "gyro_dropout": Case(
        {"sigma": 1, "tau": 1},
        overrides=("model={name: mobilenet_v3_small}", _COLOURS),
        quiet="GyroDropout is not impl",
    ),
    "label_smoothing": Case(),
    "layer_freezing": Case({"freeze_start": 0.0}, overrides=("max_duration=1ep", "global_train_batch_size=500")),
    "low_precision_groupnorm": Case(quiet="Low Precision GroupNorm only"),
    "low_precision_layernorm": Case({}, BLOCKS, quiet="Low Precision LayerNorm only"),
    "mixup": Case(),
    "no_op_model": Case(overrides=(_COLOURS,)),  # which has two classes whatever the data have
    "progressive_resizing": Case({"delay_fraction": 0.0, "size_increment": 2}),
    "randaugment": Case(quiet=_PILLOW),
    "sam": Case(),
    "selective_backprop": Case({"start": 0.0, "end": 1.0, "interrupt": 0}),
    "seq_length_warmup": Case({"duration": 1.0, "min_seq_length": 8, "max_seq_length": 16}, BLOCKS),
    "squeeze_excite": Case({"latent_channels": 1, "min_channels": 1}),
    "stochastic_depth": Case({"target_layer_name": "ResNetBottleneck"}, overrides=("model.name=resnet50", _COLOURS)),
    "swa": Case({"swa_start": "0.2dur", "swa_end": "0.9dur", "update_interval": "1ba"}, quiet="SWA has known issues"),
    "weight_standardization": Case(),
}


def test_every_algorithm_has_a_case() -> None:
    assert set(CASES) == set(COMPOSERS)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each class of algorithm acts."""
    counts: Counter[str] = Counter()

    def counted(cls: type[Algorithm]) -> Any:
        original = cls.apply

        def apply(self: Algorithm, event: Event, state: ComposerState, logger: Any) -> Any:
            counts[type(self).__name__] += 1
            return original(self, event, state, logger)

        return apply

    for cls in {algorithms()[name] for name in COMPOSERS}:
        monkeypatch.setattr(cls, "apply", counted(cls))
    return counts


@pytest.mark.parametrize("name", CASES)
def test_algorithm(name: str, write: Write, tmp_path: Path, capsys: Capture, applied: Counter[str]) -> None:
    case = CASES[name]
    for part, number in [(part, number) for part in ("train", "val") for number in range(4)]:
        path = tmp_path / "images" / part / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 50).convert("RGB").save(path)
    arguments = [f"algorithms.{name}={{}}", *(f"algorithms.{name}.{k}={v}" for k, v in case.arguments.items())]
    with warnings.catch_warnings():
        if case.quiet:
            warnings.filterwarnings("ignore", message=case.quiet)
        code = train.main([str(write(case.recipe + COMMON)), "--traceback", *case.overrides, *arguments])
    assert code == 0, capsys.readouterr().err
    assert applied[algorithms()[name].__name__] > 0
