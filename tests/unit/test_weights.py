"""Initial weights: the right values in the right place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torchvision
from torch import Tensor
from weight_files import (
    NAME,
    State,
    as_old_format,
    as_pth,
    as_safetensors,
    assert_same,
    build,
    section,
    stock,
    without_head,
)

from trainlib.config import load_config
from trainlib.errors import WeightsError
from trainlib.models import build_model
from trainlib.models.weights.files import assign_state, load_weights, weights_sha256
from trainlib.training.build.model import build_classifier


def under(key: str) -> Callable[[State, Path], Path]:
    def save(state: State, path: Path) -> Path:
        torch.save({"epoch": 3, key: state}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")

    return save


def prefixed(prefix: str) -> Callable[[State, Path], Path]:
    return lambda state, path: as_pth({prefix + name: tensor for name, tensor in state.items()}, path)


def without_counters(state: State, path: Path) -> Path:
    """As files were before BatchNorm counted its batches."""
    return as_pth({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)


def with_average(key: str, beside: str, prefix: str, more: State) -> Callable[[State, Path], Path]:
    """The average, and the weights beside it, as timm and torchvision save them."""

    def save(state: State, path: Path) -> Path:
        plain = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        average = more | {prefix + name: tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, beside: plain, key: average}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")

    return save


FORMS = [
    as_pth,
    as_old_format,
    as_safetensors,
    under("state_dict"),
    under("model"),
    prefixed("module."),
    prefixed("_orig_mod."),
    prefixed("module._orig_mod."),
    without_counters,
    with_average("state_dict_ema", "state_dict", "", {}),
    with_average("model_ema", "model", "module.", {"n_averaged": torch.tensor(3)}),
]


@pytest.mark.parametrize("save", FORMS)
def test_stock_weights_load_before_the_head_changes(save: Callable[[State, Path], Path], tmp_path: Path) -> None:
    state = stock()
    classifier = build(weights=str(save(state, tmp_path / "w")))
    expected = without_head(state)
    if save is without_counters:
        expected = {k: torch.zeros_like(v) if "num_batches" in k else v for k, v in expected.items()}
    assert_same(classifier.module, expected)
    assert classifier.module.get_submodule("fc").weight.shape == (10, 1024)


def test_stock_weights_keep_their_head_under_an_appended_one(tmp_path: Path) -> None:
    state = stock()
    classifier = build(weights=str(as_pth(state, tmp_path / "w")), head="append")
    renamed = {name.replace("fc.", "fc.0."): tensor for name, tensor in state.items()}
    assert_same(classifier.module, renamed)
    assert classifier.heads == ("fc.1",)


@pytest.mark.parametrize("values", [{}, {"head": "append"}, {"name": "cifar10_cnn"}], ids=["replace", "append", "cnn"])
def test_weights_of_the_final_model_load_after_the_head(values: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = build(**values).module.state_dict()
    torch.manual_seed(2)
    assert_same(build(**values, weights=str(as_safetensors(state, tmp_path / "w"))).module, state)


def test_narrow_weights_become_float32(tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in stock().items()}
    module = build(weights=str(as_pth(half, tmp_path / "w"))).module
    assert_same(module, {k: v.float() if v.is_floating_point() else v for k, v in without_head(half).items()})


def test_tensors_that_share_memory_in_the_file_do_not_in_the_model(tmp_path: Path) -> None:
    state = stock()
    state["conv1.1.weight"] = state["conv1.1.bias"]
    module = build(weights=str(as_pth(state, tmp_path / "w"))).module
    with torch.no_grad():
        module.get_parameter("conv1.1.weight").zero_()
    assert torch.equal(module.get_parameter("conv1.1.bias"), state["conv1.1.bias"])


def test_trained_weights_are_trainable(tmp_path: Path) -> None:
    module = build(weights=str(as_pth(stock(), tmp_path / "w"))).module
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in module.parameters())
    module(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_head_of_a_loaded_model_comes_from_the_generator(tmp_path: Path) -> None:
    path = str(as_pth(stock(), tmp_path / "w"))

    def head(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return build(weights=path).module.get_parameter("fc.weight")

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


@pytest.mark.parametrize("name", ["googlenet", "densenet121"])
def test_files_with_other_names_than_todays(name: str, tmp_path: Path) -> None:
    """GoogLeNet's file has auxiliary heads; DenseNet's has `norm.1` where the module is now `norm1`."""
    args = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    state = stock(name, **args)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor for key, tensor in state.items()}
    own: dict[str, Any] = {"transform_input": False} if name == "googlenet" else {}
    module = build(name=name, weights=str(as_pth(old, tmp_path / "w")), **own).module
    head = "fc" if name == "googlenet" else "classifier"
    expected = {key: tensor for key, tensor in without_head(state, head).items() if not key.startswith("aux")}
    assert expected.keys() == without_head(module.state_dict(), head).keys()
    assert_same(module, expected)


@pytest.mark.parametrize("argument", [None, True, False])
def test_a_file_does_not_tell_how_images_are_normalised_inside(argument: bool | None, tmp_path: Path) -> None:
    path = str(as_pth(stock("googlenet", aux_logits=True, init_weights=False), tmp_path / "w"))
    args = {} if argument is None else {"transform_input": argument}
    if argument is None:
        with pytest.raises(WeightsError, match=r"model.transform_input: is missing: .* Set true for weights of torchv"):
            build(name="googlenet", weights=path)
    else:
        assert bool(build(name="googlenet", weights=path, **args).module.transform_input) == argument


def test_a_path_in_the_home_folder_needs_no_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = stock()
    as_pth(state, tmp_path / "w").rename(tmp_path / "weights")
    assert_same(build(weights="~/weights").module, without_head(state))


def test_published_weights_are_read_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = stock()
    in_cache(NAME, state, tmp_path)
    assert_same(build(weights="IMAGENET1K_V1").module, without_head(state))


def in_cache(name: str, state: State, torch_home: Path) -> Path:
    """Place a state_dict where torch keeps the published weights of this model."""
    url: str = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    path = torch_home / "hub/checkpoints" / url.split("/")[-1]
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("name", "image_size"), [("googlenet", 32), ("inception_v3", 75)])
def test_a_checkpoint_needs_the_architecture_but_not_the_weights(
    name: str, image_size: int, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published weights of these two want their images normalised in another way, inside of the model."""
    monkeypatch.setenv("TORCH_HOME", str(workdir))
    path = in_cache(name, torchvision.models.get_model(name, init_weights=False).state_dict(), workdir)
    model = f"model={{name: {name}, weights: IMAGENET1K_V1, freeze: backbone, head: append}}"
    config = load_config(["quickstart", model, f"data.image_size={image_size}"])
    trained = build_classifier(config, 10, torch.device("cpu"))
    path.unlink()
    resumed = build_classifier(config, 10, torch.device("cpu"), with_weights=False)
    assert not list(path.parent.iterdir())

    assert (resumed.heads, resumed.frozen) == (trained.heads, trained.frozen)
    learning = [[p.requires_grad for p in classifier.module.parameters()] for classifier in (trained, resumed)]
    assert learning[0] == learning[1]
    resumed.module.load_state_dict(trained.module.state_dict())
    images_NCHW = torch.rand(2, 3, image_size, image_size)
    for classifier in (trained, resumed):
        classifier.module.eval()
    expected = trained.module(images_NCHW)
    assert torch.equal(resumed.module(images_NCHW), expected)
    module: Any = trained.module
    module.transform_input = False
    assert not torch.equal(trained.module(images_NCHW), expected)


@pytest.mark.parametrize("weights", ["gone.pth", "gone/weights", "~/gone"])
def test_a_checkpoint_does_not_need_the_weights_file(weights: str) -> None:
    config = section(weights=weights, freeze="backbone", head="append")
    resumed = build_model(config, 10, 32, load_weights=False)
    fresh = build_model(config.model_copy(update={"weights": None}), 10, 32)
    assert (resumed.heads, resumed.frozen) == (fresh.heads, fresh.frozen)
    assert resumed.module.state_dict().keys() == fresh.module.state_dict().keys()


@pytest.mark.slow
def test_a_run_goes_on_without_its_weights_file_and_does_not_begin_without(workdir: Path) -> None:
    run = ["quickstart", "data={name: synthetic, limit: 64, val_fraction: 0}", "model.weights=w.pth"]
    run += ["train={steps: 1, batch_size: 32}", "scheduler=null", "tracking={tensorboard: false, progress: false}"]
    torch.save(build(name="cifar10_cnn").module.state_dict(), "w.pth")
    assert ranks.train(run, cwd=workdir) == [0], ranks.console(workdir)
    (workdir / "w.pth").unlink()
    assert ranks.train([*run, "train.steps=2", "--resume"], cwd=workdir) == [0], ranks.console(workdir)
    assert "from step 1" in ranks.console(workdir)

    assert ranks.train([*run, "--fresh"], cwd=workdir) == [2]
    message = f"error: model.weights: got 'w.pth', must be an existing file: {workdir / 'w.pth'} is none\n"
    assert ranks.console(workdir).endswith(message)


def test_no_network_says_which_file_to_place_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(WeightsError) as caught:
        build(weights="IMAGENET1K_V1")
    assert "IMAGENET1K_V1 of shufflenet_v2_x0_5 could not be downloaded" in str(caught.value)
    file = "shufflenetv2_x0.5-f707e7126e.pth"
    assert f"Place the file {file}, " in str(caught.value)
    assert f"in {tmp_path / 'hub' / 'checkpoints'}, or give the path" in str(caught.value)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("values", "image_size", "message"),
    [
        ({"weights": "IMAGENET1K_V1"}, 32, None),
        ({"name": "inception_v3", "weights": "IMAGENET1K_V1"}, 299, None),
        ({"name": "vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}, 384, None),
        (
            {"name": "vit_b_16", "weights": "IMAGENET1K_V1"},
            32,
            r"1 of another shape: encoder.pos_embedding \(file 1x197x768, model 1x5x768\).*set data.image_size",
        ),
        ({"name": "vgg16", "width": 0.5, "weights": "IMAGENET1K_V1"}, 32, "32 of another shape: features.0.weight"),
    ],
    ids=["shufflenet", "inception", "vit 384", "vit 32", "half a vgg"],
)
def test_published_weights_are_compared_without_a_file(
    values: dict[str, Any], image_size: int, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, with an empty cache and no download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.device("meta"):
        if message is None:
            module = build(10, image_size, **values).module
            assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
        else:
            with pytest.raises(WeightsError, match=message):
                build(10, image_size, **values)
    assert not list(tmp_path.rglob("*"))


def test_a_network_whose_layers_have_versions_loads_its_own_weights() -> None:
    """MNASNet refuses a state_dict without them, as every one from a safetensors file is."""
    network, loaded, assigned = (torchvision.models.mnasnet0_5(weights=None) for _ in range(3))
    load_weights(loaded, dict(network.state_dict()))
    assign_state(assigned, dict(network.state_dict()), torch.device("cpu"))
    for other in (loaded, assigned):
        assert weights_sha256(other.state_dict()) == weights_sha256(network.state_dict())
