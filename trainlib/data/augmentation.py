"""Augmentation and normalization of whole batches of images, on their device, with the same bits on every device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainlib.randomness import draw, key


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of training images, as a function of (seed, epoch, sample index).

    flip            True: mirror half of the images, another half in each epoch; "alternating": mirror half of them in
                    epoch 0, and in every other epoch those that it did not mirror in the one before (Jordan, "94% on
                    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024)
    crop_padding    p: surround the images with p pixels, then cut out H x W at one of the (2p + 1)^2 places
    fill            the padding: "black", or "reflect": the image mirrored at its outermost pixels
    """

    seed: int
    flip: bool | str
    crop_padding: int
    fill: str = "black"

    def __bool__(self) -> bool:
        return bool(self.flip) or self.crop_padding > 0

    def __call__(self, images_NCHW: Tensor, ids_N: Tensor, epoch: int) -> Tensor:
        """Crop and flip images at random: uint8 [N, 3, H, W] to uint8 [N, 3, H, W].

        ids_N   int64 [N] on the images' device: the samples' indices in their data set

        A sample's crop and flip depend on (seed, epoch, its index) alone, and are the same on every device. Of the 63
        bits drawn for a sample, bit 0 is the flip, bits 1-31 modulo 2p + 1 the row, bits 32-62 modulo 2p + 1 the
        column. The half that "alternating" mirrors first has bits of its own, which do not depend on the epoch.
        """
        bits_N = draw(key("augment", self.seed, epoch), ids_N)
        if self.crop_padding:
            height, width = images_NCHW.shape[2:]
            num_places = 2 * self.crop_padding + 1
            rows_N = (bits_N >> 1 & 0x7FFFFFFF) % num_places
            columns_N = (bits_N >> 32) % num_places
            padded = (
                _pad_reflecting(images_NCHW, self.crop_padding)
                if self.fill == "reflect"
                else F.pad(images_NCHW, (self.crop_padding,) * 4)
            )
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, C, row, column, H, W]
            images_NCHW = windows[torch.arange(len(ids_N), device=ids_N.device), :, rows_N, columns_N]
        if self.flip:
            alternating = self.flip == "alternating"
            flips_N = draw(key("alternating flip", self.seed), ids_N) ^ epoch if alternating else bits_N
            flip_N111 = (flips_N & 1).bool().view(-1, 1, 1, 1)
            images_NCHW = torch.where(flip_N111, images_NCHW.flip(3), images_NCHW)
        return images_NCHW


@dataclass(frozen=True)
class Preprocess:
    """The conversion of uint8 images to the model's input: resizing, and normalization by channel.

    mean, std    of each channel of images scaled to 0..1
    image_size   height and width of the result, in pixels
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Convert uint8 [N, 3, H, W] to normalized float32 [N, 3, image_size, image_size], on the images' device.

        The result is (x / 255 - mean) / std, computed as x * a - b, where a = 1 / (255 * std) and b = mean / std are
        rounded from float64 to float32, and so are the product and the difference, one by one: every device gives the
        same bits. Images of another size are resized first (bilinear, antialiased).
        """
        size = (self.image_size, self.image_size)
        if len(images_NCHW) == 0:  # interpolate refuses it
            return torch.empty((0, 3, *size), device=images_NCHW.device)
        # In one layout, whichever the images' source has: kernels may round otherwise in another one.
        values = images_NCHW.contiguous().to(torch.float32)
        if values.shape[2:] != size:
            values = F.interpolate(values, size, mode="bilinear", antialias=True)
        scale, shift = _scale_and_shift(self.mean, self.std, values.device)
        return values.mul_(scale).sub_(shift)


def _pad_reflecting(images_NCHW: Tensor, padding: int) -> Tensor:
    """Pad images on all sides with their mirror images, in which the outermost rows and columns are not repeated.

    Line by line, as torch has no reflection padding of integers on GPUs. A padding wider than the image alternates
    between mirror image and image, as NumPy's "reflect" does.
    """
    padded = F.pad(images_NCHW, (padding,) * 4)
    for dim in (2, 3):
        last = images_NCHW.shape[dim] - 1
        for place in (*range(-padding, 0), *range(last + 1, last + 1 + padding)):
            source = place % max(2 * last, 1)
            padded.select(dim, padding + place).copy_(padded.select(dim, padding + min(source, 2 * last - source)))
    return padded


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean_3: tuple[float, float, float], std_3: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return a and b of `Preprocess`, [3, 1, 1]; cached, as making a tensor from numbers waits for a GPU."""
    scale = torch.tensor([1 / (255 * std) for std in std_3], dtype=torch.float32, device=device)
    shift = torch.tensor(
        [mean / std for mean, std in zip(mean_3, std_3, strict=True)], dtype=torch.float32, device=device
    )
    return scale.view(3, 1, 1), shift.view(3, 1, 1)
