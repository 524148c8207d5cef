"""How each algorithm of Composer is tried together with a method: the cases of `tests.trainer.matrix`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import composer.algorithms as ca
import numpy as np
import torch
from composer.core import Algorithm
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import VisionDataset
from torchvision.models.resnet import Bottleneck
from torchvision.transforms import ToTensor

CLASSES, BATCH_SIZE, STEPS = 2, 4, 6


@dataclass(frozen=True)
class Entry:
    """How an algorithm of Composer is tried.

    Args:
        make: Makes one, for the tiny network.
        note: What a user should know; for the table.
        text: Whether it acts on a transformer of text instead of on a network of images.
        quiet: The warnings of Composer's own that belong to the algorithm.
    """

    make: Callable[[], Algorithm]
    note: str = ""
    text: bool = False
    quiet: str = ""


_IMAGES = "Once per sample, before the passes."
_BATCH = "Once per batch, before the passes."
_SURGERY = "Surgery on the network, before training."
_DRAWS = "In all passes, with the same draws."
_AVERAGES = "Averages the clean weights."
_TEXT_SURGERY = "Surgery on the network, before training; tried on BERT, whose loss is that of the batch."
_LOW_PRECISION = "Surgery on the network, before training; no effect in float32."

ENTRIES: dict[str, Entry] = {
    "alibi": Entry(
        lambda: ca.Alibi(max_sequence_length=8, train_sequence_length_scaling=1.0), _TEXT_SURGERY, text=True
    ),
    "augmix": Entry(ca.AugMix, _IMAGES),
    "blurpool": Entry(lambda: ca.BlurPool(min_channels=1), _SURGERY),
    "channels_last": Entry(ca.ChannelsLast, _SURGERY),
    "colout": Entry(lambda: ca.ColOut(p_row=0.25, p_col=0.25), _BATCH),
    "cutmix": Entry(ca.CutMix, f"{_DRAWS} ESAM needs `interpolate_loss=False`, the default."),
    "cutout": Entry(lambda: ca.CutOut(length=0.5), _BATCH),
    "ema": Entry(lambda: ca.EMA(half_life="2ba"), _AVERAGES),
    "factorize": Entry(
        lambda: ca.Factorize(min_channels=4, latent_channels=2, min_features=8, latent_features=4), _SURGERY
    ),
    "gated_linear_units": Entry(ca.GatedLinearUnits, _TEXT_SURGERY, text=True),
    "ghost_batchnorm": Entry(
        lambda: ca.GhostBatchNorm(ghost_batch_size=2),
        f"{_SURGERY} `ascent_fraction` and ESAM must leave ghost batches.",
    ),
    "gradient_clipping": Entry(
        lambda: ca.GradientClipping("norm", 0.2),
        "Once per step, on the gradient that the optimizer gets; the method sees the one before it.",
    ),
    "gyro_dropout": Entry(
        lambda: ca.GyroDropout(sigma=4, tau=2),
        "In all passes, with the same masks. `ascent_fraction` and ESAM draw others, for a multiple of `tau` samples.",
        quiet="GyroDropout is not implemented in a way that allows correct resumption",
    ),
    "label_smoothing": Entry(ca.LabelSmoothing, "In all passes, from the same labels."),
    "layer_freezing": Entry(lambda: ca.LayerFreezing(freeze_start=0.0), "Frozen weights are not perturbed either."),
    "low_precision_groupnorm": Entry(ca.LowPrecisionGroupNorm, _LOW_PRECISION, quiet="Low Precision GroupNorm only"),
    "low_precision_layernorm": Entry(ca.LowPrecisionLayerNorm, _LOW_PRECISION, quiet="Low Precision LayerNorm only"),
    "mixup": Entry(ca.MixUp, f"{_DRAWS} ESAM needs `interpolate_loss=False`, the default."),
    "no_op_model": Entry(ca.NoOpModel, "Its one weight is perturbed like any other; its loss is that of the batch."),
    "progressive_resizing": Entry(lambda: ca.ProgressiveResizing(delay_fraction=0.0, size_increment=2), _BATCH),
    "randaugment": Entry(ca.RandAugment, _IMAGES),
    "sam": Entry(ca.SAM, "Refused: a run takes one sharpness-aware method.", quiet="SAM has known issues"),
    "selective_backprop": Entry(
        lambda: ca.SelectiveBackprop(start=0.0, end=1.0, keep=0.5),
        _BATCH,
        quiet="Cannot split tensor of length 2",
    ),
    "seq_length_warmup": Entry(
        lambda: ca.SeqLengthWarmup(duration=0.8, min_seq_length=2, max_seq_length=8, step_size=2),
        f"{_BATCH} Tried on BERT, whose loss is that of the batch.",
        text=True,
    ),
    "squeeze_excite": Entry(lambda: ca.SqueezeExcite(latent_channels=2, min_channels=4), _SURGERY),
    "stochastic_depth": Entry(
        lambda: ca.StochasticDepth("ResNetBottleneck", drop_rate=0.5),
        "In all passes, with the same draws. `ascent_fraction` and ESAM draw others.",
    ),
    "swa": Entry(
        lambda: ca.SWA(swa_start="0.2dur", swa_end="0.8dur", update_interval="1ba", schedule_swa_lr=False),
        _AVERAGES,
        quiet="SWA has known issues",
    ),
    "weight_standardization": Entry(ca.WeightStandardization, _SURGERY),
}
"""By the name in Composer's own metadata."""


class Images(VisionDataset):
    """Random images, as PIL images before their transform."""

    def __init__(self) -> None:
        super().__init__("", transform=ToTensor())
        pixels = np.random.default_rng(1).integers(0, 256, (BATCH_SIZE * STEPS // 2, 8, 8, 3), dtype=np.uint8)
        self._images = [Image.fromarray(image) for image in pixels]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self._images[index]), index % CLASSES


class Texts(Dataset):
    """Random tokens, to be predicted from one another."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(1)
        self._tokens = torch.randint(0, 32, (BATCH_SIZE * STEPS // 2, 8), generator=draws)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self._tokens[index]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def transformer() -> ComposerModel:
    """A BERT with two layers, and with dropout."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8, "vocab_size": 32}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return HuggingFaceModel(BertForMaskedLM(config), use_logits=True)


def network() -> ComposerClassifier:
    """Something for each algorithm to act on."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Bottleneck(8, 2)
    pooling = nn.MaxPool2d(2), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.5), nn.Linear(16, CLASSES)
    return ComposerClassifier(nn.Sequential(*convolutions, *pooling, *head), num_classes=CLASSES)
