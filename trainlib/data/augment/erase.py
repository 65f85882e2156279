"""Random erasing: a rectangle of some images is set to zero, after normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.data.augment.policies.operations import to_device

_SCALE, _RATIO, _ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's defaults


def draw_boxes(draws: Draws, probability: float, height: int, width: int) -> Tensor:
    """Return the box of each sample, as first row, first column, height, width: int64 [N, 4]; height 0 erases nothing.

    As torchvision's RandomErasing does, up to ten boxes are drawn, and the first that is smaller than the image counts.
    """
    areas = height * width * draws.uniform("erase area", _ATTEMPTS, *_SCALE)
    ratios = draws.uniform("erase ratio", _ATTEMPTS, math.log(_RATIO[0]), math.log(_RATIO[1])).exp()
    heights, widths = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    erased = fits.any(dim=1) & (draws.uniform("erase chance", 1)[:, 0] < probability)
    heights_N = torch.where(erased, heights.gather(1, first)[:, 0], 0)
    widths_N = torch.where(erased, widths.gather(1, first)[:, 0], 0)
    corners = draws.bits("erase corner", 2)
    return torch.stack(
        [corners[:, 0] % (height - heights_N + 1), corners[:, 1] % (width - widths_N + 1), heights_N, widths_N], dim=1
    )


def erase(values_NCHW: Tensor, boxes_N4: Tensor) -> Tensor:
    """Set the boxes, from `draw_boxes`, of normalised images float32 [N, C, H, W] to 0, in place."""
    chosen = torch.nonzero(boxes_N4[:, 2])[:, 0]  # on the CPU
    if len(chosen) == 0:
        return values_NCHW
    height, width = values_NCHW.shape[2:]
    device = values_NCHW.device
    packed = to_device(torch.cat([chosen[:, None], boxes_N4[chosen]], dim=1), device)
    samples, tops, lefts, heights, widths = packed.view(-1, 5, 1, 1, 1).unbind(1)
    samples = samples.view(-1)
    rows = torch.arange(height, device=device).view(-1, 1) - tops
    columns = torch.arange(width, device=device) - lefts
    inside = ((rows >= 0) & (rows < heights)) & ((columns >= 0) & (columns < widths))
    changed = values_NCHW.index_select(0, samples).masked_fill_(inside, 0.0)
    return values_NCHW.index_copy_(0, samples, changed)
