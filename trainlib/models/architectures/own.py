"""Our own architectures: the tutorial's CNN, and VGG16 with a width."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from trainlib.config import Size, sides

VGG16_CHANNELS: tuple[int | str, ...] = (
    64,
    64,
    "M",
    128,
    128,
    "M",
    *((256,) * 3),
    "M",
    *((512,) * 3),
    "M",
    *((512,) * 3),
    "M",
)
VGG16_HIDDEN = 4096


def cifar10_cnn(num_classes: int, image_size: Size) -> nn.Module:
    """Build three 5x5 convolutions and two linear layers, without activations: [N, C, S, S] to [N, num_classes]."""
    height, width = (side // 8 for side in sides(image_size))
    features = nn.Sequential(
        nn.Conv2d(3, 32, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(nn.Linear(64 * height * width, 64), nn.Linear(64, num_classes))
    return _Sequence(features=features, flatten=nn.Flatten(), classifier=classifier)


class _Sequence(nn.Sequential):
    """A Sequential whose children are named by keyword."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def vgg16(width: float = 1.0, dropout: float = 0.5) -> nn.Module:
    """Build torchvision's VGG16 with every channel count and hidden layer scaled by `width`; 1000 classes.

    At width 1 names, shapes and, from the same generator state, initial values are torchvision's.
    """
    from torchvision.models.vgg import VGG, make_layers

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    hidden = scaled(VGG16_HIDDEN)
    with torch.device("meta"):  # its full-size classifier is replaced: allocate and fill none of it
        model = VGG(nn.Sequential(), init_weights=False, dropout=dropout)
    model.features = make_layers([c if isinstance(c, str) else scaled(c) for c in VGG16_CHANNELS])
    model.classifier[0] = nn.Linear(scaled(512) * 7 * 7, hidden)
    model.classifier[3] = nn.Linear(hidden, hidden)
    model.classifier[6] = nn.Linear(hidden, 1000)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.startswith("features"):
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(parameter, 0, 0.01)
    return cast(nn.Module, model)
