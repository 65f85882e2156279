"""How weights want their pictures: of torchvision, of a file, in the configuration and in a run that has begun."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.transforms import v2

from trainlib.config import Config, harmful, load_config
from trainlib.data.pictures.configured import evaluation_of, frames_of
from trainlib.data.pictures.framing import Framing, RandomCrop
from trainlib.errors import ConfigError, WeightsError
from trainlib.models.sources.preprocessing import preprocessing_of
from trainlib.models.sources.published import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from trainlib.runs.directory import RunDirectory
from trainlib.training.build.model import build_classifier
from trainlib.training.build.run_weights import pin_weights

IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)


def configured(*words: str) -> Config:
    return load_config(["quickstart", "data={name: synthetic, image_size: 224}", *words])


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2"),
        ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1"),
        ("efficientnet_b0", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
    ],
)
def test_auto_is_what_torchvisions_weights_were_trained_with(name: str, weights: str) -> None:
    """At the size of their own evaluation the pixels are those of their `transforms()`."""
    transform = torchvision.models.get_model_weights(name)[weights].transforms()
    [side] = transform.crop_size
    config = pin_weights(configured(f"model={{name: {name}, weights: {weights}}}", f"data.image_size={side}"))
    normalize = config.data.normalize
    assert not isinstance(normalize, str)
    assert (normalize.mean, normalize.std) == (list(transform.mean), list(transform.std))
    image = torch.randint(0, 256, (3, 400, 531), dtype=torch.uint8)
    theirs = v2.Compose(
        [v2.Resize(transform.resize_size, transform.interpolation, antialias=True), v2.CenterCrop(transform.crop_size)]
    )
    assert torch.equal(evaluation_of(config.data)(image), theirs(image))


def test_the_share_that_is_cut_out_holds_at_other_sizes_and_given_values_stay() -> None:
    model = "model={name: resnet50, weights: IMAGENET1K_V2}"
    assert evaluation_of(pin_weights(configured(model, "data.image_size=112")).data).size == 116
    assert evaluation_of(pin_weights(configured(model, "data.image_size=[112, 448]")).data).covered == (116, 464)
    assert evaluation_of(pin_weights(configured(model, "data.resize.size=256")).data).size == 256
    padded = pin_weights(configured(model, "data.resize.fit=pad", "data.resize.interpolation=nearest"))
    assert evaluation_of(padded.data) == Framing(224, 224, "pad", None, "nearest")
    given = pin_weights(configured(model, "data.normalize=none"))
    assert given.data.normalize == "none"


def test_without_weights_it_is_the_image_size_bilinear() -> None:
    config = configured("model={name: resnet50}")
    assert pin_weights(config) == config
    assert evaluation_of(config.data) == Framing(224, 224)


def weights_file(path: Path, name: str, num_classes: int, prefix: str = "") -> Path:
    state = getattr(torchvision.models, name)(num_classes=num_classes).state_dict()
    state = {f"{prefix}{key}": value for key, value in state.items()}
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("num_classes", "prefix", "expected"),
    [(1000, "", IMAGENET), (1000, "module.", IMAGENET), (10, "", None)],
)
def test_a_file_of_1000_classes_is_taken_for_imagenets(
    tmp_path: Path, suffix: str, num_classes: int, prefix: str, expected: Preprocessing | None
) -> None:
    path = weights_file(tmp_path / f"w{suffix}", "squeezenet1_1", num_classes, prefix)
    config = configured(f"model={{name: squeezenet1_1, weights: {path}}}")
    assert preprocessing_of(config.model) == expected
    normalize = pin_weights(config).data.normalize
    if expected is None:
        assert normalize == "auto"
    else:
        assert not isinstance(normalize, str)
        assert (normalize.mean, normalize.std) == (list(IMAGENET_MEAN), list(IMAGENET_STD))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("given", [(), ("model.transform_input=true",), ("model.transform_input=false",)])
def test_a_file_of_inceptions_gives_torchvisions_logits(tmp_path: Path, name: str, given: tuple[str, ...]) -> None:
    """Theirs are of images that are normalised as ImageNet's, and once more inside of the network."""
    path, side = tmp_path / "w.pth", 75
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, transform_input=True, init_weights=False)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape))
    torch.save(theirs.state_dict(), path)
    config = configured(f"model={{name: {name}, weights: {path}, head: append}}", f"data.image_size={side}", *given)
    config = pin_weights(config)
    normalize = config.data.normalize
    assert not isinstance(normalize, str)
    module = build_classifier(config, 10, torch.device("cpu")).module
    [head] = [child for child in module.modules() if isinstance(child, torch.nn.Linear) and child.out_features == 1000]
    found: list[torch.Tensor] = []
    head.register_forward_hook(lambda module, inputs, output: found.append(output))
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    with torch.no_grad():
        module.eval()(v2.functional.normalize(images / 255, normalize.mean, normalize.std))
        expected = theirs.eval()(v2.functional.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_inceptions_with_a_normalisation_of_ones_own_must_say_what_the_file_needs(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "w.pth", "squeezenet1_1", 1000)
    config = pin_weights(configured(f"model={{name: googlenet, weights: {path}}}", "data.normalize=none"))
    assert "transform_input" not in config.model.args
    with pytest.raises(WeightsError, match=r"model.transform_input: is missing"):
        build_classifier(config, 10, torch.device("cpu"))


def test_a_file_that_is_missing_or_damaged_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 no weights")
    for path in (damaged, tmp_path / "missing.pth"):
        config = configured(f"model={{name: resnet18, weights: {path}}}")
        assert preprocessing_of(config.model) is None
        assert pin_weights(config).data == config.data


def test_a_run_that_has_begun_keeps_what_its_weights_said(workdir: Path) -> None:
    """Also where the file is gone, and where torchvision says something else by now."""
    path = weights_file(workdir / "w.pth", "squeezenet1_1", 1000)
    config = configured("name=run", f"model={{name: squeezenet1_1, weights: {path}}}")
    pinned = pin_weights(config)
    RunDirectory.open(pinned).begin(pinned)
    path.unlink()
    assert pin_weights(config) == pinned
    assert pin_weights(config, fresh=True).data.normalize == "auto"


def test_training_frames_follow_the_configuration() -> None:
    data = configured("data.image_size=224", "data.resize.size=256", "data.train_image_size=112").data
    frames = frames_of(data, 3)
    assert frames.evaluation == Framing(224, 224, size=256)
    assert frames.training == Framing(112, 112, size=128)
    crop = configured("data.train_image_size=[96, 128]", "data.augment.crop={scale: [0.3, 1.0]}").data
    assert frames_of(crop, 3).training == RandomCrop(3, 96, 128, (0.3, 1.0))
    assert frames_of(configured("data.decode=exact").data, 0).evaluation.pillow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "data.image_size=4",
            r"data.image_size: got 4, must be a whole number of pixels from 8 to 4096",
        ),
        ("data.image_size=[224]", r"data.image_size: got \[224\], must be a whole number of pixels"),
        ("data.image_size=big", 'data.image_size: got "big", must be a whole number of pixels'),
        ("data.train_image_size=[224, 4]", r"data.train_image_size: got \[224, 4\], must be a whole number of pixels"),
        ("data.image_size=true", "data.image_size: got true, must be a whole number of pixels"),
        ("data.resize.size=4", "data.resize.size: got 4, must be auto, or a whole number of pixels from 8 to 8192"),
        ("data.resize.fit=stretch", "must be one of crop, pad, squash"),
        ("data.resize.size=200", "data.resize.size: got 200, must be >= 224"),
        ("data.resize={fit: pad, size: 256}", "data.resize.size: got 256, but fit: pad"),
        ("data.resize={fit: squash, size: 200}", "data.resize.size: got 200, must be >= 224"),
        ("data.augment={crop: {}, crop_padding: 4}", "data.augment.crop_padding: got 4 beside data.augment.crop"),
        ("data.augment.crop={scale: [1.0, 0.1]}", "data.augment.crop.scale: .*smaller one first"),
        ("data.augment.crop={ratio: [2.0, 1.0]}", "data.augment.crop.ratio: .*smaller one first"),
        ("data.augment.crop={scale: [0.1, 2.0]}", "must be <= 1"),
    ],
)
def test_mistakes_name_the_value_and_the_rule(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(words)


def test_two_equal_sides_are_one_number() -> None:
    assert configured("data.image_size=[224, 224]") == configured("data.image_size=224")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("data.image_size=128", "data.image_size"),
        ("data.train_image_size=128", "data.train_image_size"),
        ("data.resize.fit=pad", "data.resize.fit"),
        ("data.resize.size=256", "data.resize.size"),
        ("data.resize.interpolation=bicubic", "data.resize.interpolation"),
        ("data.augment.crop={}", "data.augment.crop"),
    ],
)
def test_what_decides_pixels_is_no_harmless_change_of_a_run(words: str, key: str) -> None:
    assert [change.key for change in harmful(configured(), configured(words))] == [key]
