"""Models by name, before their last layer is changed, and their published weights: ours, torchvision's and timm's."""

from __future__ import annotations

import torch
from torch import nn

from trainlib.config import ModelConfig, Size
from trainlib.config.libraries.catalog import WEIGHTS_SUFFIXES, weights, weights_file, weights_run
from trainlib.config.libraries.timm_models import is_from_timm
from trainlib.errors import UserError, WeightsError
from trainlib.models.architectures.channels import to_one_channel
from trainlib.models.architectures.cifar10_fast import Cifar10Fast
from trainlib.models.architectures.own import cifar10_cnn, vgg16
from trainlib.models.sources import timm_models, torchvision_models
from trainlib.models.sources.published import Published
from trainlib.models.sources.torchvision_models import INCEPTIONS, torchvision_model
from trainlib.models.weights.files import State, canonical, read_state

# Built for the number of classes; no weights of them are published.
BUILT_FOR_CLASSES = ("cifar10_cnn", "cifar10_fast")


def build_architecture(
    config: ModelConfig, num_classes: int, image_size: Size, *, channels: int = 3, published_weights: bool = False
) -> nn.Module:
    """Build the named architecture as it is published: with its own classes, or `num_classes` for one of our own.

    channels            of the images: 3, or 1 for grey ones (see `architectures.channels`)
    published_weights   True if weights that its source publishes will be loaded

    Raises UserError when the architecture refuses an argument or the image size.
    """
    try:
        if is_from_timm(config.name):
            return timm_models.build(config, image_size, channels)
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
    except (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, AttributeError) as error:
        telling = isinstance(error, TypeError | ValueError | AssertionError)
        reason = str(error).split("\n")[0] if telling else repr(error)  # such as KeyError('nope')
        raise UserError(
            f"model {config.name}: {reason} (data.image_size {image_size}, arguments {config.args})"
        ) from error


def published_weights(config: ModelConfig) -> Published | None:
    """Return the published weights that `model.weights` names; None for a path or a run.

    Raises WeightsError if it is none of these.
    """
    assert config.weights is not None
    if weights_file(config.weights) or weights_run(config.weights):
        return None
    if config.name not in BUILT_FOR_CLASSES:
        published = timm_models.published if is_from_timm(config.name) else torchvision_models.published
        found = published(config)
        if found is not None:
            return found
    names = weights(config.name)
    known = f"one of {', '.join(names)}, or " if names else ""
    raise WeightsError(
        f"model.weights: got {config.weights!r}, must be {known}the path of a file ({', '.join(WEIGHTS_SUFFIXES)})"
    )


def read_weights(config: ModelConfig, image_size: Size, channels: int, device: torch.device) -> State:
    """Read the state_dict of `model.weights`, on the CPU, with the names that the architecture has today.

    For the meta device nothing is downloaded: published weights are empty tensors of the right shapes.
    Raises WeightsError for a file that is missing, damaged or holds anything but tensors, or has no order where one is
    needed.
    """
    found = published_weights(config)
    if found is not None:
        return found.read(image_size, channels, device)
    assert config.weights is not None
    path = weights_file(config.weights)
    assert path is not None, "`local_weights` has put the file of a run in its place"
    if not path.is_file():
        raise WeightsError(
            f"model.weights: got {config.weights!r}, must be an existing file: {path.absolute()} is none"
        )
    if config.weights_keys == "shapes" and path.suffix == ".safetensors":
        raise WeightsError(
            f"model.weights_keys: shapes needs the order of the network, and {path} has its tensors in the "
            "alphabetical order of their names, as safetensors files do: load them into their own network and "
            "torch.save its state_dict, to a .pth file"
        )
    with torch.device("cpu"):
        return canonical(read_state(path), auxiliary=config.name not in INCEPTIONS)


def last_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that give the logits: of one, but for models of timm whose logits are a mean.

    A timm model says which ones these are. Of others it is the last linear layer or, where there is none (SqueezeNet),
    the last convolution.
    """
    named = timm_models.last_layers_of(module)
    if named is not None:
        return named
    linear: list[str] = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    convolutions: list[str] = [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)]
    return ((linear or convolutions)[-1],)
