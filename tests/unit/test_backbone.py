"""Weights of which the backbone fits are loaded, whatever their head and the prefix of their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from weight_files import State, as_pth, as_safetensors, assert_same, build, stock, without_head

from trainlib.errors import WeightsError


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(num_classes: int = 12) -> State:
    return build(num_classes).module.state_dict()


FILES: dict[str, tuple[State, str]] = {
    "another head": (other(), "left out are 2 of the file: fc.bias, fc.weight; the last layer, fc, begins with random"),
    "no head": (without_head(stock()), "tensors are loaded; the last layer, fc, begins with random weights"),
    "an appended head": (
        build(head="append").module.state_dict(),
        "left out are 4 of the file: fc.0.bias, fc.0",
    ),
    "half a head": (without_head(stock()) | {"fc.bias": torch.zeros(10)}, "left out are 1 of the file: fc.bias"),
    "a prefix": (prefixed("backbone.", without_head(stock())), "tensors are loaded; the last layer, fc, begins"),
    "two prefixes": (
        prefixed("model.encoder.", without_head(stock())),
        "tensors are loaded; the last layer, fc, begins",
    ),
    "parts beside it": (
        prefixed("backbone.", without_head(stock())) | {"neck.weight": torch.zeros(2), "projector.bias": torch.ones(2)},
        "without the prefix 'backbone.' of their names; left out are 2 of the file: neck.weight, projector.bias",
    ),
    "wrapped": (prefixed("module._orig_mod.", other()), "left out are 2 of the file: fc.bias, fc.weight"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_backbone_is_loaded_and_the_rest_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, words = FILES[name]
    path = as_safetensors(state, tmp_path / "w")
    module = build(10, weights=str(path)).module
    plain = {key.split("odel.encoder.")[-1].removeprefix("backbone."): tensor for key, tensor in state.items()}
    plain = {key.removeprefix("module._orig_mod."): tensor for key, tensor in plain.items()}
    backbone = {key: plain[key] for key in without_head(module.state_dict())}
    assert_same(module, backbone)
    assert module.get_parameter("fc.weight").shape == (10, 1024)
    assert module.get_parameter("fc.weight").std() > 0
    [record] = caplog.records
    assert record.getMessage().startswith(f"model.weights: of {path} {len(backbone)} tensors are loaded")
    assert words in record.getMessage()


def test_a_prefix_before_every_name_leaves_nothing_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = build(10).module.state_dict()
    module = build(10, weights=str(as_pth(prefixed("model.", state), tmp_path / "w"))).module
    assert_same(module, state)
    assert not caplog.records


def test_a_part_beside_it_does_not_cost_the_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = build(10).module.state_dict()
    path = as_pth(state | {"criterion.weight": torch.ones(2)}, tmp_path / "w")
    assert_same(build(10, weights=str(path)).module, state)
    assert caplog.messages[0].endswith("left out are 1 of the file: criterion.weight")


def test_the_new_head_is_that_of_the_seed(tmp_path: Path) -> None:
    path = str(as_pth(other(), tmp_path / "w"))
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(build(10, weights=path).module.get_parameter("fc.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_on_the_meta_device_shapes_are_compared(tmp_path: Path) -> None:
    path = str(as_pth(other(), tmp_path / "w"))
    with torch.device("meta"):
        module = build(10, weights=path).module
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}


def test_a_number_that_is_none_in_the_head_left_out_does_no_harm(tmp_path: Path) -> None:
    state = other()
    state["fc.bias"] = state["fc.bias"] * float("nan")
    assert_same(build(10, weights=str(as_pth(state, tmp_path / "w"))).module, without_head(state))


def test_a_backbone_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in without_head(stock()).items() if not name.startswith("conv5.")}
    with pytest.raises(WeightsError, match=r"7 missing: conv5.0.weight"):
        build(10, weights=str(as_pth(state, tmp_path / "w")))
