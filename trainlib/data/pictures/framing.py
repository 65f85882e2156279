"""How a decoded picture of any size becomes an image of the model's size: resized and cut, or cut at random.

Every result is a function of the picture's pixels and the values here (for a random cut also of seed, epoch and sample
index), with the same bits on every machine. The sizes and places are those of torchvision's Resize, CenterCrop and
RandomResizedCrop; pictures are resampled as uint8, by torch or by Pillow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, from_numpy, stack

from trainlib.randomness import draw_one, key

TRIES = 10  # of a random cut that lies inside the picture, as torchvision's RandomResizedCrop
MAX_RESIZED_PIXELS = 120_000_000  # of a picture before its centre is cut out
_RATIO_BITS = 32

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Framing:
    """The resizing and cutting of pictures for evaluation, and for training without a random cut.

    height, width   of the result, in pixels
    fit             crop: scale the picture until it covers the `size`, and cut out the centre; pad: scale it until it
                    fits inside, and surround it with black; squash: scale height and width separately
    size            not of pad: what the shorter side of the result is cut out of, as torchvision's Resize(size) before
                    CenterCrop; at least the shorter of height and width, and that where it is None
    interpolation   nearest, bilinear, bicubic or lanczos; all but the first with antialiasing
    pillow          True to resample with Pillow, as `data.decode: exact` does, whose values differ by one at most
    """

    height: int
    width: int
    fit: str = "crop"
    size: int | None = None
    interpolation: str = "bilinear"
    pillow: bool = False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width that a picture of these sides is scaled to before it is cut or padded."""
        box_height, box_width = self.covered
        if self.fit == "squash":
            return box_height, box_width
        if (box_height * width >= box_width * height) == (self.fit == "crop"):
            return box_height, max(1, box_height * width // height)
        return max(1, box_width * height // width), box_width

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that the scaled picture covers (crop), fits into (pad) or gets (squash)."""
        if self.fit == "pad" or self.size is None:
            return self.height, self.width
        shorter = min(self.height, self.width)
        return round(self.height * self.size / shorter), round(self.width * self.size / shorter)

    @property
    def shorter_side(self) -> int:
        """The shorter of the two sides that the scaled picture covers: `size` where it is given."""
        return min(self.covered)

    def keeps(self, height: int, width: int) -> bool:
        """Return True if pictures of these sides are left as they are."""
        return (self.height, self.width) == (height, width) == self.resized(height, width)

    @property
    def needed_pixels(self) -> int:
        """The shorter side, in pixels, of a picture that is never enlarged."""
        return max(self.covered)

    def in_words(self) -> str:
        """Return how a picture, turned as its EXIF orientation says, becomes an image of this size."""
        size, covered = f"{self.height} x {self.width}", "{} x {}".format(*self.covered)
        how = f"({self.interpolation}{'' if self.interpolation == 'nearest' else ', antialiased'})"
        if self.fit == "pad":
            return f"until it fits into height x width {size} {how}, then black around it"
        if self.fit == "squash":
            return f"to height x width {covered} {how}" + ("" if covered == size else f", then the centre {size}")
        if self.height == self.width:
            return f"shorter side to {self.shorter_side} {how}, then the centre {size}"
        return f"until it covers height x width {covered} {how}, then the centre {size}"

    def __call__(self, picture_CHW: Tensor) -> Tensor:
        """Return uint8 [C, height, width] of a picture uint8 [C, H, W]; it is not copied if it has that size.

        Or, at once, [N, C, height, width] of several pictures of one size, [N, C, H, W].

        Raises ValueError for a picture that is too long for its width to be scaled.
        """
        height, width = self.resized(*picture_CHW.shape[-2:])
        if height * width > MAX_RESIZED_PIXELS:
            sides = " x ".join(str(side) for side in reversed(picture_CHW.shape[-2:]))
            raise ValueError(f"it has {sides} pixels, too long for its width: cut it")
        image_CHW = resample(picture_CHW, height, width, self.interpolation, pillow=self.pillow)
        left, top = round((width - self.width) / 2), round((height - self.height) / 2)
        if self.fit == "pad":
            left, top = -((self.width - width) // 2), -((self.height - height) // 2)
            right, bottom = self.width - width + left, self.height - height + top
            return F.pad(image_CHW, (-left, right, -top, bottom))
        return image_CHW[..., top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class RandomCrop:
    """The random cuts of training images: torchvision's RandomResizedCrop as a function of (seed, epoch, sample index).

    height, width   of the result, in pixels
    scale           the least and the largest share of the picture's area that is cut out; uniform between them
    ratio           the least and the largest width for a height of 1; uniform in its logarithm
    interpolation, pillow   as in Framing

    The numbers drawn are whole ones, and what is computed of them are sums, products, quotients and square roots,
    which every machine rounds alike; exponentials and logarithms, which it may not, are none of them.
    """

    seed: int
    height: int
    width: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    pillow: bool = False

    @property
    def needed_pixels(self) -> int:
        """The shorter side, in pixels, of a picture whose cut of mean area is not enlarged."""
        return math.ceil(max(self.height, self.width) / math.sqrt(sum(self.scale) / 2))

    def box(self, index: int, epoch: int, height: int, width: int) -> Box:
        """Return the cut of a picture of these sides, for a sample index in an epoch: top, left, height, width.

        The first of ten random ones that lies inside the picture; else the largest one around its centre.
        """
        stream = key(index, folded=_epoch_key(self.seed, epoch))
        least, most = self.scale
        for counter in range(0, 4 * TRIES, 4):
            area = height * width * (least + (most - least) * (draw_one(stream, counter) / 2**63))
            ratio = self._ratio(draw_one(stream, counter + 1))
            cut_width, cut_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < cut_width <= width and 0 < cut_height <= height:
                top = (draw_one(stream, counter + 2) * (height - cut_height + 1)) >> 63
                left = (draw_one(stream, counter + 3) * (width - cut_width + 1)) >> 63
                return top, left, cut_height, cut_width
        return self._central_box(height, width)

    def _ratio(self, bits: int) -> float:
        """Return the ratio for 63 random bits: low * (high / low) ** u, where u in [0, 1) are the upper 32 bits."""
        ratio = self.ratio[0]
        for place, root in enumerate(self._roots):
            if bits >> (62 - place) & 1:
                ratio *= root
        return ratio

    @cached_property
    def _roots(self) -> tuple[float, ...]:
        """(high / low) ** (1/2), ** (1/4), ... of the ratio."""
        roots = [self.ratio[1] / self.ratio[0]]
        for _ in range(_RATIO_BITS):
            roots.append(math.sqrt(roots[-1]))
        return tuple(roots[1:])

    def _central_box(self, height: int, width: int) -> Box:
        low, high = self.ratio
        cut_height, cut_width = height, width
        if width / height < low:
            cut_height = max(1, round(width / low))
        elif width / height > high:
            cut_width = max(1, round(height * high))
        return (height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width

    def __call__(self, picture_CHW: Tensor, index: int, epoch: int) -> Tensor:
        """Return uint8 [C, height, width], cut at random out of a picture uint8 [C, H, W]."""
        top, left, height, width = self.box(index, epoch, *picture_CHW.shape[-2:])
        cut_CHW = picture_CHW[..., top : top + height, left : left + width]
        return resample(cut_CHW, self.height, self.width, self.interpolation, pillow=self.pillow)


@dataclass(frozen=True)
class Frames:
    """How the pictures of an image set become images: in evaluation, and in each epoch of training."""

    evaluation: Framing
    training: Framing | RandomCrop

    def shape(self, epoch: int | None) -> tuple[int, int]:
        """Return height and width of the images in this epoch of training, or in evaluation (None)."""
        chosen = self.evaluation if epoch is None else self.training
        return chosen.height, chosen.width

    def __call__(self, picture_CHW: Tensor, index: int, epoch: int | None) -> Tensor:
        """Return the image of a picture uint8 [C, H, W], in this epoch of training or in evaluation (None)."""
        if epoch is None:
            return self.evaluation(picture_CHW)
        if isinstance(self.training, RandomCrop):
            return self.training(picture_CHW, index, epoch)
        return self.training(picture_CHW)


def needed_pixels(frames: Frames) -> int:
    """Return the shorter side, in pixels, that a decoder must give at least: one number, for training and evaluation.

    It follows from the configuration alone, so that what is stored of a picture does not depend on how it is used.
    """
    return max(frames.evaluation.needed_pixels, frames.training.needed_pixels)


def resample(picture_CHW: Tensor, height: int, width: int, interpolation: str, *, pillow: bool = False) -> Tensor:
    """Scale a picture uint8 [C, H, W] to uint8 [C, height, width]; the picture itself if it has that size.

    Or several of one size at once, [N, C, H, W].
    """
    if picture_CHW.shape[-2:] == (height, width):
        return picture_CHW
    if picture_CHW.numel() == 0:  # no picture, which torch refuses
        return picture_CHW.new_empty((*picture_CHW.shape[:-2], height, width))
    # Of a single column torch may take bytes that lie elsewhere, or end with an error, as it mistakes the layout.
    if pillow or (interpolation != "nearest" and 1 in (width, picture_CHW.shape[-1])):
        rows = picture_CHW if picture_CHW.ndim == 4 else picture_CHW[None]
        scaled = stack([_resample_with_pillow(row_CHW, height, width, interpolation) for row_CHW in rows])
        return scaled if picture_CHW.ndim == 4 else scaled[0]
    # Not through torchvision, which takes floating-point numbers, and so other bits, on processors without AVX2.
    smooth = {} if interpolation == "nearest" else {"antialias": True, "align_corners": False}
    if picture_CHW.ndim == 4:
        return F.interpolate(picture_CHW, (height, width), mode=interpolation, **smooth)
    picture_1CHW = picture_CHW[None]
    if picture_CHW.stride(0) == 1:
        # As decoders give them. With this stride of the first dimension torch takes it for its channels last, and
        # resizes in a half of the time to the same bits.
        picture_1CHW = picture_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(picture_1CHW, (height, width), mode=interpolation, **smooth)[0]


def _resample_with_pillow(picture_CHW: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    from PIL import Image

    pixels = picture_CHW.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    resized = np.array(image.resize((width, height), Image.Resampling[interpolation.upper()]))
    return from_numpy(resized.reshape(height, width, -1)).permute(2, 0, 1)


@lru_cache(maxsize=8)
def _epoch_key(seed: int, epoch: int) -> int:
    return key("crop", seed, epoch)
