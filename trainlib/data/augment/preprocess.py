"""The conversion of uint8 images to the model's input, with the same bits on every device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainlib.config import Size, sides


@dataclass(frozen=True)
class Preprocess:
    """The conversion of uint8 images to the model's input: normalization by channel.

    mean, std    of each channel of images scaled to 0..1
    image_size   the size that images of another one are resized to, on their device; None for images that have theirs
                 (only in runs that began before pictures in memory were framed as files are, see `framing`)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Size | None = None

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Convert uint8 [N, C, H, W] to normalized float32 [N, C, H, W] or `image_size`, on the images' device.

        The result is (x / 255 - mean) / std, computed as x * a - b, where a = 1 / (255 * std) and b = mean / std are
        rounded from float64 to float32, and so are the product and the difference, one by one: every device gives the
        same bits. Images of another size are resized first (bilinear, antialiased).
        """
        size = tuple(images_NCHW.shape[2:]) if self.image_size is None else sides(self.image_size)
        if len(images_NCHW) == 0:  # interpolate refuses it
            return torch.empty((0, images_NCHW.shape[1], *size), device=images_NCHW.device)
        # In one layout, whichever the images' source has: kernels may round otherwise in another one.
        values = images_NCHW.contiguous().to(torch.float32)
        if values.shape[2:] != size:
            values = F.interpolate(values, size, mode="bilinear", antialias=True)
        scale, shift = _scale_and_shift(self.mean, self.std, values.device)
        return values.mul_(scale).sub_(shift)


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean_C: tuple[float, ...], std_C: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return a and b of `Preprocess`, [C, 1, 1]; cached, as making a tensor from numbers waits for a GPU."""
    scale = torch.tensor([1 / (255 * std) for std in std_C], dtype=torch.float32, device=device)
    shift = torch.tensor(
        [mean / std for mean, std in zip(mean_C, std_C, strict=True)], dtype=torch.float32, device=device
    )
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)
