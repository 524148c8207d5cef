"""The networks for timing, in plain PyTorch, with torchvision's parameter counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions, or with a bottleneck 1x1, 3x3, 1x1, and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = width * expansion
        plan = [(1, inputs, width, 1), (3, width, width, stride), (1, width, outputs, 1)]
        if expansion == 1:
            plan = [(3, inputs, width, stride), (3, width, width, 1)]
        layers = [layer for size, a, b, step in plan for layer in (*_conv(size, a, b, step), nn.ReLU(inplace=True))]
        self.path = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(1, inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


def _conv(size: int, inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)


def resnet(depths: Sequence[int], *, classes: int, small: bool, expansion: int = 1, width: int = 64) -> nn.Module:
    """A residual network (He et al., 2016).

    Args:
        depths: Number of blocks in each stage.
        classes: Number of classes.
        small: Use the stem for small images: a 3x3 convolution and no pooling.
        expansion: 1 for basic blocks, 4 for bottlenecks.
        width: Channels of the first stage; each later stage doubles them.

    Returns:
        nn.Module: The network.
    """
    layers = [*(_conv(3, 3, width, 1) if small else _conv(7, 3, width, 2)), nn.ReLU(inplace=True)]
    if not small:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    inputs = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(_Block(inputs, width << stage, 2 if stage and not block else 1, expansion))
            inputs = (width << stage) * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al., 2021) with 16x16 patches; the defaults give ViT-S.

    Args:
        classes: Number of classes.
        image: Height and width of the images.
        width: Width of the tokens; each head has 64.
        depth: Number of layers.
    """

    def __init__(self, *, classes: int, image: int, width: int = 384, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // 16) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)`` for images of shape ``(batch, 3, image, image)``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.layers(x)[:, 0])


def small_mlp(inputs: int = 40, width: int = 100, classes: int = 10) -> nn.Module:
    """The network of MNIST-1D: with only 15 thousand parameters, a step is mostly call overhead."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def mlp(classes: int = 10, width: int = 2048) -> nn.Module:
    """Two hidden layers on 784 inputs: 5.8 M parameters, and little computation per parameter."""
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )
