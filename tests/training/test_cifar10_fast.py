"""The network of the fast recipe against the same network written out in plain PyTorch."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from paths import REPOSITORY
from plain_cifar10_fast import Plain
from torch import nn

from trainlib.config import ModelConfig
from trainlib.errors import UserError
from trainlib.models import Classifier, build_model, check_forward


def build(image_size: int = 32, num_classes: int = 10, **values: Any) -> Classifier:
    return build_model(ModelConfig.model_validate({"name": "cifar10_fast", **values}), num_classes, image_size)


@pytest.mark.parametrize("dirac", [True, False])
@pytest.mark.parametrize(("width", "widths"), [(1.0, (64, 256, 256)), (0.2, (13, 51, 51)), (1e-6, (1, 1, 1))])
def test_it_is_the_plain_network(width: float, widths: tuple[int, int, int], dirac: bool) -> None:
    """Initial values are its own to the bit; so are, in either layout, the logits and statistics after a pass."""
    classes = 10 if width > 0.1 else 3
    torch.manual_seed(5)
    classifier = build(num_classes=classes, width=width, dirac=dirac)
    torch.manual_seed(5)
    plain = Plain(widths, classes, dirac)
    ours, expected = classifier.module.state_dict(), plain.named_as_ours()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert classifier.heads == ("head",)
    images_NCHW = torch.randn(4, 3, 32, 32)
    assert torch.equal(classifier.module(images_NCHW), plain(images_NCHW))
    plain.to(memory_format=torch.channels_last)
    classifier.module.to(memory_format=torch.channels_last)
    assert torch.equal(classifier.module(images_NCHW), plain(images_NCHW))
    after = plain.named_as_ours()
    assert all(torch.equal(value, after[name]) for name, value in classifier.module.state_dict().items())
    assert not torch.equal(after["features.2.norm2.running_mean"], expected["features.2.norm2.running_mean"])


@pytest.mark.parametrize("whitening", [True, False])
def test_what_learns(whitening: bool) -> None:
    """Neither the whitening, where there is one, nor the scale of BatchNorm; everything else gets a gradient."""
    module = build(width=0.1, whitening=whitening).module
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    still = {f"features.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    still |= {"whiten.weight"} if whitening else set()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == still
    assert all(bool(gradient.any()) for gradient in gradients.values() if gradient is not None)
    assert all(bool((dict(module.named_parameters())[name] == 1).all()) for name in still if "norm" in name)


@pytest.mark.parametrize("image_size", [9, 16, 31, 32, 64, 96])
def test_other_image_sizes(image_size: int) -> None:
    """What is left of the image after three halvings is reduced to its maximum, whatever its size."""
    torch.manual_seed(2)
    module = build(image_size, width=0.1).module.eval()
    torch.manual_seed(2)
    plain = Plain((6, 26, 26)).eval()
    images_NCHW = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(module(images_NCHW), plain(images_NCHW))


def test_images_that_are_too_small_and_heads_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"cifar10_fast: needs images of 9 x 9 pixels or more \(data.image_size 8,"):
        build(8)
    with pytest.raises(UserError, match=r"data.image_size: Cifar10Fast cannot take 2 images of 8 x 8"):
        check_forward(build(32), 8, 10)
    with pytest.raises(UserError, match=r"1000 classes, and cifar10_fast is built for the classes of the data"):
        build(head="append")


def test_on_the_meta_device_and_with_a_frozen_backbone() -> None:
    with torch.device("meta"):
        classifier = build(num_classes=7)
    check_forward(classifier, 32, 7)
    assert {tensor.device.type for tensor in classifier.module.state_dict().values()} == {"meta"}
    frozen = build(width=0.1, freeze="backbone").module
    assert [name for name, parameter in frozen.named_parameters() if parameter.requires_grad] == ["head.weight"]


def test_the_network_in_the_documentation_takes_its_weights() -> None:
    """docs/using-models.md writes it out; its logits are the model's times the number of features."""
    page = (REPOSITORY / "docs/using-models.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def cifar10_fast" in b]
    found: dict[str, Any] = {"nn": nn, "OrderedDict": OrderedDict}
    exec(block, found)
    module = build(40, 7, width=0.2).module.eval()
    written_out = found["cifar10_fast"](7, 40, 0.2).eval()
    written_out.load_state_dict(module.state_dict(), strict=True)
    images_NCHW = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(written_out(images_NCHW) / 51, module(images_NCHW))
