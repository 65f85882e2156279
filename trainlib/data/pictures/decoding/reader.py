"""From the bytes of a picture to the image that a model is given: decoding, then framing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from PIL import Image
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data.pictures.configured import frames_of
from trainlib.data.pictures.decoding.decode import decode_picture, picture_pixels
from trainlib.data.pictures.framing import Frames, needed_pixels


class Reader(Protocol):
    """A way to make images of what is stored of pictures, on disk or in the cache."""

    def shape(self, epoch: int | None = None) -> tuple[int, int, int]:
        """Return channels, height and width of the images in this epoch of training, or in evaluation (None)."""
        ...

    def __call__(self, data: bytes, draw: int = 0, epoch: int | None = None) -> Tensor:
        """Return the image, uint8 `shape`; `draw` is the sample's draw number, by which its cut is drawn."""
        ...


@dataclass(frozen=True)
class PictureReader:
    """How the pictures of a data set become images: a function of the bytes and, in training, of epoch and draw.

    frames     how a decoded picture is resized and cut
    channels   3: red, green, blue; 1: grey
    decode     `data.decode`: fast decodes a JPEG that is much larger than `frames` needs at a part of its size
    """

    frames: Frames
    channels: int = 3
    decode: str = "fast"

    @classmethod
    def of(cls, config: DataConfig, seed: int = 0) -> PictureReader:
        """Return the reader of the configured data; random cuts are drawn from the run's seed."""
        return cls(frames_of(config, seed), config.channels, config.decode)

    @cached_property
    def _needed(self) -> int | None:
        return needed_pixels(self.frames) if self.decode == "fast" else None

    @property
    def is_fixed(self) -> bool:
        """True if a picture gives the same image in every epoch and in evaluation."""
        return self.frames.training == self.frames.evaluation

    @property
    def key(self) -> str:
        """All that decides the pixels of evaluation, as text."""
        return f"{self.frames.evaluation} {self.picture_key}"

    @property
    def picture_key(self) -> str:
        """All that decides the pixels of a decoded picture, as text."""
        return f"{self.channels} {self.decode} {self._needed}"

    @property
    def _upper_bits(self) -> bool:
        return self.decode == "pillow"

    def shape(self, epoch: int | None = None) -> tuple[int, int, int]:
        """Return channels, height and width of the images in this epoch of training, or in evaluation (None)."""
        return (self.channels, *self.frames.shape(epoch))

    def __call__(self, data: bytes, draw: int = 0, epoch: int | None = None) -> Tensor:
        """Return the image of a picture's file, uint8 `shape`, in this epoch of training or in evaluation (None).

        draw   the sample's draw number, by which its cut is drawn in training
        """
        return self.framed(self.picture(data), draw, epoch)

    def picture(self, data: bytes) -> Tensor:
        """Return the decoded picture of a file, uint8 [C, H, W], which every epoch's image is made of."""
        return decode_picture(data, channels=self.channels, needed=self._needed, upper_bits=self._upper_bits)

    def framed(self, picture_CHW: Tensor, draw: int = 0, epoch: int | None = None) -> Tensor:
        """Return the image of a decoded picture; see `__call__`."""
        return self.frames(picture_CHW, draw, epoch)

    def of_image(self, image: Image.Image) -> Tensor:
        """Return the image that evaluation makes of a PIL image: uint8 `shape`."""
        return self.frames(picture_pixels(image, self.channels, upper_bits=self._upper_bits), 0, None)
