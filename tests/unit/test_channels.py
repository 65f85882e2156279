"""Grey images, `data.channels: 1`: conversions, first layers, normalisation, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tiers import quick_or_soak
from torch import Tensor
from weight_files import section

from trainlib.config import Config, DataConfig, Normalize, load_config
from trainlib.data import image_dataset, load_data
from trainlib.data.augment.custom import CustomTransform
from trainlib.data.augment.draws import Draws
from trainlib.data.augment.policies.policy import AugMix, AutoAugment, Policy, RandAugment, TrivialAugment
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.framed import frame_dataset
from trainlib.data.datasets.images import InMemoryImages, Pictures
from trainlib.data.pictures.channels import in_channels
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.errors import ConfigError, WeightsError
from trainlib.models import build_model, check_forward
from trainlib.models.architectures.whitening import whitening_weights
from trainlib.models.sources.preprocessing import preprocessing_of
from trainlib.models.sources.published import IMAGENET_MEAN, IMAGENET_STD
from trainlib.training.build.run_weights import pin_weights

GREY = "data.channels=1"
# One of each family of torchvision's networks, whose first layers lie in different places.
FAMILIES = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2"]
FAMILIES += ["regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_32"]
SMALL = {"resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"}


def batch(channels: int, seed: int = 0) -> Tensor:
    shape = (6, channels, 20, 16)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def everything(dataset: Dataset) -> Tensor:
    return next(dataset.train.images.batches([torch.arange(len(dataset.train.images))]))


def test_grey_is_pillows_and_grey_as_colours_is_itself() -> None:
    colours = batch(3)
    for picture_CHW, grey_1HW in zip(colours, in_channels(colours, 1), strict=True):
        expected = Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().numpy()).convert("L")
        assert np.array_equal(grey_1HW[0].numpy(), np.asarray(expected))
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(in_channels(in_channels(levels, 3), 1), levels)
    assert in_channels(colours, 3) is colours


class Own:
    """A class of a user's own around the images of another one."""

    def __init__(self, images: Pictures):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Own:
        return self

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        return self.images.batches(ids)


@pytest.mark.parametrize("source", ["given", "own class", "synthetic"])
def test_data_in_memory_become_grey(source: str) -> None:
    config = DataConfig.model_validate({"name": "synthetic", "image_size": 16, "channels": 1})
    given = make_synthetic(40, 20)
    if source == "own class":
        given = image_dataset(ImageSet(Own(given.train.images), given.train.labels_N), given.test, given.class_names)
    dataset = load_data(config) if source == "synthetic" else frame_dataset(given, config, 0)
    images_NCHW = everything(dataset)
    assert images_NCHW.shape[1:] == (1, 16, 16)
    assert len(dataset.mean) == len(dataset.std) == 1
    if source != "synthetic":
        grey = in_channels(everything(given), 1).double() / 255
        assert dataset.mean[0] == pytest.approx(float(grey.mean()))
        assert dataset.std[0] == pytest.approx(float(grey.std(unbiased=False)))


@pytest.mark.parametrize("policy", [TrivialAugment(), RandAugment(), AutoAugment(), AutoAugment("svhn"), AugMix()])
def test_policies_change_grey_images_as_they_change_colours_that_are_grey(policy: Policy) -> None:
    """Three equal channels stay equal, and each is what becomes of the grey image, up to a level where they blend."""
    grey, draws = batch(1), Draws(5, torch.arange(6))
    result = policy(grey, draws)
    assert (result.shape, result.dtype) == (grey.shape, torch.uint8)
    coloured = policy(in_channels(grey, 3), draws)
    assert int((coloured.int() - result.int()).abs().max()) <= 2


def test_a_transform_of_ones_own_is_tried_on_grey_images() -> None:
    shapes = []

    def noting(images_NCHW: Tensor, ids_N: Tensor, key: int) -> Tensor:
        shapes.append(images_NCHW.shape[1:])
        return images_NCHW

    CustomTransform(noting).checked(1, 12, 10)
    assert set(shapes) == {(1, 12, 10)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SMALL else pytest.mark.slow) for n in FAMILIES])
def test_a_network_of_one_channel_is_the_same_of_three_on_grey(name: str) -> None:
    """Fresh weights: those of the network that the same seed makes for colours, summed over them."""
    torch.manual_seed(3)
    three = build_model(section(name=name), 7, 224).module.eval()
    torch.manual_seed(3)
    classifier = build_model(section(name=name), 7, 224, channels=1)
    check_forward(classifier, 224, 7, channels=1)
    one = classifier.module.eval()
    grey = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = three(grey.expand(-1, 3, -1, -1)), one(grey)
    assert float((expected - found).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["cifar10_cnn", "cifar10_fast", "vgg16"])
def test_our_own_networks_take_one_channel(name: str) -> None:
    values = {"width": 0.05} if name != "cifar10_cnn" else {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            classifier = build_model(section(name=name, **values), 5, 32, channels=1)
        check_forward(classifier, 32, 5, channels=1)
        assert next(classifier.module.parameters()).shape[1] == 1


@pytest.mark.parametrize(
    ("prefix", "classes"),
    quick_or_soak(
        {("", 1000), ("module.", 7), ("backbone.", 1000)}, [*itertools.product(["", "module.", "backbone."], [1000, 7])]
    ),
)
def test_trained_weights_are_summed_over_the_colours(tmp_path: Path, prefix: str, classes: int) -> None:
    torch.manual_seed(1)
    plain = torchvision.models.resnet18(num_classes=classes).eval()
    path = tmp_path / "w.pth"
    torch.save({f"{prefix}{name}": value for name, value in plain.state_dict().items()}, path)
    classifier = build_model(section(name="resnet18", weights=str(path)), 7, 32, channels=1)
    state = classifier.module.state_dict()
    assert torch.equal(state["conv1.weight"], plain.conv1.weight.detach().sum(1, keepdim=True))
    for name, value in plain.state_dict().items():
        if name not in ("conv1.weight", "fc.weight", "fc.bias"):
            assert torch.equal(state[name], value), name
    grey = torch.rand(2, 1, 32, 32)
    classifier.module.set_submodule("fc", plain.fc)
    with torch.no_grad():
        torch.testing.assert_close(classifier.module.eval()(grey), plain(grey.expand(-1, 3, -1, -1)))


def test_weights_of_a_grey_network_load_into_one_and_are_refused_by_one_of_colours(tmp_path: Path) -> None:
    path = tmp_path / "grey.pth"
    grey = build_model(section(name="resnet18"), 7, 32, channels=1).module.state_dict()
    torch.save(grey, path)
    weights = section(name="resnet18", weights=str(path))
    found = build_model(weights, 7, 32, channels=1).module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in grey.items())
    with pytest.raises(WeightsError, match=r"network for grey images: set data.channels=1"):
        build_model(weights, 7, 32)


def test_whitening_of_grey_images() -> None:
    """Its outputs have the covariance of independent numbers, as those of colours have."""
    images = InMemoryImages(in_channels(everything(make_synthetic(60, 20)), 1))
    preprocess = Preprocess((0.5,), (0.25,))
    weights = whitening_weights(images, torch.arange(60), preprocess)
    assert weights.shape == (8, 1, 2, 2)
    with torch.no_grad():
        patches = torch.nn.functional.conv2d(preprocess(images.images_NCHW), weights[:4])
    covariance = torch.cov(patches.transpose(0, 1).flatten(1).double())
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) < 0.01


def configured(*words: str) -> Config:
    return load_config(["quickstart", "data={name: synthetic, image_size: 224}", *words])


def test_trained_normalisation_is_the_mean_of_the_colours_one(tmp_path: Path) -> None:
    normalize = pin_weights(configured("model={name: resnet18, weights: IMAGENET1K_V1}", GREY)).data.normalize
    assert normalize == Normalize(mean=[sum(IMAGENET_MEAN) / 3], std=[sum(IMAGENET_STD) / 3])
    # Without `transform_input`, which is about colours, these take values from -1 to 1.
    config = pin_weights(configured("model={name: inception_v3, weights: IMAGENET1K_V1}", GREY))
    assert config.data.normalize == Normalize(mean=[0.5], std=[0.5])
    with torch.device("meta"):
        module = build_model(config.model, 7, 299, channels=1).module
    assert not module.transform_input
    trained = preprocessing_of(configured("model={name: resnet18, weights: IMAGENET1K_V1}").model)
    assert trained is not None
    assert trained.of_channels(3) == trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.channels=2"], "data.channels: got 2, must be 3 (red, green, blue) or 1 (grey)"),
        (["data.channels=true"], "data.channels: got true, must be 3 (red, green, blue) or 1 (grey)"),
        (["data.channels=rgb"], 'data.channels: got "rgb", must be 3 (red, green, blue) or 1 (grey)'),
        (
            [GREY, "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2]}"],
            "data.normalize.mean: got [0.5, 0.5, 0.5], must be 1 number, of grey (data.channels: 1)",
        ),
        (
            ["data.normalize={mean: [0.1, 0.2, 0.3], std: [0.2]}"],
            "data.normalize.std: got [0.2], must be 3 numbers, of red, green and blue",
        ),
        (
            [GREY, "model={name: inception_v3, transform_input: true}"],
            "model.transform_input: got true, must be false with data.channels: 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(*words)
    assert message in str(error.value)
