"""Every classifier of torchvision and twenty models of timm: built, evaluated, trained for a step and exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torchvision
from PIL import Image
from soak import only_in_soak
from tiers import quick_or_soak
from torchvision import models
from torchvision.models import get_model_weights

from trainlib.config import ModelConfig, load_config
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.pictures.configured import evaluation_of
from trainlib.errors import EXIT_OK, UserError
from trainlib.inference import export
from trainlib.models import build_for_checkpoint, build_model, check_forward
from trainlib.models.weights.files import load_weights
from trainlib.train import main as train
from trainlib.training.build.run_weights import pin_weights

CLASSIFIERS = models.list_models(module=models)
# The size of the pictures of a timm model is that of its weights.
TIMM = (
    "resnet50.a1_in1k", "resnet18", "convnext_tiny", "vit_tiny_patch16_224", "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0", "tf_efficientnetv2_s", "efficientnet_b0",
    "mobilenetv3_large_100", "regnety_008", "densenet121", "mixer_b16_224", "beit_base_patch16_224", "inception_v3",
    "edgenext_small", "mobilevit_s", "visformer_tiny", "maxvit_tiny_tf_224", "xcit_nano_12_p16_224",
)  # fmt: skip
# One of each family, as small as they come, with the size of its images.
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "googlenet": 64, "inception_v3": 96, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64, "swin_t": 32, "swin_v2_t": 32, "vgg11_bn": 32, "vit_b_32": 32,
    "timm/resnet18": 32, "timm/convnext_atto": 32, "timm/vit_tiny_patch16_224": 224,
    "timm/deit3_small_patch16_224": 224, "timm/swin_tiny_patch4_window7_224": 224, "timm/tf_efficientnet_lite0": 32,
    "timm/tf_efficientnetv2_b0": 32,
    "timm/mobilenetv3_small_050": 32, "timm/regnety_002": 32, "timm/densenet121": 32, "timm/mixer_s32_224": 224,
    "timm/beit_base_patch16_224": 224, "timm/inception_v3": 96, "timm/edgenext_xx_small": 64, "timm/mobilevit_xxs": 64,
    "timm/visformer_tiny": 224, "timm/maxvit_tiny_tf_224": 224, "timm/xcit_nano_12_p16_224": 224,
    "timm/swinv2_cr_tiny_224": 224, "timm/levit_128s": 224, "timm/deit_tiny_distilled_patch16_224": 224,
}  # fmt: skip
Settings = tuple[Any, ...]


@pytest.mark.parametrize("name", quick_or_soak(["resnet18", "vit_b_32", "mobilenet_v3_small"], CLASSIFIERS))
def test_every_classifier_of_torchvision_is_built_on_the_meta_device(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    with torch.device("meta"):
        section = ModelConfig.model_validate({"name": name, "weights": "pretrained"})
        classifier = build_model(section, 7, size if not name.startswith("vit_h") else 518)
    assert classifier.module.get_parameter(f"{classifier.heads[0]}.weight").shape[0] == 7
    assert all(tensor.device.type == "meta" for tensor in classifier.module.state_dict().values())


@pytest.mark.parametrize("name", quick_or_soak(["resnet18", "vit_tiny_patch16_224"], TIMM))
def test_models_of_timm_are_built_on_the_meta_device(name: str) -> None:
    import timm

    facts = timm.models.get_pretrained_cfg(name)
    assert facts is not None
    size = facts.input_size[1]
    with torch.device("meta"):
        section = ModelConfig.model_validate({"name": f"timm/{name}", "weights": "pretrained"})
        classifier = build_model(section, 7, size)
        check_forward(classifier, size, 7)
    assert classifier.module.get_parameter(f"{classifier.heads[0]}.weight").shape[0] == 7
    assert all(tensor.device.type == "meta" for tensor in classifier.module.parameters())


def family_of_timm() -> dict[str, str]:
    """The model with the shortest name in each file of timm's."""
    from timm.models import list_models, list_modules

    return {family: min(names, key=len) for family in list_modules() if (names := list_models(module=family))}


@only_in_soak
@pytest.mark.parametrize("name", family_of_timm().values())
def test_every_family_of_timm_is_built_and_takes_a_checkpoint_or_is_refused(name: str) -> None:
    import timm

    facts = timm.models.get_pretrained_cfg(name)
    size = facts.input_size[1] if facts else 224
    config, refusal = ModelConfig.model_validate({"name": f"timm/{name}"}), ""
    try:
        with torch.device("meta"):
            classifier = build_model(config, 7, size)
            check_forward(classifier, size, 7)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert re.search(r"without a layer for classes|must give \[2, 7\]", refusal)
        return
    resumed = build_for_checkpoint(config, 7, size)
    load_weights(resumed, build_model(config, 7, size).module.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*resumed.parameters(), *resumed.buffers()))


def settings() -> dict[Settings, list[tuple[str, str]]]:
    """Which published weights of torchvision's classifiers were trained with which sizes and constants."""
    found: dict[Settings, list[tuple[str, str]]] = {}
    for name in CLASSIFIERS:
        for weights in get_model_weights(name):
            made = weights.transforms()
            key = (*made.crop_size, *made.resize_size, made.interpolation.value, *made.mean, *made.std)
            found.setdefault(key, []).append((name, weights.name))
    return found


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(640, 480), (480, 640), (500, 375), (333, 500), (1024, 300), (224, 224), (256, 256), (97, 131), (400, 401)]
    made = [Image.fromarray(random.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)) for w, h in sizes]
    resized = [small.resize(size, Image.Resampling.BICUBIC) for small, size in zip(made, sizes, strict=True)]
    return [*resized, Image.new("RGB", (300, 200), (255, 0, 7))]


@only_in_soak
@pytest.mark.parametrize(("key", "names"), settings().items(), ids=lambda value: str(value)[:60])
def test_pictures_are_evaluated_as_torchvision_does(key: Settings, names: list[tuple[str, str]]) -> None:
    """In the same bits before they are normalised; every published weight of the settings means the same."""
    side = key[0]
    framings = set()
    for name, weights in names:
        model = f"model={{name: {name}, weights: {weights}}}"
        config = load_config(["quickstart", model, f"data.image_size={side}"])
        data = pin_weights(config.model_copy(update={"data": config.data.model_copy(update={"decode": "exact"})})).data
        assert not isinstance(data.normalize, str)
        framings.add((evaluation_of(data), tuple(data.normalize.mean), tuple(data.normalize.std)))
    ((framing, mean, std),) = framings
    theirs, preprocess = get_model_weights(names[0][0])[names[0][1]].transforms(), Preprocess(mean, std)
    for picture in pictures():
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        assert torch.allclose(preprocess(framing(image)[None])[0], theirs(picture), atol=1e-6 / min(std))


def test_all_classifiers_are_among_them() -> None:
    assert len(CLASSIFIERS) >= 80
    assert {name for names in settings().values() for name, _ in names} == set(CLASSIFIERS)
    assert torchvision.__version__


@only_in_soak
@pytest.mark.parametrize(("name", "size"), FAMILIES.items(), ids=FAMILIES)
def test_one_of_each_family_is_trained_for_a_step_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """The exported file gives the model's numbers: `export` compares them, and fails where they differ."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    tiny.make_images(Path("images"))
    words = ["quickstart", "name=run", f"model={{name: {name}}}", "data={name: image_folder, root: images, limit: 6}"]
    words += [
        f"data.image_size={size}",
        "train={steps: 1, batch_size: 6}",
        "tracking={tensorboard: false, progress: false}",
    ]
    words += ["tracking.wandb.mode=disabled", "data.augment={}"]
    assert train(words) == EXIT_OK
    assert export.main(["run", "--format", "onnx", "--output", "run.onnx"]) == EXIT_OK
