"""From an architecture to a classifier: initial weights, the last layer, and what is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from trainlib.config import ModelConfig, custom_part_missing, is_custom
from trainlib.errors import UserError, WeightsError
from trainlib.models.architectures.registry import BUILT_FOR_CLASSES, stock_model, without_values
from trainlib.models.weights import adopt, compare, published, read_weights


@dataclass(frozen=True)
class Classifier:
    """A model for images: float32 [N, 3, S, S] to logits [N, num_classes].

    module   the network; a plain torchvision or torch module
    head     name of the last linear layer, such as `fc`, `classifier.6` or `fc.1`
    frozen   names of the modules that do not learn: without gradients, and always in eval mode
    """

    module: nn.Module
    head: str
    frozen: frozenset[str]


def build_model(config: ModelConfig, num_classes: int, image_size: int, *, load_weights: bool = True) -> Classifier:
    """The configured classifier, float32, on torch's default device (`with torch.device(...)`), in train mode.

    Initial values come from torch's global generator alone. On the meta device nothing is allocated or downloaded:
    weights are only looked for and compared. Raises UserError for a model that cannot be built as configured,
    WeightsError for weights that are missing, damaged or do not fit.

    load_weights   False for the same classifier around a checkpoint's values: `weights` are neither read nor
                   downloaded and may be gone; the values are to be overwritten
    """
    if is_custom(config.name):
        raise UserError(f"model.name: {custom_part_missing(config.name)}")
    device = torch.get_default_device()
    if config.weights is not None and load_weights:
        module, head = _build_from_weights(config, num_classes, image_size, device)
    else:
        with without_values() if device.type == "meta" else nullcontext():
            module = _stock(config, num_classes, image_size)
            head = _attach_head(module, config, num_classes)
    module.to(device)
    classifier = Classifier(module, head, _freeze(module, head, config.freeze))
    set_train_mode(classifier)
    return classifier


def set_train_mode(classifier: Classifier) -> None:
    """Train mode, except for what is frozen: its BatchNorm statistics do not move and its dropout drops nothing."""
    classifier.module.train()
    for name, module in classifier.module.named_modules():
        if name in classifier.frozen:
            module.training = False


def check_forward(classifier: Classifier, image_size: int, num_classes: int, *, num_images: int = 2) -> None:
    """Raise UserError unless images of this size give logits [num_images, num_classes]; the model is left as it was.

    A forward pass where the model is: on the meta device it computes nothing but shapes. There torch imports its
    compiler for linear layers, which takes longer than a few images do on a real device.
    """
    module = classifier.module
    images_NCHW = torch.zeros(num_images, 3, image_size, image_size, device=next(module.parameters()).device)
    try:
        with torch.no_grad(), preserve_buffers(module):
            logits_NC = module(images_NCHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"data.image_size: {type(module).__name__} cannot take {num_images} images of {image_size} x {image_size} "
            f"({reason}); use the size that the model was made for, often 224"
        ) from error
    if logits_NC.shape != (num_images, num_classes):
        raise UserError(
            f"model: {type(module).__name__} gives {list(logits_NC.shape)} for {num_images} images, must give "
            f"[{num_images}, {num_classes}]"
        )


@contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Put back what BatchNorm has learned from the images of a trial."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _stock(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """The architecture before its last layer changes; published weights, named, decide on some of its arguments."""
    by_name = config.weights is not None and published(config) is not None
    return stock_model(config, num_classes, image_size, published_weights=by_name)


def _build_from_weights(
    config: ModelConfig, num_classes: int, image_size: int, device: torch.device
) -> tuple[nn.Module, str]:
    """The module with the configured weights; those of a stock model are loaded before its head changes."""
    with without_values():
        module = _stock(config, num_classes, image_size)
    state = read_weights(config, device)
    stock_misfit = compare(module, state)
    if not stock_misfit:
        adopt(module, state, device)
        return module, _attach_head(module, config, num_classes)
    with without_values():
        head = _attach_head(module, config, num_classes)
    final_misfit = compare(module, state)
    if final_misfit:
        message = f"{config.weights} does not fit {config.name} at data.image_size {image_size}: {stock_misfit}"
        if final_misfit != stock_misfit:
            message += f"; nor with a head for {num_classes} classes: {final_misfit}"
        raise WeightsError(f"model.weights: {message}")
    adopt(module, state, device)
    return module, head


def _attach_head(module: nn.Module, config: ModelConfig, num_classes: int) -> str:
    """Give the module a fresh last layer for `num_classes`; returns that layer's name."""
    name = _last_layer(module)
    if config.name in BUILT_FOR_CLASSES:
        if config.head == "append":
            raise UserError(
                f"model.head: append makes sense only for a model published with 1000 classes, and {config.name} is "
                "built for the classes of the data: use head: replace"
            )
        return name
    last = module.get_submodule(name)
    if config.head == "replace":
        module.set_submodule(name, _fresh(last, num_classes, behind=False))
        return name
    new = _fresh(last, num_classes, behind=True)
    parent = module.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.Sequential) and parent[-1] is last:
        parent.append(new)
        return f"{name.rpartition('.')[0]}.{len(parent) - 1}"
    module.set_submodule(name, nn.Sequential(last, new))
    return f"{name}.1"


def _last_layer(module: nn.Module) -> str:
    """The name of the last linear layer; of the last convolution in a model without any (SqueezeNet)."""
    linear: list[str] = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    convolutions: list[str] = [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)]
    return (linear or convolutions)[-1]


def _fresh(layer: nn.Module, num_classes: int, *, behind: bool) -> nn.Module:
    """A new layer of the same kind, linear or 1x1 convolution, to stand in this one's place or behind it."""
    if isinstance(layer, nn.Conv2d):
        inputs = layer.out_channels if behind else layer.in_channels
        return nn.Conv2d(inputs, num_classes, kernel_size=1, bias=layer.bias is not None)
    assert isinstance(layer, nn.Linear)
    inputs = layer.out_features if behind else layer.in_features
    return nn.Linear(inputs, num_classes, bias=layer.bias is not None)


def _freeze(module: nn.Module, head: str, freeze: str | None) -> frozenset[str]:
    """Turn off the gradients of the frozen part; returns the names of its modules."""
    if freeze is None:
        return frozenset()
    if freeze == "features":
        children = [name for name, _ in module.named_children()]
        if "features" not in children:
            raise UserError(
                f"model.freeze: features needs a submodule of that name, and {type(module).__name__} has "
                f"{', '.join(children)}: use freeze: backbone (everything but {head})"
            )
        module.get_submodule("features").requires_grad_(False)
        return frozenset(n for n, _ in module.named_modules() if n == "features" or n.startswith("features."))
    module.requires_grad_(False)
    module.get_submodule(head).requires_grad_(True)
    # The modules that contain the head stay in train mode; they do nothing but call their children.
    return frozenset(n for n, _ in module.named_modules() if n and n != head and not head.startswith(f"{n}."))
