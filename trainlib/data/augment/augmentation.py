"""Random changes of whole batches of training images, on their device, with the same bits on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.data.augment.erase import draw_boxes, erase
from trainlib.data.augment.mix import Mixing
from trainlib.randomness import draw, key

Change = Callable[[Tensor, Draws], Tensor]  # of a batch, uint8 [N, C, H, W]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, as functions of (seed, epoch, sample index).

    Applied in this order: crop, flip, vertical flip, changes, erasing, mixing.

    crop_padding    p: surround the images with p pixels, then cut out H x W at one of the (2p + 1)^2 places
    fill            the padding: "black", or "reflect": the image mirrored at its outermost pixels
    flip            True: mirror half of the images, another half in each epoch; "alternating": mirror half of them in
                    epoch 0, and in every other epoch those that it did not mirror in the one before (Jordan, "94% on
                    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024)
    vertical_flip   turn half of the images upside down
    changes         a policy, colour jitter, a transform of the user's own
    erasing         after normalisation: the probability that a rectangle of an image is set to zero
    mixing          after that: MixUp and CutMix, by (seed, step)
    """

    seed: int
    flip: bool | str
    crop_padding: int
    fill: str = "black"
    vertical_flip: bool = False
    changes: tuple[Change, ...] = ()
    erasing: float = 0.0
    mixing: Mixing | None = None

    def __call__(self, images_NCHW: Tensor, ids_N: Tensor, epoch: int, cpu_ids_N: Tensor | None = None) -> Tensor:
        """Change images at random: uint8 [N, C, H, W] to uint8 [N, C, H, W].

        ids_N       int64 [N] on the images' device: the samples' indices in their data set, or their draw numbers
        cpu_ids_N   the same on the CPU; without it they are copied from the device, which waits for a GPU
        """
        images_NCHW = self.crop_and_flip(images_NCHW, self.places(ids_N, epoch))
        return self.change(images_NCHW, ids_N.cpu() if cpu_ids_N is None and self.changes else cpu_ids_N, epoch)

    def places(self, ids_N: Tensor, epoch: int) -> Tensor:
        """Return where each sample's window is cut out, and whether it is mirrored: int64 [K, N], on the ids' device.

        The K rows are, as far as they are needed: the row of the window, its column; 1 for an image that is
        mirrored; 1 for one that is turned upside down. It may be asked for a whole epoch at once.

        A sample's crop and flip depend on (seed, epoch, its index) alone, and are the same on every device. Of the 63
        bits drawn for a sample, bit 0 is the flip, bits 1-31 modulo 2p + 1 the row, bits 32-62 modulo 2p + 1 the
        column. The half that "alternating" mirrors first has bits of its own, which do not depend on the epoch.
        """
        rows = []
        if self.crop_padding or self.flip is True:
            bits_N = draw(key("augment", self.seed, epoch), ids_N)
        if self.crop_padding:
            num_places = 2 * self.crop_padding + 1
            rows += [(bits_N >> 1 & 0x7FFFFFFF) % num_places, (bits_N >> 32) % num_places]
        if self.flip == "alternating":
            rows.append((draw(key("alternating flip", self.seed), ids_N) ^ epoch) & 1)
        elif self.flip:
            rows.append(bits_N & 1)
        if self.vertical_flip:
            rows.append(draw(key("vertical flip", self.seed, epoch), ids_N) & 1)
        return torch.stack(rows) if rows else ids_N.new_empty((0, len(ids_N)))

    def crop_and_flip(self, images_NCHW: Tensor, places_KN: Tensor) -> Tensor:
        """Cut and mirror images, uint8 [N, C, H, W] as `places` says. No value of the host decides what is done."""
        rows = iter(places_KN)
        if self.crop_padding:
            images_NCHW = _crop(images_NCHW, next(rows), next(rows), self.crop_padding, self.fill)
        if self.flip:
            images_NCHW = flip(images_NCHW, next(rows), 3)
        return flip(images_NCHW, next(rows), 2) if self.vertical_flip else images_NCHW

    def change(self, images_NCHW: Tensor, cpu_ids_N: Tensor | None, epoch: int) -> Tensor:
        """Apply policy, colour jitter and the user's own transform to images, uint8 [N, C, H, W]."""
        if self.changes:
            assert cpu_ids_N is not None
            draws = Draws(key("change", self.seed, epoch), cpu_ids_N)
            for change in self.changes:
                images_NCHW = change(images_NCHW, draws)
        return images_NCHW

    def erase(self, values_NCHW: Tensor, cpu_ids_N: Tensor, epoch: int) -> Tensor:
        """Set rectangles of normalised images, float32 [N, C, H, W], to zero, in place."""
        if not self.erasing:
            return values_NCHW
        height, width = values_NCHW.shape[2:]
        draws = Draws(key("erase", self.seed, epoch), cpu_ids_N)
        return erase(values_NCHW, draw_boxes(draws, self.erasing, height, width))


def flip(images_NCHW: Tensor, flips_N: Tensor, dim: int) -> Tensor:
    """Mirror the uint8 images whose flag in `flips_N`, int64 0 or 1, is 1, along a dimension: 3 to the side, 2 down."""
    masks = (-flips_N).to(torch.uint8).view(-1, 1, 1, 1)  # 255 or 0; torch.where is many times slower on CPUs
    return images_NCHW ^ (images_NCHW.flip(dim).bitwise_xor_(images_NCHW).bitwise_and_(masks))


def _crop(images_NCHW: Tensor, rows_N: Tensor, columns_N: Tensor, padding: int, fill: str) -> Tensor:
    """Cut a window out of each padded image, at this row and column."""
    height, width = images_NCHW.shape[2:]
    padded = _pad_reflecting(images_NCHW, padding) if fill == "reflect" else F.pad(images_NCHW, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, C, row, column, H, W]
    return windows[torch.arange(len(rows_N), device=rows_N.device), :, rows_N, columns_N]


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
