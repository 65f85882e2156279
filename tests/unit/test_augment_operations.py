"""Every operation on whole batches against torchvision's on single images, with the same arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_functional

from trainlib.data.augment.augmentation import flip
from trainlib.data.augment.policies.operations import Operation, Operations, apply_operations

O = Operation  # noqa: E741
SIZES = [(3, 32, 32), (3, 33, 47), (3, 224, 200), (1, 32, 32), (3, 2, 5), (3, 1, 1)]


def affine(image: Tensor, **changes: Any) -> Tensor:
    moved: Tensor = torchvision_functional.affine(image, **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, **changes})
    return moved


def shear(image: Tensor, x: float, y: float) -> Tensor:
    degrees = [math.degrees(math.atan(amount)) for amount in (x, y)]
    return affine(image, shear=degrees, center=[0, 0])


# The arguments to try, torchvision's function, and how far apart the results may be.
CASES: dict[Operation, tuple[list[float], Callable[[Tensor, float], Tensor], int]] = {
    O.IDENTITY: ([0], lambda image, _: image, 0),
    O.SHEAR_X: ([0.2, -0.3, 0.99, 0.264, 1 / 15, 0.0], lambda image, a: shear(image, a, 0.0), 0),
    O.SHEAR_Y: ([0.2, -0.3, 0.99, 0.264, 1 / 15, 0.0], lambda image, a: shear(image, 0.0, a), 0),
    O.TRANSLATE_X: ([3, -7, 0, 300], lambda image, a: affine(image, translate=[int(a), 0], shear=[0, 0]), 0),
    O.TRANSLATE_Y: ([3, -7, 0, 300], lambda image, a: affine(image, translate=[0, int(a)], shear=[0, 0]), 0),
    O.ROTATE: ([30, -30, 45, 90, -90, 180, 135, 13.5, 7.123, 0], torchvision_functional.rotate, 0),
    O.BRIGHTNESS: ([0, 0.1, 0.5, 1, 1.3, 1.99], torchvision_functional.adjust_brightness, 0),
    O.COLOR: ([0, 0.1, 0.5, 1, 1.3, 1.99], torchvision_functional.adjust_saturation, 1),
    O.CONTRAST: ([0, 0.1, 0.5, 1, 1.3, 1.99], torchvision_functional.adjust_contrast, 1),
    O.SHARPNESS: ([0, 0.1, 0.5, 1, 1.3, 1.99], torchvision_functional.adjust_sharpness, 1),
    O.POSTERIZE: ([0, 1, 4, 7, 8], lambda image, a: torchvision_functional.posterize(image, int(a)), 0),
    O.SOLARIZE: ([0, 127.5, 100, 255], torchvision_functional.solarize, 0),
    O.AUTO_CONTRAST: ([0], lambda image, _: torchvision_functional.autocontrast(image), 0),
    O.EQUALIZE: ([0], lambda image, _: torchvision_functional.equalize(image), 0),
    O.INVERT: ([0], lambda image, _: torchvision_functional.invert(image), 0),
    O.HUE: ([-0.5, -0.3, -0.1, 0, 0.1, 0.25, 0.5], torchvision_functional.adjust_hue, 1),
}


def pictures(channels: int, height: int, width: int) -> Tensor:
    """Noise, a shading, a flat colour and dull noise, uint8 [4, C, H, W]."""
    generator = torch.Generator().manual_seed(height * width)
    noise = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shades = [y * 255 // max(height - 1, 1), x * 255 // max(width - 1, 1), (x + y) * 100 // (height + width)]
    shading = torch.stack(shades)[:channels].to(torch.uint8)
    return torch.stack([noise, shading, torch.full_like(noise, 77), noise // 4 + 50])


def test_every_operation_is_tried() -> None:
    assert set(CASES) == set(Operation)


@pytest.mark.parametrize("operation", CASES)
def test_operations_are_those_of_torchvision(operation: Operation) -> None:
    arguments, expected, allowed = CASES[operation]
    for size in SIZES:
        images = pictures(*size)
        for argument in arguments:
            drawn = Operations(torch.full((4,), operation), torch.full((4,), argument, dtype=torch.float64))
            before = images.clone()
            results = apply_operations(images, drawn)
            assert torch.equal(images, before)
            assert (results.dtype, results.shape) == (torch.uint8, images.shape)
            for image, result in zip(images, results, strict=True):
                difference = (expected(image, float(argument)).int() - result.int()).abs().max()
                assert difference <= allowed, (operation, size, argument)


def test_each_sample_gets_its_own_operation() -> None:
    """Whatever else is in the batch, and in which order."""
    mixed = [(operation, float(argument)) for operation, (few, _, _) in CASES.items() for argument in few]
    images = pictures(3, 24, 20).repeat(len(mixed) // 4 + 1, 1, 1, 1)[: len(mixed)]
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(1))
    operations = torch.tensor([operation for operation, _ in mixed])[order]
    arguments = torch.tensor([argument for _, argument in mixed], dtype=torch.float64)[order]
    together = apply_operations(images, Operations(operations, arguments))
    for i in range(len(mixed)):
        one = slice(i, i + 1)
        assert torch.equal(apply_operations(images[one], Operations(operations[one], arguments[one])), together[one])


def test_flips_are_those_of_torchvision() -> None:
    images, flips = pictures(3, 9, 14), torch.tensor([1, 0, 0, 1])
    for dim, expected in ((3, torchvision_functional.horizontal_flip), (2, torchvision_functional.vertical_flip)):
        for image, flag, result in zip(images, flips, flip(images, flips, dim), strict=True):
            assert torch.equal(result, expected(image) if flag else image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: the same bits on CPU and GPU, without a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    images = pictures(3, 64, 48)
    for operation, (arguments, _, _) in CASES.items():
        for argument in arguments:
            drawn = Operations(torch.full((4,), operation), torch.full((4,), argument, dtype=torch.float64))
            on_gpu = apply_operations(images.cuda(), drawn).cpu()
            assert torch.equal(on_gpu, apply_operations(images, drawn)), (operation, argument)
