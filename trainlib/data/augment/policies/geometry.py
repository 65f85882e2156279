"""Shear, shift and rotation of whole batches, each sample by its own amount, with nearest interpolation and zero fill.

The source of each pixel is computed in float32 with operations that are rounded one by one, as torchvision's CPU kernel
does it: so every device chooses the same pixel as torchvision, also half way between two.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shear_x(amounts_N: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] of horizontal shears about the upper left corner, by pixels a row (float64)."""
    zeros, ones = torch.zeros_like(amounts_N), torch.ones_like(amounts_N)
    return _matrices(ones, amounts_N, zeros, ones, center=(-width / 2, -height / 2))


def shear_y(amounts_N: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] of vertical shears about the upper left corner, by pixels a column (float64)."""
    zeros, ones = torch.zeros_like(amounts_N), torch.ones_like(amounts_N)
    return _matrices(ones, zeros, amounts_N, ones, center=(-width / 2, -height / 2))


def shift(columns_N: Tensor, rows_N: Tensor) -> Tensor:
    """Return the matrices [N, 2, 3] of shifts to the right and down, by whole pixels (float64)."""
    zeros, ones = torch.zeros_like(columns_N), torch.ones_like(columns_N)
    return torch.stack([ones, zeros, -columns_N, zeros, ones, -rows_N], dim=1).view(-1, 2, 3)


def rotation(degrees_N: Tensor) -> Tensor:
    """Return the matrices [N, 2, 3] of counter-clockwise rotations about the middle (float64)."""
    radians_N = torch.deg2rad(-degrees_N)
    cosine, sine = radians_N.cos(), radians_N.sin()
    return _matrices(cosine, sine, -sine, cosine, center=(0.0, 0.0))


def to_grid(matrices_N23: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices in the units of `warp`, in which the image reaches from -1 to 1: float32 [N, 2, 3]."""
    return matrices_N23.float() / torch.tensor([0.5 * width, 0.5 * height]).view(2, 1)


def warp(images_NCHW: Tensor, matrices_N23: Tensor) -> Tensor:
    """Move the pixels of uint8 images [N, C, H, W] by matrices from `to_grid`, on the images' device.

    A matrix takes a pixel of the result, in pixels from the middle, to its source. A source outside the image is 0.
    """
    num, channels, height, width = images_NCHW.shape
    device = images_NCHW.device
    x_1W = (torch.arange(width, device=device) - (width - 1) / 2).view(1, 1, -1)
    y_H1 = (torch.arange(height, device=device) - (height - 1) / 2).view(1, -1, 1)
    column = _source(matrices_N23[:, 0], x_1W, y_H1, width)
    row = _source(matrices_N23[:, 1], x_1W, y_H1, height)
    # With a border of zeros around the image, for sources outside of it.
    image = torch.arange(num, device=device).mul_((height + 2) * (width + 2)).add_(width + 3).view(-1, 1, 1)
    index = row.to(torch.int64).mul_(width + 2).add_(column.to(torch.int64)).add_(image).view(-1)
    bordered = torch.nn.functional.pad(images_NCHW, (1, 1, 1, 1))
    if channels == 3:  # three bytes are gathered as one number, which is much faster on CPUs
        r, g, b = bordered.float().unbind(1)
        pixels = r.add_(g.mul_(1 << 8)).add_(b.mul_(1 << 16)).to(torch.int32)  # below 2^24, and therefore exact
        found = pixels.view(-1).index_select(0, index).view(num, height, width)
        return torch.stack([found.to(torch.uint8), (found >> 8).to(torch.uint8), (found >> 16).to(torch.uint8)], dim=1)
    return bordered.view(-1).index_select(0, index).view(images_NCHW.shape)


def _source(row_N3: Tensor, x_1W: Tensor, y_H1: Tensor, size: int) -> Tensor:
    """Return the source of each pixel along one axis, in whole pixels from -1 to size: float32 [N, H, W]."""
    a, b, c = row_N3.view(-1, 3, 1, 1).unbind(1)
    return (a * x_1W + b * y_H1).add_(c).add_(1.0).mul_(size / 2).sub_(0.5).round_().clamp_(-1, size)


def _matrices(a_N: Tensor, b_N: Tensor, c_N: Tensor, d_N: Tensor, center: tuple[float, float]) -> Tensor:
    """Return [[a, b], [c, d]] with the shift that keeps `center`, (x, y) in pixels from the middle, in its place."""
    x, y = center
    rows = [a_N, b_N, x - a_N * x - b_N * y, c_N, d_N, y - c_N * x - d_N * y]
    return torch.stack(rows, dim=1).view(-1, 2, 3)
