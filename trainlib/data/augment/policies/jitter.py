"""Colour jitter: brightness, contrast, saturation and hue, each sample by its own amounts and in its own order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.data.augment.policies.operations import Operation, Operations
from trainlib.data.augment.policies.policy import apply_stages


@dataclass(frozen=True)
class ColorJitter:
    """torchvision's ColorJitter.

    brightness, contrast, saturation   b: a factor from max(0, 1 - b) to 1 + b
    hue                                h: a shift from -h to h, at most half of the colour circle
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def draw(self, draws: Draws) -> list[Operations]:
        """Return the operations of each sample, one after another."""
        factors = (
            (Operation.BRIGHTNESS, self.brightness),
            (Operation.CONTRAST, self.contrast),
            (Operation.COLOR, self.saturation),
        )
        ranges = [(operation, max(0.0, 1 - most), 1 + most) for operation, most in factors if most]
        if self.hue:
            ranges.append((Operation.HUE, -self.hue, self.hue))
        if not ranges:
            return []
        amounts = [draws.uniform(f"jitter {operation.name}", 1, low, high) for operation, low, high in ranges]
        order_NK = torch.argsort(draws.bits("jitter order", len(ranges)), dim=1)
        operations_NK = torch.tensor([operation for operation, _, _ in ranges])[order_NK]
        arguments_NK = torch.cat(amounts, dim=1).gather(1, order_NK)
        return [Operations(operations_NK[:, k], arguments_NK[:, k]) for k in range(len(ranges))]

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Change the images, uint8 [N, C, H, W]."""
        return apply_stages(images_NCHW, self.draw(draws))
