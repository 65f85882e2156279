"""The operations that policies are made of, applied to whole batches in which each sample has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.data.augment.policies import color, geometry
from trainlib.platform.accelerators import pins_memory


class Operation(IntEnum):
    """An operation on one image; geometric ones come before those of colour.

    Its argument: pixels a row or column for shears, whole pixels for translations, degrees for a rotation, a factor for
    brightness, color, contrast and sharpness, bits for posterize, a grey value for solarize, a part of the colour
    circle for hue.
    """

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    HUE = 15


class Operations(NamedTuple):
    """One operation for each of N samples, with its argument.

    operations_N   values of `Operation`, int64 on the CPU
    arguments_N    float64 on the CPU
    """

    operations_N: Tensor
    arguments_N: Tensor


_COLORS: Mapping[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.BRIGHTNESS: color.adjust_brightness,
    Operation.COLOR: color.adjust_saturation,
    Operation.CONTRAST: color.adjust_contrast,
    Operation.SHARPNESS: color.adjust_sharpness,
    Operation.POSTERIZE: color.posterize,
    Operation.SOLARIZE: color.solarize,
    Operation.AUTO_CONTRAST: lambda images_NCHW, _: color.autocontrast(images_NCHW),
    Operation.EQUALIZE: lambda images_NCHW, _: color.equalize(images_NCHW),
    Operation.INVERT: lambda images_NCHW, _: color.invert(images_NCHW),
    Operation.HUE: color.adjust_hue,
}


def apply_operations(images_NCHW: Tensor, drawn: Operations) -> Tensor:
    """Apply to each image, uint8 [N, C, H, W] on any device, its own operation.

    Samples are grouped by operation on the CPU, where the draws are known: nothing waits for a GPU.
    """
    height, width = images_NCHW.shape[2:]
    groups = _groups(drawn.operations_N)
    if all(operation == Operation.IDENTITY for operation, _ in groups):
        return images_NCHW
    order = torch.cat([samples for _, samples in groups])
    packed = torch.stack([order.double(), torch.argsort(order).double(), drawn.arguments_N[order]])
    matrices = geometry.to_grid(_inverse_matrices(drawn, order, height, width), height, width)
    samples, places, arguments = to_device(packed, images_NCHW.device)
    samples, places, matrices = samples.long(), places.long(), to_device(matrices, images_NCHW.device)
    changed, start = [], 0
    for operation, members in groups:
        here = slice(start, start + len(members))
        images = images_NCHW.index_select(0, samples[here])
        if operation in _COLORS:
            images = _COLORS[operation](images, arguments[here])
        elif operation != Operation.IDENTITY:
            images = geometry.warp(images, matrices[here])
        changed.append(images)
        start += len(members)
    return torch.cat(changed).index_select(0, places)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the CPU to the device, without waiting for a GPU."""
    return (values.pin_memory() if pins_memory(device) else values).to(device, non_blocking=True)


def _groups(operations_N: Tensor) -> list[tuple[Operation, Tensor]]:
    """Return the indices of the samples of each operation that occurs; all geometric ones together."""
    kinds_N = torch.where(operations_N < Operation.BRIGHTNESS, operations_N.clamp(max=1), operations_N)
    order = torch.argsort(kinds_N, stable=True)
    counts = torch.bincount(kinds_N, minlength=len(Operation)).tolist()
    groups = zip(Operation, torch.split(order, counts), strict=True)
    return [(operation, samples) for operation, samples in groups if len(samples)]


def _inverse_matrices(drawn: Operations, order: Tensor, height: int, width: int) -> Tensor:
    """Return the matrix of each of these samples in pixels, float64 [M, 2, 3]; that of a colour means nothing."""
    operations, amounts = drawn.operations_N[order], drawn.arguments_N[order]
    zeros = torch.zeros_like(amounts)
    result = geometry.rotation(amounts)
    for operation, matrices in (
        (Operation.SHEAR_X, geometry.shear_x(amounts, height, width)),
        (Operation.SHEAR_Y, geometry.shear_y(amounts, height, width)),
        (Operation.TRANSLATE_X, geometry.shift(amounts, zeros)),
        (Operation.TRANSLATE_Y, geometry.shift(zeros, amounts)),
    ):
        result = torch.where((operations == operation).view(-1, 1, 1), matrices, result)
    return result
