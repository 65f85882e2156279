"""Weights under foreign names: matched by order and shape, and refused with both lists where that is not one to one."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from trainlib.errors import WeightsError
from trainlib.models.weights.foreign_keys import match_by_shapes


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other names, whose order in the alphabet is another one, and no counters."""
    kept = [name for name in state if not name.endswith("num_batches_tracked")]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in kept))
    return {
        f"net.{len(layers) - layers.index(name.rpartition('.')[0])}_.{name.rpartition('.')[2]}": state[name]
        for name in kept
    }


@pytest.mark.parametrize("source", ["timm/resnet18", "timm/tf_efficientnet_lite0", "resnet18", "mobilenet_v2"])
def test_every_tensor_comes_to_its_place(source: str) -> None:
    import timm

    torch.manual_seed(0)
    name = source.removeprefix("timm/")
    made = [timm.create_model(name) if name != source else torchvision.models.get_model(name) for _ in range(2)]
    head = {"resnet18": "fc", "tf_efficientnet_lite0": "classifier", "mobilenet_v2": "classifier.1"}[name]
    theirs, expected = (module.state_dict() for module in made)
    found = match_by_shapes(renamed(theirs), expected, [head])
    assert set(found) == {name for name in expected if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(found[name], theirs[name]) for name in found)
    made[1].load_state_dict(found, strict=False)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(made[0].eval()(images), made[1].eval()(images))


def small(classes: int = 3, width: int = 4) -> dict[str, Tensor]:
    return {"a.weight": torch.zeros(width, 2), "a.bias": torch.zeros(width), "b.weight": torch.zeros(classes, width)}


def test_a_last_layer_of_another_shape_is_left_out() -> None:
    expected = {"x.weight": torch.zeros(4, 2), "x.bias": torch.zeros(4), "y.weight": torch.zeros(5, 4)}
    assert set(match_by_shapes(small(), expected, ["y"])) == {"x.weight", "x.bias"}
    assert set(match_by_shapes(small(classes=5), expected, ["y"])) == set(expected)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (small(width=6), "tensor 1 of the file .*\n.*\n.* a.weight 6x2 +x.weight 4x2\n.* a.bias 6 +x.bias 4"),
        ({"a.weight": torch.zeros(4, 2), "b.weight": torch.zeros(3, 4)}, "tensor 2 (.|\n)*none +x.bias"),
        ({"z.weight": torch.zeros(1), **small()}, "3 and 2 tensors(.|\n)*z.weight 1 +x.weight 4x2(.|\n)* none"),
        ({}, "0 and 2 tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_lists(state: dict[str, Tensor], message: str) -> None:
    expected = {"x.weight": torch.zeros(4, 2), "x.bias": torch.zeros(4), "y.weight": torch.zeros(5, 4)}
    with pytest.raises(WeightsError, match=message):
        match_by_shapes(state, expected, ["y"])
