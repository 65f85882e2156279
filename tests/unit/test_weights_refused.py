"""Weights that do not fit, are damaged or are not there: one message each; and a file never runs code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from weight_files import (
    as_old_format,
    as_pth,
    as_safetensors,
    build,
    stock,
    without_head,
)

from trainlib.errors import WeightsError


@pytest.mark.parametrize("on_meta", [False, True])
def test_weights_of_another_architecture(on_meta: bool, tmp_path: Path) -> None:
    path = as_pth(stock("squeezenet1_1"), tmp_path / "squeeze")
    with torch.device("meta" if on_meta else "cpu"), pytest.raises(WeightsError) as caught:
        build(weights=str(path))
    message = str(caught.value)
    assert message.startswith(f"model.weights: {path} does not fit shufflenet_v2_x0_5 at data.image_size 32")
    num_missing = sum("num_batches" not in name for name in stock())
    assert f": {num_missing} missing: conv1.0.weight, conv1.1.weight, conv1.1.bias, ..." in message
    assert message.count("missing") == 1  # the head makes no difference
    assert "52 unexpected: features.0.weight, features.0.bias, features.3.squeeze.weight, ..." in message


def test_two_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    state = {f"{name}.backbone.{key}": tensor for name in ("student", "teacher") for key, tensor in stock().items()}
    with pytest.raises(WeightsError, match=r"holds 2 networks that fit, with the prefixes student.backbone., teacher"):
        build(weights=str(as_pth(state, tmp_path / "w")))


@pytest.mark.parametrize("on_meta", [False, True])
def test_a_file_without_the_order_of_the_network_is_refused_where_that_counts(on_meta: bool, tmp_path: Path) -> None:
    """safetensors sorts by name, and a scale, a shift, a mean and a variance are of one shape."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in stock()))
    numbered = {
        f"{layers.index(layer):03}.{kind}": t for n, t in stock().items() for layer, _, kind in [n.rpartition(".")]
    }
    build(weights=str(as_pth(numbered, tmp_path / "w")), weights_keys="shapes")
    path = as_safetensors(numbered, tmp_path / "w")
    with (
        torch.device("meta" if on_meta else "cpu"),
        pytest.raises(WeightsError, match="alphabetical order of their names"),
    ):
        build(weights=str(path), weights_keys="shapes")


def test_a_larger_network_of_the_same_family_is_refused(tmp_path: Path) -> None:
    """All names and shapes of a ResNet-18 are in a ResNet-34."""
    path = as_pth(stock("resnet34"), tmp_path / "w")
    with torch.device("meta"), pytest.raises(WeightsError, match=r"96 unexpected: layer1.2.conv1.weight"):
        build(name="resnet18", weights=str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("has_head", [True, False])
def test_values_that_are_no_numbers_are_refused_with_the_tensors_name(
    value: float, has_head: bool, tmp_path: Path
) -> None:
    """Also those that are too large for float32."""
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in stock().items()}
    state["conv5.1.bias"][3] = value
    path = as_pth(state if has_head else without_head(state), tmp_path / "w")
    with pytest.raises(WeightsError, match=r"conv5.1.bias holds values that are infinite or not a number"):
        build(weights=str(path))


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.sparse_coo])
def test_numbers_of_another_kind_are_refused_with_the_tensors_name(kind: Any, tmp_path: Path) -> None:
    state = stock()
    bias = state["conv5.1.bias"]
    state["conv5.1.bias"] = bias.to_sparse() if kind is torch.sparse_coo else bias.to(kind)
    with pytest.raises(WeightsError, match=rf"conv5.1.bias holds .*{kind}.*must hold plain floating-point numbers"):
        build(weights=str(as_pth(state, tmp_path / "w")))


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class Settings:
    """What a training script may leave in its checkpoint."""


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "pickle 0", "settings", "module"])
def test_a_pickle_that_would_run_code_does_not(form: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "pwned"
    content = {"state_dict": stock("squeezenet1_1"), "extra": Malicious(folder)}
    if form == "zip":
        torch.save(content, path)
    elif form == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "settings":
        torch.save({"state_dict": {}, "settings": Settings()}, path)
    elif form == "module":
        torch.save(nn.Linear(2, 2), path)
    else:
        path.write_bytes(pickle.dumps({"extra": Malicious(folder)}, protocol=0 if form == "pickle 0" else None))
    with pytest.raises(
        WeightsError, match=r"holds more than tensors; reading that can run code, so it was not read"
    ) as e:
        build(weights=str(path))
    assert not folder.exists()
    assert "torch.load('weights.pth', weights_only=False) and torch.save its state_dict alone" in str(e.value)


def garbage(size: int) -> bytes:
    return torch.randint(256, (size,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"<html><body>404</body></html>", garbage(1000), b"\x80\x02" + garbage(100), None, 100, 5000],
    ids=["empty", "text", "html", "garbage", "pickle garbage", "half", "first 100 bytes", "first 5000 bytes"],
)
def test_damaged_files_are_told(content: bytes | int | None, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if not isinstance(content, bytes):
        whole = (as_pth if suffix == ".pth" else as_safetensors)(stock("squeezenet1_1"), path).read_bytes()
        content = whole[: content or len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"is damaged or no weights file \(.*\): copy or download it again"
    ) as caught:
        build(weights=str(path))
    assert "\n" not in str(caught.value)
    assert f"{path} ({len(content)} bytes)" in str(caught.value)


@pytest.mark.parametrize("size", range(0, 40_000, 1013))
def test_an_old_file_cut_anywhere_is_told(size: int, tmp_path: Path) -> None:
    path = as_old_format({"a": torch.zeros(100, 100)}, tmp_path / "w")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"w\.pt"):
        build(weights=str(path))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing.pth", r"model.weights: got 'missing.pth', must be an existing file: /.*/missing.pth is none"),
        ("./missing", r"model.weights: got './missing', must be an existing file: /.*/missing is none"),
        ("~/missing.pth", r"model.weights: got '~/missing.pth', must be an existing file: /.*/missing.pth is none"),
        ("~nobody-of-this-name/w.pth", "must be an existing file: /.*/~nobody-of-this-name/w.pth is none"),
        (".", "got '.', must be one of"),
        ("../", "got '../', must be an existing file: /.* is none"),
        (
            "IMAGENET1K_V9",
            r"got 'IMAGENET1K_V9', must be one of pretrained, IMAGENET1K_V1, DEFAULT, or the path of a file",
        ),
    ],
)
def test_weights_that_do_not_exist(weights: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        build(weights=weights)


def test_our_own_models_have_no_published_weights() -> None:
    with pytest.raises(
        WeightsError, match=r"got 'IMAGENET1K_V1', must be the path of a file \(.pt, .pth, .safetensors\)"
    ):
        build(name="cifar10_cnn", weights="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "a mapping of 'epoch', 'weights'"),
        ([torch.zeros(1)], "<class 'list'>"),
        ({"state_dict": {"a": 1}}, "a mapping of 'a'"),
    ],
    ids=["other keys", "list", "numbers"],
)
def test_files_without_a_state_dict(content: Any, found: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=f"must hold a state_dict .* it holds {found}"):
        build(weights=str(path))
