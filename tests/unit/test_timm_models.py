"""Models of timm: their names, evaluation as timm does it, weights from Hugging Face's cache, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from tiers import quick_or_soak
from torch import nn

from trainlib.config import Config, ModelConfig, OptimizerConfig, load_config
from trainlib.config.libraries import timm_models as names
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.pictures.configured import evaluation_of
from trainlib.errors import UserError, WeightsError
from trainlib.models import build_for_checkpoint, build_model, lay_out_channels_last, preprocessing_of
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.weights.files import load_weights
from trainlib.runs.machine import environment
from trainlib.training.build.run_weights import pin_weights

MODELS = (
    "resnet50.a1_in1k", "resnet50.tv_in1k", "resnet18", "vit_base_patch16_224", "vit_tiny_patch16_384",
    "deit3_small_patch16_224", "convnext_tiny.fb_in22k_ft_in1k_384", "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0", "tf_efficientnetv2_s", "efficientnet_b0", "mobilenetv3_large_100", "regnety_008",
    "densenet121", "mixer_b16_224", "beit_base_patch16_224", "inception_v3", "edgenext_small", "test_resnet",
    "coat_lite_medium_384", "tf_efficientnetv2_b3.in21k_ft_in1k",
)  # fmt: skip

# The other models are tried under `make soak`.
QUICK = {
    "resnet50.a1_in1k", "vit_base_patch16_224", "convnext_tiny.fb_in22k_ft_in1k_384", "tf_efficientnet_lite0",
    "mobilenetv3_large_100", "densenet121", "inception_v3", "test_resnet", "tf_efficientnetv2_b3.in21k_ft_in1k",
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face, without the internet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def place(cache: Path, repository: str, model: nn.Module, **facts: Any) -> None:
    """Put a model into the cache as `push_to_hf_hub` of timm lays it out."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps(facts))


def test_names_are_those_of_timm() -> None:
    import timm

    assert set(timm.list_models()) <= names.architectures()
    assert "tf_efficientnet_b0_ap" in names.architectures()  # of an older timm, for which it has a new name


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(640, 480), (480, 640), (500, 375), (333, 500), (1024, 300), (224, 224), (256, 256), (97, 131), (400, 401)]
    made = [Image.fromarray(random.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)) for w, h in sizes]
    resized = [small.resize(size, Image.Resampling.BICUBIC) for small, size in zip(made, sizes, strict=True)]
    return [*resized, Image.new("RGB", (300, 200), (255, 0, 7))]


@pytest.mark.parametrize("name", quick_or_soak(QUICK, MODELS))
def test_a_picture_is_evaluated_as_timm_does(name: str) -> None:
    """In the same bits before it is normalised, and within a rounding of float32 after it."""
    import timm
    from timm import data as timm_data

    facts = timm.models.get_pretrained_cfg(name)
    assert facts is not None
    settings = timm_data.resolve_data_config({}, pretrained_cfg=facts.to_dict())
    theirs = timm_data.create_transform(**settings, is_training=False)
    side = settings["input_size"][1]
    config = load_config(["quickstart", f"model={{name: timm/{name}, weights: pretrained}}", f"data.image_size={side}"])
    data = pin_weights(config.model_copy(update={"data": config.data.model_copy(update={"decode": "exact"})})).data
    assert not isinstance(data.normalize, str)
    framing, preprocess = evaluation_of(data), Preprocess(tuple(data.normalize.mean), tuple(data.normalize.std))
    for picture in pictures():
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        ours = preprocess(framing(image)[None])[0]
        assert torch.allclose(ours, theirs(picture), atol=1e-6)


def built(config: str, classes: int = 3, size: int = 64) -> nn.Module:
    section = load_config(["quickstart", f"model={config}", f"data.image_size={size}"]).model
    return build_model(section, classes, size).module


@pytest.mark.parametrize("name", ["timm/test_vit.r160_in1k", "hf-hub:somebody/nice-net"])
def test_published_weights_come_from_the_cache_with_a_new_head(cache: Path, name: str) -> None:
    import timm

    torch.manual_seed(1)
    original = timm.create_model("test_vit", num_classes=7 if name.startswith("hf-hub:") else 1000)
    repository = "somebody/nice-net" if name.startswith("hf-hub:") else "timm/test_vit.r160_in1k"
    place(
        cache, repository, original, architecture="test_vit", num_classes=original.num_classes,
        pretrained_cfg={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9, "interpolation": "bilinear",
                        "input_size": [3, 160, 160], "fixed_input_size": True, "num_classes": original.num_classes,
                        "classifier": "head", "first_conv": "patch_embed.proj"},
    )  # fmt: skip
    before = torch.get_rng_state()
    module = built(f"{{name: '{name}', weights: pretrained}}", size=160)
    for key, value in original.state_dict().items():
        assert key.startswith("head.") or torch.equal(module.state_dict()[key], value), key
    assert module.state_dict()["head.weight"].shape == (3, 64)
    torch.set_rng_state(before)
    again = built(f"{{name: '{name}', weights: pretrained}}", size=160)
    assert torch.equal(again.state_dict()["head.weight"], module.state_dict()["head.weight"])
    if name.startswith("hf-hub:"):
        found = preprocessing_of(ModelConfig.model_validate({"name": name, "weights": "pretrained"}))
        assert found is not None
        assert (found.mean, found.crop_fraction, found.resized_side(160)) == ((0.1, 0.2, 0.3), 0.9, 177)


def test_positions_are_resampled_for_another_image_size(cache: Path) -> None:
    """As timm itself does when it is asked for that size."""
    import timm

    torch.manual_seed(1)
    place(cache, "timm/test_vit.r160_in1k", timm.create_model("test_vit"))
    module = built("{name: timm/test_vit, weights: pretrained}", size=96)
    theirs = timm.create_model("test_vit", pretrained=True, img_size=96)
    assert torch.equal(module.state_dict()["pos_embed"], theirs.state_dict()["pos_embed"])


def test_a_file_of_a_timm_model_is_normalised_as_timm_says(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    section = {"name": "timm/tf_efficientnet_lite0", "weights": str(tmp_path / "whole.safetensors")}
    found = preprocessing_of(ModelConfig.model_validate(section))
    assert found is not None
    assert (found.mean, found.interpolation, found.resized_side(224)) == ((0.5, 0.5, 0.5), "bicubic", 256)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{name: timm/resnet5O}", "model.name: got timm/resnet5O, .*did you mean timm/resnet50"),
        ("{name: timm/resnet18.nobody}", r"Invalid pretrained tag \(nobody\) for resnet18"),
        ("{name: timm/resnet18, dropout: 1}", "unexpected keyword argument 'dropout'"),
        ("{name: timm/test_resnet, norm_layer: nope}", r"model timm/test_resnet: KeyError\('nope'\)"),
        ("{name: timm/test_vit, num_heads: 0}", "model timm/test_vit: ZeroDivisionError"),
        ("{name: timm/resnet18, pretrained: true}", "model.pretrained: is no argument here: say model.weights=pretr"),
        ("{name: timm/resnet18, in_chans: 1}", "model.in_chans: is no argument here: say data.channels=N"),
        (
            "{name: timm/deit_tiny_distilled_patch16_224, head: append}",
            r"append needs one last layer, and timm/deit_tiny_distilled_patch16_224 has 2 \(head, head_dist\)",
        ),
        ("{name: timm/sam2_hiera_tiny}", "without a layer for classes: set model.num_classes=1000"),
        (
            "{name: timm/resnet18, weights: pretrained}",
            "those of timm/resnet18, at timm/resnet18.a1_in1k, could not .*HF_HOME",
        ),
        ("{name: 'hf-hub:nobody/nothing'}", "hf-hub:nobody/nothing: .*HF_HOME"),
        ("{name: timm/resnet18, weights: IMAGENET1K_V1}", 'got "IMAGENET1K_V1", must be one of pretrained'),
        ("{name: timm/test_vit.nobody_there, weights: pretrained}", "Invalid pretrained tag"),
    ],
)
def test_what_cannot_be_built_is_refused(cache: Path, section: str, message: str) -> None:
    with pytest.raises((UserError, WeightsError), match=message):
        built(section)


def test_weights_that_nobody_published_are_refused() -> None:
    section = {"name": "timm/mixer_s32_224", "weights": "pretrained"}
    with pytest.raises(WeightsError, match="no weights of timm/mixer_s32_224 are published"):
        preprocessing_of(ModelConfig.model_validate(section))


def test_a_fit_that_is_given_is_kept() -> None:
    """CoaT's pictures are squashed, unless `data.resize.fit` says otherwise."""
    words = ["quickstart", "model={name: timm/coat_lite_medium_384, weights: pretrained}", "data.image_size=384"]

    def fit(*more: str) -> str:
        config: Config = pin_weights(load_config([*words, *more]))
        return config.data.resize.fit

    assert (fit(), fit("data.resize.fit=crop"), fit("data.resize.size=400")) == ("squash", "crop", "squash")


def test_its_version_is_part_of_what_decides_the_bits_of_its_runs() -> None:
    """And of no other run, for which another timm changes nothing."""
    import timm

    assert environment.versions(*names.packages_of("timm/resnet18"))["timm"] == timm.__version__
    assert "timm" not in environment.versions(*names.packages_of("resnet18"))
    now = dict.fromkeys(environment.DECIDES_BITS) | {"versions": {"timm": "2.0"}}
    then = now | {"versions": {"timm": "1.0"}}
    assert environment.bit_changes(then, now) == ["timm was 1.0, is 2.0 (kernels may be others)"]


def test_weights_of_five_dimensions_are_no_obstacle_to_channels_last() -> None:
    two, three = nn.Conv2d(2, 3, 2), nn.Conv3d(1, 2, 2)  # the latter as in timm's LambdaResNet
    before = [layer.weight.detach().clone() for layer in (two, three)]
    lay_out_channels_last(nn.Sequential(two, three))
    assert two.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip((two, three), before, strict=True))


@pytest.mark.parametrize(
    "section",
    [
        "{name: timm/swin_tiny_patch4_window7_224, embed_dim: 12, depths: [2], num_heads: [3]}",
        "{name: timm/beit_base_patch16_224, embed_dim: 12, depth: 1, num_heads: 3}",
        "{name: timm/maxvit_tiny_tf_224, embed_dim: [32], depths: [1], stem_width: 16}",
        "{name: timm/vit_tiny_patch16_224, embed_dim: 12, depth: 1, num_heads: 3}",
        "{name: timm/deit_tiny_distilled_patch16_224, embed_dim: 12, depth: 1, num_heads: 3}",
        "{name: timm/naflexvit_base_patch16_gap, embed_dim: 12, depth: 1, num_heads: 3}",  # without a convolution
    ],
    ids=lambda section: str(section).split(",")[0],
)
def test_files_of_weights_need_not_hold_what_is_the_same_for_all(tmp_path: Path, section: str) -> None:
    """Their tables of relative positions and masks are buffers that a state_dict leaves out."""
    config = load_config(["quickstart", f"model={section}"]).model
    trained, random_state = build_model(config, 3, 224).module.eval(), torch.get_rng_state()
    resumed = build_for_checkpoint(config, 3, 224).eval()
    assert torch.equal(torch.get_rng_state(), random_state)
    load_weights(resumed, trained.state_dict(), assign=True)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    tuned = build_model(config.model_copy(update={"weights": str(tmp_path / "weights.pth")}), 3, 224).module.eval()
    images_NCHW = torch.rand(2, 3, 224, 224)
    expected = trained(images_NCHW)
    assert torch.equal(resumed(images_NCHW), expected)
    assert torch.equal(tuned(images_NCHW), expected)


def test_a_model_of_two_last_layers_gets_new_ones_and_trains_both(tmp_path: Path) -> None:
    import timm

    section = "{name: timm/deit_tiny_distilled_patch16_224, embed_dim: 12, depth: 1, num_heads: 3, freeze: backbone}"
    config = load_config(["quickstart", f"model={section}"]).model
    published = timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=12, depth=1, num_heads=3).eval()
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    classifier = build_model(config.model_copy(update={"weights": str(tmp_path / "weights.pth")}), 3, 224)
    assert classifier.heads == ("head", "head_dist")
    learning = [name for name, parameter in classifier.module.named_parameters() if parameter.requires_grad]
    assert learning == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert [classifier.module.get_parameter(name).shape[0] for name in learning] == [3] * 4
    images_NCHW = torch.rand(2, 3, 224, 224)
    features = published.forward_features(images_NCHW)
    tuned: Any = classifier.module.eval()
    assert torch.equal(tuned.forward_features(images_NCHW), features)
    groups = build_optimizer(
        OptimizerConfig.model_validate({"name": "SGD", "lr": 0.1, "param_groups": [{"match": "head", "lr": 1.0}]}),
        classifier.module,
        classifier.heads,
    ).param_groups
    assert [len(group["params"]) for group in groups] == [4]
