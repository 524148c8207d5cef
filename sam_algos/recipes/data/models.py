"""The networks that a recipe can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torchvision
from composer.loss import soft_cross_entropy
from composer.metrics import CrossEntropy
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from sam_algos.core.options import UnitInterval
from sam_algos.recipes.data.datasets import Samples
from sam_algos.recipes.data.text_models import TEXT_MODELS, build_text_model
from sam_algos.recipes.data.texts import LabelledTexts, TextBlocks
from sam_algos.recipes.errors import BadArgument, RecipeError
from sam_algos.recipes.naming.names import arguments_of, construct, lookup

_PYTORCHCV = ("resnet20", "wrn28_10", "pyramidnet110_a270")


def models() -> dict[str, Callable[..., nn.Module]]:
    """The networks by name: torchvision's classifiers, pytorchcv's for CIFAR, this file's, and Hugging Face's.

    They are functions of ``num_classes``, of ``in_channels`` and ``in_features`` if they take them, and of the
    arguments in the recipe; `TEXT_MODELS` are functions of the data instead.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    return {
        **{name: partial(_torchvision, name) for name in names},
        **{name: partial(_pytorchcv, name) for name in _PYTORCHCV},
        **{build.__name__: build for build in (mlp, cnn_1d, small_cnn, resnet18_cifar, vit_s16)},
        **TEXT_MODELS,
    }


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def classification_loss(*, label_smoothing: UnitInterval = 0.0) -> Loss:
    """Cross-entropy of logits with labels, or with a probability for each class as MixUp makes them.

    `label_smoothing` is the fraction of each label that is spread evenly over all classes. Composer's algorithm of this
    name does the same, and takes 0.4 ms more a pass.
    """
    if label_smoothing == 0:
        return soft_cross_entropy
    return partial(cross_entropy, label_smoothing=label_smoothing)


class Classifier(ComposerClassifier):
    """Composer's classifier without metrics of every training batch.

    Around a small network they take a quarter of a step's time; ``TrainAccuracy`` logs the accuracy once an epoch.
    Metrics are not submodules here, as a second pass would have to restore them. The network gives logits.
    """

    def __init__(self, network: nn.Module, classes: int, loss: Loss = soft_cross_entropy) -> None:
        super().__init__(network, num_classes=classes, loss_fn=loss)
        del self.train_metrics, self.val_metrics

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Metrics of an evaluation; none of a training batch."""
        if is_train:
            return {}
        accuracy = MulticlassAccuracy(num_classes=cast(int, self.num_classes), average="micro")
        return {"CrossEntropy": CrossEntropy(), "MulticlassAccuracy": accuracy}


def build_model(section: Mapping[str, Any], data: Samples) -> ComposerClassifier | HuggingFaceModel:
    """Build the network of a recipe for its training data, in training mode.

    Its loss also takes soft labels, as MixUp makes them.

    Raises:
        RecipeError: For a wrong name or argument, and if the network does not take the data.
    """
    name, factory = section["name"], lookup("model.name", "model", section["name"], models())
    takes_text = factory in TEXT_MODELS.values()
    if isinstance(data, LabelledTexts):
        if not takes_text:
            fits = "hf_causal_lm" if isinstance(data, TextBlocks) else "hf_sequence_classification"
            raise RecipeError("model.name", f"{name} takes images; train_dataset has text: write {fits}")
        return build_text_model(section, factory, data)
    if takes_text:
        raise RecipeError("model.name", f"{name} takes text; train_dataset has images")
    sample, classes, arguments = data[0][0], data.num_classes, arguments_of(section)
    ours = inspect.signature(classification_loss).parameters
    loss = construct("model", classification_loss, {name: arguments.pop(name) for name in ours if name in arguments})
    known = {"num_classes": classes, "in_channels": sample.shape[0], "in_features": sample.numel()}
    takes = {"num_classes", *inspect.signature(factory).parameters}
    network = construct("model", factory, arguments, **{key: known[key] for key in known if key in takes})
    shape = "x".join(map(str, sample.shape))
    try:
        with torch.no_grad():
            outputs = network.eval()(sample[None])
    except Exception as error:  # each network has its own way to refuse
        raise RecipeError("model", f"{name} does not take {shape} images: {error}") from error
    if getattr(outputs, "shape", None) != (1, classes):
        raise RecipeError("model", f"{name} does not give {classes} logits for {shape} images")
    return Classifier(network.train(), classes, loss)


def mlp(*, num_classes: int, in_features: int, hidden: list[int] | None = None) -> nn.Module:
    """Fully connected layers with ReLU between them.

    The widths of the hidden layers are by default those of MNIST-1D's network, ``[100, 100]``.
    """
    hidden = [100, 100] if hidden is None else hidden
    if not all(type(width) is int and width >= 1 for width in hidden):
        raise BadArgument("hidden", f"must be a list of integers >= 1, got {hidden!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([in_features, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([in_features, *hidden][-1], num_classes))


def cnn_1d(*, num_classes: int, in_channels: int, in_features: int, width: int = 25) -> nn.Module:
    """MNIST-1D's convolutional network for signals: three convolutions of stride 2, and a linear layer.

    Each convolution has `width` channels.
    """
    length = in_features // in_channels
    layers: list[nn.Module] = []
    for before, kernel in ((in_channels, 5), (width, 3), (width, 3)):
        layers += [nn.Conv1d(before, width, kernel, stride=2, padding=1), nn.ReLU()]
        length = (length + 2 - kernel) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * length, num_classes))


def small_cnn(*, num_classes: int, in_channels: int, width: int = 32, stride: int = 1) -> nn.Module:
    """Three conv-BN-ReLU layers for small images; the last two halve the image.

    They have `width`, twice and four times as many channels. The first layer's stride is 1 for images of 8x8, 2 for
    images of 32x32.
    """
    channels = [in_channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        conv = nn.Conv2d(before, after, 3, 2 if layers else stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes)]
    return nn.Sequential(*layers, *head)


def resnet18_cifar(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """ResNet-18 of torchvision with the stem for small images: a 3x3 convolution and no pooling.

    It has 11.2 M parameters for 10 classes, and takes the options of torchvision's ResNet.
    """
    network = torchvision.models.resnet18(weights=None, num_classes=num_classes, **options)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network


def vit_s16(*, num_classes: int, image_size: int = 224, patch_size: int = 16, **options: Any) -> nn.Module:
    """ViT-S (12 layers, 6 heads, width 384); for CIFAR set ``image_size: 32, patch_size: 4``.

    It has 22.1 M parameters for 1000 classes, and takes the options of torchvision's VisionTransformer. `patch_size`
    divides `image_size`.
    """
    small = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
    shape = {"image_size": image_size, "patch_size": patch_size, "num_classes": num_classes}
    return torchvision.models.VisionTransformer(**{**small, **shape, **options})


def _torchvision(model: str, /, *, num_classes: int, **options: Any) -> nn.Module:
    if "weights" in options:
        raise BadArgument("weights", "networks are trained from scratch; start from a checkpoint with load_path")
    if model in ("googlenet", "inception_v3"):  # their auxiliary heads have losses of their own
        options = {"aux_logits": False, "init_weights": True, **options}
    try:
        return torchvision.models.get_model(model, weights=None, num_classes=num_classes, **options)
    except TypeError as error:  # from whichever of its functions gets the unknown argument
        strange = [name for name in options if f"unexpected keyword argument {name!r}" in str(error)]
        if not strange:
            raise
        raise BadArgument(strange[0], f"{model} has no such argument") from error


def _pytorchcv(model: str, /, *, num_classes: int, in_channels: int) -> nn.Module:
    try:
        from pytorchcv.model_provider import get_model
    except ImportError:
        raise ValueError(f"{model} comes from pytorchcv: pip install 'sam_algos[models]'") from None
    network: Any = get_model(f"{model}_cifar10", in_channels=in_channels)
    if num_classes != 10:  # some of its builders refuse numbers that CIFAR does not have
        network.output = nn.Linear(network.output.in_features, num_classes)
        network.num_classes = num_classes
    return network
