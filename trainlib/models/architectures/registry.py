"""Architectures by name, before their last layer is changed: our own, VGG16 with a width, and torchvision's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from trainlib.config import ModelConfig, Size, sides
from trainlib.errors import UserError
from trainlib.models.architectures.channels import to_one_channel
from trainlib.models.architectures.cifar10_fast import Cifar10Fast

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

# Built for the number of classes; no weights of them are published.
BUILT_FOR_CLASSES = ("cifar10_cnn", "cifar10_fast")

# These have auxiliary heads, and inputs that their published weights expect normalised differently.
INCEPTIONS = ("googlenet", "inception_v3")


def build_architecture(
    config: ModelConfig, num_classes: int, image_size: Size, *, channels: int = 3, published_weights: bool = False
) -> nn.Module:
    """Build the named architecture as it is published: with 1000 classes, or `num_classes` for one of our own.

    channels            of the images: 3, or 1 for grey ones (see `architectures.channels`)
    published_weights   True if weights that torchvision publishes will be loaded by name

    Raises UserError when the architecture refuses an argument or the image size.
    """
    try:
        if config.name == "cifar10_fast":
            return Cifar10Fast(num_classes, image_size, channels=channels, **config.args)
        if config.name == "cifar10_cnn":
            module = cifar10_cnn(num_classes, image_size)
        elif config.name == "vgg16":
            module = vgg16(**config.args)
        else:
            args = config.args
            if channels == 1 and config.name in INCEPTIONS:  # which is about red, green and blue
                args = {**args, "transform_input": False}
            module = torchvision_model(config.name, image_size, args, published_weights=published_weights)
        return to_one_channel(module) if channels == 1 else module
    except (TypeError, ValueError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model {config.name}: {reason} (data.image_size {image_size}, arguments {config.args})"
        ) from error


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


def torchvision_model(name: str, image_size: Size, args: dict[str, Any], *, published_weights: bool) -> nn.Module:
    """Build a torchvision classifier by name: 1000 classes, and the image size where the architecture depends on it."""
    from torchvision.models import get_model_builder

    kwargs, (height, width) = dict(args), sides(image_size)
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("takes square images alone: choose one number, or another model")
        kwargs["image_size"] = height
    elif name.startswith("maxvit") and (height, width) != (224, 224) and not published_weights:
        kwargs["input_size"] = (height, width)
    elif name in INCEPTIONS:
        kwargs |= {"aux_logits": False, "init_weights": True}
        if published_weights:
            kwargs.setdefault("transform_input", True)
    return cast(nn.Module, get_model_builder(name)(**kwargs))


@contextmanager
def empty_init() -> Iterator[None]:
    """Context manager: modules built inside have their parameters on the meta device, without memory or values.

    `torch.device("meta")` would not do: RegNet computes its widths with tensors, and reads them.
    """
    from accelerate import init_empty_weights

    with torch.device("cpu"), init_empty_weights(include_buffers=False):
        yield
