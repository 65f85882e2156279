"""Networks for grey images: the first layer has one input, whose weights are the sums over red, green and blue.

So a network of one channel computes what the same network of three computes of a grey picture that it is given three
times, up to the rounding of sums, whether its weights are fresh or trained.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the layer that images go into, with its name; None for a network without a convolution."""
    return next(((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)), None)


def to_one_channel(module: nn.Module) -> nn.Module:
    """Give the first layer of a network for three channels one input; return the network."""
    found = first_convolution(module)
    assert found is not None, "of torchvision's classifiers and ours"
    layer = found[1]
    layer.weight = nn.Parameter(summed(layer.weight.detach()), requires_grad=layer.weight.requires_grad)
    layer.in_channels = 1
    return module


def fit_channels(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict whose first layer has one input where the module's has one; others as they are.

    Names may have a prefix.
    """
    found = first_convolution(module)
    if found is None or found[1].in_channels != 1:
        return dict(state)
    weight = f"{found[0]}.weight"
    return {
        key: summed(value) if key == weight or key.endswith(f".{weight}") else value for key, value in state.items()
    }


def is_of_one_channel(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return True if the first layer of a state_dict, whose names may have a prefix, has one input."""
    first = first_convolution(module)
    if first is None:
        return False
    weight = f"{first[0]}.weight"
    found = (value for key, value in state.items() if key == weight or key.endswith(f".{weight}"))
    return any(value.ndim == 4 and value.shape[1] == 1 for value in found)


def summed(weight: Tensor) -> Tensor:
    """Return the weights [O, 3, H, W] of a convolution summed over its inputs, [O, 1, H, W]; any other as they are."""
    return weight.sum(1, keepdim=True) if weight.ndim == 4 and weight.shape[1] == 3 else weight
