"""Colour operations on whole uint8 batches [N, C, H, W] of one or three channels, each sample by its own amount.

Every device gives the same bits: sums are of whole numbers, and float32 results are rounded operation by operation. No
tensor is divided by a Python number, for which a GPU multiplies by the reciprocal. Results are torchvision's, up to one
grey level for factors up to 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX = 255


def adjust_brightness(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """Multiply all values by a factor (float64 [N])."""
    return _to_uint8(images_NCHW.float().mul_(_column(factors_N)))


def adjust_saturation(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """Blend images with their grey versions: a factor of 0 gives grey, 1 the image, 2 stronger colours."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    values = images_NCHW.float()
    return _blend(values, _grey(values), factors_N)


def adjust_contrast(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """Blend images with their mean grey: a factor of 0 gives one grey, 1 the image, 2 more contrast."""
    values = images_NCHW.float()
    grey = _grey(values)
    totals = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)  # of whole numbers: exact in any order
    means = (totals / torch.full_like(totals, grey[0].numel())).float()
    return _blend(values, means, factors_N)


def adjust_sharpness(images_NCHW: Tensor, factors_N: Tensor) -> Tensor:
    """Blend images with their smoothed versions: a factor of 0 smooths, 1 gives the image, 2 sharpens.

    The border of one pixel stays as it is.
    """
    if min(images_NCHW.shape[2:]) <= 2:
        return images_NCHW
    values = images_NCHW.float()
    rows = values[:, :, :-2] + values[:, :, 1:-1]
    rows += values[:, :, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    inner = values[:, :, 1:-1, 1:-1]
    smooth.add_(inner * 4).mul_(1 / 13).round_()  # the sum is whole and 13 is odd, so never half way
    inner.add_(smooth.sub_(inner).mul_(_column(1 - factors_N)))
    return _to_uint8(values)


def adjust_hue(images_NCHW: Tensor, shifts_N: Tensor) -> Tensor:
    """Turn the hue by a part of the colour circle, -0.5 to 0.5, in HSV space.

    Without cases, which are slow: with k the distance of the hue from a channel's own, in sixths of the circle, the
    channel is max - spread * clamp(min(k, 4 - k), 0, 1), where max is the pixel's largest value, and spread the largest
    less the smallest.
    """
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    r, g, b = images_NCHW.float().unbind(1)
    brightest = torch.maximum(torch.maximum(r, g), b)
    spread = brightest - torch.minimum(torch.minimum(r, g), b)
    # Of whole numbers: 1 where a channel is the brightest, else 0, the first of them counting where there are several.
    is_red = (r - brightest).add_(1).clamp_(min=0)
    is_green = (g - brightest).add_(1).clamp_(min=0).mul_(1 - is_red)
    is_blue = (1 - is_red).sub_(is_green)
    sixths = (g - b).mul_(is_red)
    sixths += (b - r).add_(spread * 2).mul_(is_green)
    sixths += (r - g).add_(spread * 4).mul_(is_blue)
    sixths.div_(spread.clamp(min=1)).add_((shifts_N * 6).float().view(-1, 1, 1))
    channels = []
    for place in (5, 3, 1):
        k = (sixths + place).mul_(1 / 6)
        k.sub_(k.floor()).mul_(6)
        k = torch.minimum(k, 4 - k).clamp_(0, 1).mul_(spread)
        channels.append(brightest - k)
    return _to_uint8(torch.stack(channels, dim=1).mul_(1 + 0.999 / _MAX))


def posterize(images_NCHW: Tensor, bits_N: Tensor) -> Tensor:
    """Keep the highest bits, 0 to 8, of each value."""
    masks_N = 256 - (1 << (8 - bits_N.long()))
    return images_NCHW & masks_N.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images_NCHW: Tensor, thresholds_N: Tensor) -> Tensor:
    """Invert the values that are at least a threshold, 0 to 255."""
    below = (thresholds_N.ceil() - 1).to(torch.int16).view(-1, 1, 1, 1)
    signs = (below - images_NCHW.to(torch.int16)) >> 15  # -1, all bits set, where a value is inverted, else 0
    return images_NCHW ^ signs.to(torch.uint8)


def invert(images_NCHW: Tensor) -> Tensor:
    """Replace each value x by 255 - x."""
    return images_NCHW.bitwise_not()


def autocontrast(images_NCHW: Tensor) -> Tensor:
    """Stretch each channel's values to 0..255; a channel of one value stays as it is."""
    lowest = images_NCHW.amin(dim=(2, 3), keepdim=True).float()
    spread = images_NCHW.amax(dim=(2, 3), keepdim=True).float().sub_(lowest).mul_(1 / _MAX)
    flat = spread == 0
    values = images_NCHW.float().sub_(lowest.masked_fill_(flat, 0.0))
    return _to_uint8(values.div_(spread.masked_fill_(flat, 1.0)))


def equalize(images_NCHW: Tensor) -> Tensor:
    """Spread each channel's values so that every grey level is about equally frequent, as PIL does."""
    num, channels, height, width = images_NCHW.shape
    device = images_NCHW.device
    offsets = torch.arange(num * channels, device=device).mul_(256).view(num, channels, 1, 1)
    index = (images_NCHW + offsets).view(-1)
    counts = torch.zeros(num * channels * 256, dtype=torch.int32, device=device)
    counts.scatter_add_(0, index, torch.ones((), dtype=torch.int32, device=device).expand_as(index))
    totals = counts.view(-1, 256).cumsum(1)
    largest = images_NCHW.amax(dim=(2, 3)).view(-1, 1).long()
    last = counts.view(-1, 256).gather(1, largest)  # how often the largest value occurs
    step = torch.div(height * width - last, 255, rounding_mode="floor")
    table = torch.zeros(num * channels, 256, dtype=torch.int64, device=device)
    table[:, 1:] = torch.div(totals[:, :-1] + (step >> 1), step.clamp(min=1), rounding_mode="floor").clamp_(0, _MAX)
    same = torch.arange(256, device=device).expand_as(table)
    table = torch.where(step == 0, same, table).to(torch.uint8)
    return table.view(-1).index_select(0, index).view(images_NCHW.shape)


def _grey(values_NCHW: Tensor) -> Tensor:
    """Return the whole part of the grey value of each pixel, float32 [N, 1, H, W].

    The weighted sum is a whole number of ten-thousandths below 2^24, and therefore exact; the half keeps the product
    with the rounded 1/10000 on the right side of whole numbers.
    """
    if values_NCHW.shape[1] == 1:
        return values_NCHW
    r, g, b = values_NCHW.split(1, dim=1)
    grey: Tensor = (r * 2989).add_(g * 5870).add_(b * 1140).add_(0.5).mul_(1e-4).floor_()
    return grey


def _blend(values_NCHW: Tensor, other: Tensor, factors_N: Tensor) -> Tensor:
    return _to_uint8(values_NCHW.mul(_column(factors_N)).add_(other * _column(1 - factors_N)))


def _column(values_N: Tensor) -> Tensor:
    return values_N.float().view(-1, 1, 1, 1)


def _to_uint8(values: Tensor) -> Tensor:
    """Cut off the fractions; by way of int16, as torch converts float32 to uint8 slowly on CPUs."""
    whole = values.clamp_(0, _MAX).to(torch.int16)
    return whole.to(torch.uint8)
