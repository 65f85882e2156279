"""Random changes of whole batches of training images, on their device, with the same bits on every device."""

from __future__ import annotations

from dataclasses import dataclass

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
