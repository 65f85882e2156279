"""The classifier: an architecture with initial weights, a last layer for the data's classes, and frozen layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainlib.config import ModelConfig, Size, custom_part_missing, is_custom, sides
from trainlib.errors import UserError, WeightsError
from trainlib.models.architectures.channels import fit_channels, is_of_one_channel
from trainlib.models.architectures.empty import build_empty, empty_init
from trainlib.models.freezing import freeze
from trainlib.models.sources.registry import (
    BUILT_FOR_CLASSES,
    build_architecture,
    last_layers,
    published_weights,
    read_weights,
)
from trainlib.models.sources.torchvision_models import INCEPTIONS
from trainlib.models.weights.backbone import find_backbone, require_finite, without_common_prefix
from trainlib.models.weights.files import State, assign_state, compare_state, load_weights
from trainlib.models.weights.foreign_keys import match_by_shapes

logger = logging.getLogger("trainlib.models")


@dataclass(frozen=True)
class Classifier:
    """A network from images float32 [N, C, S, S] to logits [N, num_classes], with the names of its parts.

    module   the network, a plain torchvision or torch module
    heads    names of the last layers: of one, such as `fc` or `fc.1`, but for models whose logits are a mean; empty
             where they are not known
    frozen   names of the modules that do not learn: without gradients, and always in eval mode
    kept     names of the BatchNorm layers that learn but whose statistics stay, so always in eval mode as well
    """

    module: nn.Module
    heads: tuple[str, ...]
    frozen: frozenset[str]
    kept: frozenset[str] = frozenset()


def build_model(
    config: ModelConfig, num_classes: int, image_size: Size, *, channels: int = 3, load_weights: bool = True
) -> Classifier:
    """Build the configured classifier, float32, on torch's default device (`with torch.device(...)`), in train mode.

    Initial values come from torch's global generator alone. On the meta device nothing is allocated or downloaded:
    weights files are looked for, and names and shapes are compared.

    channels       of the images: 3, or 1 for grey ones
    load_weights   False if a checkpoint's values follow: `weights` are neither read nor downloaded, and may be gone

    Raises UserError for a model that cannot be built as configured, WeightsError for weights that are missing, damaged
    or do not fit.
    """
    if is_custom(config.name):
        raise UserError(f"model.name: {custom_part_missing(config.name)}")
    device = torch.get_default_device()
    if config.weights is not None and load_weights:
        module, heads = _build_from_weights(config, num_classes, image_size, channels, device)
    else:
        module, heads = _build(config, num_classes, image_size, channels, device)
    module.to(device)
    classifier = Classifier(module, heads, freeze(module, heads, config.freeze))
    set_train_mode(classifier)
    return classifier


def build_for_checkpoint(config: ModelConfig, num_classes: int, image_size: Size, *, channels: int = 3) -> nn.Module:
    """Build the configured network without values, which a checkpoint gives; the arguments are those of `build_model`.

    Torch's random generators are left as they were.
    """
    module = build_empty(lambda: _build_unchanged(config, num_classes, image_size, channels))
    with empty_init():
        _attach_heads(module, config, num_classes)
    return module


def keep_batchnorm(classifier: Classifier) -> Classifier:
    """Return the classifier, in train mode, with BatchNorm statistics that stay as they are, where it has any.

    The layers' scales and shifts learn like any other weight. So Keras advises for fine-tuning
    (https://keras.io/guides/transfer_learning): few pictures give statistics that are far from those that the
    pretrained layers behind expect.
    """
    layers = (name for name, module in classifier.module.named_modules() if isinstance(module, _BatchNorm))
    kept = replace(classifier, kept=frozenset(layers))
    set_train_mode(kept)
    return kept


def lay_out_channels_last(module: nn.Module) -> None:
    """Lay out all that images are convolved with channels last, in place: faster on CPUs and GPUs alike.

    So does `module.to(memory_format=...)`, which fails for tensors of five dimensions, as in timm's LambdaResNet.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def set_train_mode(classifier: Classifier) -> None:
    """Set train mode, but eval mode for what is frozen or kept: BatchNorm statistics stay, dropout is off."""
    classifier.module.train()
    for name, module in classifier.module.named_modules():
        if name in classifier.frozen or name in classifier.kept:
            module.training = False


def check_forward(
    classifier: Classifier,
    image_size: Size,
    num_classes: int,
    *,
    channels: int = 3,
    num_images: int = 2,
    key: str = "data.image_size",
) -> None:
    """Raise UserError unless images of this size give logits [num_images, num_classes]; the model is left as it was.

    A forward pass on the model's device; on the meta device it computes only shapes. There torch imports its compiler
    for linear layers, which takes longer than a few images do on a real device. torch.OutOfMemoryError is passed on.

    key   that the size comes from, for the message
    """
    module = classifier.module
    height, width = sides(image_size)
    images_NCHW = torch.zeros(num_images, channels, height, width, device=next(module.parameters()).device)
    try:
        with torch.no_grad(), preserve_buffers(module):
            logits_NC = module(images_NCHW)
    except torch.OutOfMemoryError:  # which another size of images need not change
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"{key}: {type(module).__name__} cannot take {num_images} images of {height} x {width} "
            f"({reason}); use the size that the model was made for, often 224"
        ) from error
    if logits_NC.shape != (num_images, num_classes):
        raise UserError(
            f"model: {type(module).__name__} gives {list(logits_NC.shape)} for {num_images} images, must give "
            f"[{num_images}, {num_classes}]"
        )


@contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Context manager: restore the buffers on exit, so that a test pass leaves BatchNorm's statistics as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _build_unchanged(config: ModelConfig, num_classes: int, image_size: Size, channels: int) -> nn.Module:
    """Build the architecture before its last layer is changed."""
    by_name = config.weights is not None and published_weights(config) is not None
    return build_architecture(config, num_classes, image_size, channels=channels, published_weights=by_name)


def _build(
    config: ModelConfig, num_classes: int, image_size: Size, channels: int, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the module with initial values, without any for the meta device, and return its heads' names."""
    build = partial(_build_unchanged, config, num_classes, image_size, channels)
    module = build_empty(build) if device.type == "meta" else build()
    return module, _attach_heads(module, config, num_classes)


def _build_from_weights(
    config: ModelConfig, num_classes: int, image_size: Size, channels: int, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the module with the configured weights, and return its heads' names.

    Weights of the published architecture are loaded before its head is changed, others after it. Of weights with
    another head, or without one, the backbone is loaded. For grey images the first layer's are summed over its inputs.
    """
    module = build_empty(lambda: _build_unchanged(config, num_classes, image_size, channels))
    published = published_weights(config)
    by_name = published is not None
    if published is not None and device.type != "meta":
        facts = ", ".join(f"{key} {value}" for key, value in published.facts.items() if value)
        logger.info("model.weights: %s of %s (%s)", published.name, config.name, facts)
    if channels == 3 and config.name in INCEPTIONS and not by_name and "transform_input" not in config.args:
        raise WeightsError(
            f"model.transform_input: is missing: {config.weights} does not tell whether {config.name} was trained with "
            "it. Set true for weights of torchvision, and data.normalize={mean: [0.485, 0.456, 0.406], std: [0.229, "
            "0.224, 0.225]}; set false for others, and data.normalize to what they were trained with"
        )
    state = read_weights(config, image_size, channels, device)
    if config.weights_keys == "shapes" and not by_name:
        state = match_by_shapes(state, module.state_dict(), last_layers(module))
    state = fit_channels(module, without_common_prefix(module, state))
    mismatch_before = compare_state(module, state)
    if not mismatch_before:
        require_finite(state, module.state_dict())
        assign_state(module, state, device)
        return module, _attach_heads(module, config, num_classes)
    with empty_init():
        heads = _attach_heads(module, config, num_classes)
    mismatch_after = compare_state(module, state)
    if not mismatch_after:
        require_finite(state, module.state_dict())
        assign_state(module, state, device)
        return module, heads
    found = find_backbone(module, heads, state)
    if found is None:
        message = f"{config.weights} does not fit {config.name} at data.image_size {image_size}: {mismatch_before}"
        if mismatch_after != mismatch_before:
            message += f"; nor with a head for {num_classes} classes: {mismatch_after}"
        if channels == 3 and is_of_one_channel(module, state):
            message += ". The file is of a network for grey images: set data.channels=1"
        elif mismatch_after.mismatched and not mismatch_after.missing and not mismatch_after.unexpected:
            message += (
                ". If these are tables of positions, whose size is that of the images, set data.image_size to that of "
                "the weights"
            )
        raise WeightsError(f"model.weights: {message}")
    module, heads = _build(config, num_classes, image_size, channels, device)
    _load_backbone(module, *found, config, device)
    return module, heads


def _load_backbone(
    module: nn.Module, backbone: State, sentence: str, config: ModelConfig, device: torch.device
) -> None:
    """Load these tensors into the module, which keeps its initial values for all that they leave out; say so."""
    require_finite(backbone, module.state_dict())
    if device.type != "meta":
        load_weights(module, backbone, strict=False)
    logger.warning("model.weights: of %s %s", config.weights, sentence)


def _attach_heads(module: nn.Module, config: ModelConfig, num_classes: int) -> tuple[str, ...]:
    """Give the module new last layers for `num_classes`, and return their names."""
    names = last_layers(module)
    if config.name in BUILT_FOR_CLASSES:
        if config.head == "append":
            raise UserError(
                f"model.head: append makes sense only for a model published with 1000 classes, and {config.name} is "
                "built for the classes of the data: use head: replace"
            )
        return names
    lasts = [module.get_submodule(name) for name in names]
    if not all(isinstance(last, nn.Linear | nn.Conv2d) for last in lasts):
        raise UserError(
            f"model.name: {config.name} is published without a layer for classes: set model.num_classes=1000, which "
            "gives it one, or choose another model"
        )
    if config.head == "replace":
        for name, last in zip(names, lasts, strict=True):
            module.set_submodule(name, _fresh(last, num_classes, behind=False))
        return names
    if len(names) > 1:
        raise UserError(
            f"model.head: append needs one last layer, and {config.name} has {len(names)} ({', '.join(names)}): use "
            "head: replace"
        )
    [name], [last] = names, lasts
    new = _fresh(last, num_classes, behind=True)
    parent = module.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.Sequential) and parent[-1] is last:
        parent.append(new)
        return (f"{name.rpartition('.')[0]}.{len(parent) - 1}",)
    module.set_submodule(name, nn.Sequential(last, new))
    return (f"{name}.1",)


def _fresh(layer: nn.Module, num_classes: int, *, behind: bool) -> nn.Module:
    """Return a new layer of the same kind, linear or 1x1 convolution, to replace this one or to follow it."""
    if isinstance(layer, nn.Conv2d):
        inputs = layer.out_channels if behind else layer.in_channels
        return nn.Conv2d(inputs, num_classes, kernel_size=1, bias=layer.bias is not None)
    assert isinstance(layer, nn.Linear)
    inputs = layer.out_features if behind else layer.in_features
    return nn.Linear(inputs, num_classes, bias=layer.bias is not None)
