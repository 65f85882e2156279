"""Looking at each picture of a data set once: its content hash, size, format, damage, and a hash of what it shows."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from trainlib.data.datasets.images import Pictures
from trainlib.data.pictures.decoding.decode import decode_picture
from trainlib.data.pictures.files import PictureFiles

NEEDED = 64  # pixels of the shorter side: enough for a hash of what a picture shows, and all of the file is read
AT_ONCE = 256  # pictures that threads are given at a time

ShowsHash = Callable[[Image.Image], int]


class Stored(NamedTuple):
    """A picture as it is stored: its bytes, format, mode and size in pixels."""

    content: bytes
    format: str
    mode: str
    width: int
    height: int


class PictureSource(Protocol):
    """Pictures by index, as the survey looks at them. Any number of threads may ask at a time."""

    def stored(self, index: int) -> Stored:
        """Return a picture as it is stored; raise anything where it is damaged."""
        ...

    def picture(self, stored: Stored, needed: int) -> Tensor:
        """Return its pixels, uint8 [C, H, W], with at least `needed` on the shorter side where it has as many."""
        ...


class FilePictures:
    """The pictures of files or archive members."""

    def __init__(self, files: PictureFiles, channels: int = 3):
        self._files, self._channels = files, channels

    def stored(self, index: int) -> Stored:
        """Return the bytes of a file, and what its header says."""
        content = self._files.read(index)
        try:
            with Image.open(io.BytesIO(content)) as image:
                return Stored(content, image.format or "", image.mode, *image.size)
        except UnidentifiedImageError:
            return Stored(content, "", "", 0, 0)  # to decode it says why

    def picture(self, stored: Stored, needed: int) -> Tensor:
        """Decode it as training does, so that what is damaged there is damaged here."""
        return decode_picture(stored.content, channels=self._channels, needed=needed)


class ArrayPictures:
    """The pictures of a data set that is no files: one image set behind the other."""

    def __init__(self, images: Sequence[Pictures]):
        self._images = images

    def stored(self, index: int) -> Stored:
        """Return the pixels of an image as bytes."""
        picture_CHW = self._at(index)
        channels, height, width = picture_CHW.shape
        content = picture_CHW.permute(1, 2, 0).contiguous().numpy().tobytes()
        return Stored(content, "array", "RGB" if channels == 3 else "L", width, height)

    def picture(self, stored: Stored, needed: int) -> Tensor:
        """Return its pixels."""
        import torch

        shape = (stored.height, stored.width, -1)
        return torch.frombuffer(bytearray(stored.content), dtype=torch.uint8).view(shape).permute(2, 0, 1)

    def _at(self, index: int) -> Tensor:
        import torch

        for images in self._images:
            if index < len(images):
                return next(images.batches([torch.tensor([index])])).cpu()[0]
            index -= len(images)
        raise IndexError(index)


@dataclass(frozen=True)
class Looks:
    """What was found of N pictures.

    content_N   SHA-256 of the stored bytes, 32 bytes each
    shows_N     uint64: a hash that similar pictures share, or nearly; None where it was not computed
    sizes_N2    int32: width and height in pixels
    kinds_N     format and mode of each, as in "JPEG RGB"
    damaged     the reason, by index, of each picture that cannot be read or decoded
    """

    content_N: np.ndarray
    shows_N: np.ndarray | None
    sizes_N2: np.ndarray
    kinds_N: list[tuple[str, str]]
    damaged: dict[int, str]

    def whole(self) -> np.ndarray:
        """Return which pictures are not damaged: bool [N]."""
        whole_N = np.ones(len(self.kinds_N), bool)
        whole_N[list(self.damaged)] = False
        return whole_N


def look_at_all(
    source: PictureSource, count: int, shows_hash: ShowsHash | None, progress: Callable[[int], None]
) -> Looks:
    """Look at the pictures 0..count - 1, in threads. `progress` is called with how many are done, again and again."""
    content_N = np.zeros((count, 32), np.uint8)
    shows_N = np.zeros(count, np.uint64) if shows_hash is not None else None
    sizes_N2 = np.zeros((count, 2), np.int32)
    kinds_N = [("", "")] * count
    damaged: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            stored = source.stored(index)
            content_N[index] = np.frombuffer(hashlib.sha256(stored.content).digest(), np.uint8)
            kinds_N[index], sizes_N2[index] = (stored.format, stored.mode), (stored.width, stored.height)
            picture_CHW = source.picture(stored, NEEDED)
            if shows_hash is not None and shows_N is not None:
                shows_N[index] = shows_hash(as_image(picture_CHW))
        except Exception as error:  # noqa: BLE001 - on damaged files Pillow raises almost anything
            damaged[index] = f"{error or type(error).__name__}"

    indices = iter(range(count))
    done = 0
    pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))
    try:
        while chunk := list(islice(indices, AT_ONCE)):
            list(pool.map(look, chunk))
            done += len(chunk)
            progress(done)
    finally:  # Ctrl-C does not wait for a decoder that does not return
        pool.shutdown(wait=False, cancel_futures=True)
    return Looks(content_N, shows_N, sizes_N2, kinds_N, dict(sorted(damaged.items())))


def perceptual_hash() -> ShowsHash | None:
    """Return imagehash's `phash` as a function to 64 bits; None where the package is not installed."""
    try:
        import imagehash
    except ImportError:
        return None

    def phash(image: Image.Image) -> int:
        bits: Any = imagehash.phash(image)
        return int(str(bits), 16)

    return phash


def as_image(picture_CHW: Tensor) -> Image.Image:
    """Return uint8 [3, H, W] or [1, H, W] as a picture of Pillow."""
    array = picture_CHW.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
