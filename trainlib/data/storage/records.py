"""What the cache keeps of a picture: its file's bytes, its decoded pixels, or the image that a model is given."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.data.pictures.decoding.reader import PictureReader

_SIDES = struct.Struct("<II")  # height and width, before the pixels


@dataclass(frozen=True)
class Records:
    """The form in which pictures are kept.

    kind     files: the file's bytes; pictures: the decoded picture, at the scale that decoding gives, pixel by pixel;
             images: the image that is made of it, channel by channel, where it is the same in every epoch and in
             evaluation
    reader   makes images of files
    """

    kind: str
    reader: PictureReader

    @property
    def key(self) -> str:
        """All that decides the bytes of a record, other than the file's bytes, as text."""
        match self.kind:
            case "files":
                return self.kind
            case "pictures":
                return f"{self.kind} by pixel {self.reader.picture_key}"
        return f"{self.kind} {self.reader.key}"

    def encode(self, data: bytes) -> bytes:
        """Return the record of a file's bytes; raise what decoding raises."""
        if self.kind == "files":
            return data
        pixels_CHW = self.reader.picture(data) if self.kind == "pictures" else self.reader(data)
        # Pictures as decoders give them: another order takes longer than half of the decoding, and to resize it too.
        pixels = pixels_CHW.permute(1, 2, 0) if self.kind == "pictures" else pixels_CHW
        return _SIDES.pack(*pixels_CHW.shape[1:]) + pixels.contiguous().numpy().tobytes()

    def shape(self, epoch: int | None = None) -> tuple[int, int, int]:
        """Return channels, height and width of the images in this epoch of training, or in evaluation (None)."""
        return self.reader.shape(epoch)

    def __call__(self, data: bytes, draw: int = 0, epoch: int | None = None) -> Tensor:
        """Return the image, uint8 `shape`, of a record, as the reader makes it of the file; see `PictureReader`."""
        if self.kind == "files":
            return self.reader(data, draw, epoch)
        height, width = _SIDES.unpack_from(data)
        pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=_SIDES.size)
        if self.kind == "pictures":
            return self.reader.framed(pixels.view(height, width, -1).permute(2, 0, 1), draw, epoch)
        return pixels.view(-1, height, width)


def image_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a record that holds an image of this shape, uint8."""
    return _SIDES.size + torch.Size(shape).numel()


def pixels_of(records: memoryview, shape: tuple[int, ...]) -> Tensor:
    """Return the images in records that follow each other, all of one shape: uint8 [N, *shape], a view."""
    rows = torch.frombuffer(records, dtype=torch.uint8).view(-1, image_bytes(shape))
    return rows[:, _SIDES.size :].view(len(rows), *shape)
