"""Initial weights: the right values in the right place, or one message; and a file never runs code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from trainlib.config import ModelConfig, load_config
from trainlib.errors import WeightsError
from trainlib.models import Classifier, build_model
from trainlib.training.build import build_classifier

NAME = "shufflenet_v2_x0_5"  # small, with BatchNorm
State = dict[str, Tensor]


def section(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": NAME} | values)


def build(num_classes: int = 10, image_size: int = 32, **values: Any) -> Classifier:
    return build_model(section(**values), num_classes, image_size)


def stock(name: str = NAME, seed: int = 7, **args: Any) -> State:
    """A stock torchvision model's state, with every value different from a fresh model's."""
    torch.manual_seed(seed)
    state: State = torchvision.models.get_model(name, **args).state_dict()
    return {k: v + 0.5 if v.is_floating_point() else v + 3 for k, v in state.items()}


def assert_same(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def without_head(state: State, head: str = "fc") -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}


def as_pth(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_old_format(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pt"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pt")


def as_safetensors(state: State, path: Path) -> Path:
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


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
    assert classifier.head == "fc.1"


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
    module = build(name=name, weights=str(as_pth(old, tmp_path / "w"))).module
    head = "fc" if name == "googlenet" else "classifier"
    expected = {key: tensor for key, tensor in without_head(state, head).items() if not key.startswith("aux")}
    assert expected.keys() == without_head(module.state_dict(), head).keys()
    assert_same(module, expected)


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
    path = torch_home / "hub/checkpoints" / torchvision.models.get_model_weights(name).IMAGENET1K_V1.url.split("/")[-1]
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

    assert (resumed.head, resumed.frozen) == (trained.head, trained.frozen)
    learning = [[p.requires_grad for p in classifier.module.parameters()] for classifier in (trained, resumed)]
    assert learning[0] == learning[1]
    resumed.module.load_state_dict(trained.module.state_dict())
    images_NCHW = torch.rand(2, 3, image_size, image_size)
    for classifier in (trained, resumed):
        classifier.module.eval()
    expected = trained.module(images_NCHW)
    assert torch.equal(resumed.module(images_NCHW), expected)
    trained.module.transform_input = False
    assert not torch.equal(trained.module(images_NCHW), expected)


@pytest.mark.parametrize("weights", ["gone.pth", "gone/weights", "~/gone"])
def test_a_checkpoint_does_not_need_the_weights_file(weights: str) -> None:
    config = section(weights=weights, freeze="backbone", head="append")
    resumed = build_model(config, 10, 32, load_weights=False)
    fresh = build_model(config.model_copy(update={"weights": None}), 10, 32)
    assert (resumed.head, resumed.frozen) == (fresh.head, fresh.frozen)
    assert resumed.module.state_dict().keys() == fresh.module.state_dict().keys()


def test_a_run_goes_on_without_its_weights_file_and_does_not_begin_without(workdir: Path) -> None:
    run = ["quickstart", "data={name: synthetic, limit: 64, val_fraction: 0}", "model.weights=w.pth"]
    run += ["train={steps: 1, batch_size: 32}", "tracking={tensorboard: false, progress: false}"]
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
            r"1 of another shape: encoder.pos_embedding \(file 1x197x768, model 1x5x768\)",
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


def test_weights_for_another_number_of_classes(tmp_path: Path) -> None:
    path = as_pth(build(12).module.state_dict(), tmp_path / "twelve")
    with pytest.raises(WeightsError) as caught:
        build(10, weights=str(path))
    assert "fc.weight (file 12x1024, model 1000x1024), fc.bias (file 12, model 1000)" in str(caught.value)
    assert "; nor with a head for 10 classes: 2 of another shape: fc.weight (file 12x1024, model 10x1024)" in str(
        caught.value
    )


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
        ("IMAGENET1K_V9", r"got 'IMAGENET1K_V9', must be one of IMAGENET1K_V1, DEFAULT, or the path of a file"),
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
