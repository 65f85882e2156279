"""The decoding of image files to uint8 arrays; also the program of a decoding worker process (see `pool`).

Imports neither torch nor the rest of the project, so that a worker is up in a tenth of a second.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import signal
import stat
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's decoders of pictures made of pixels. It has others: it gives PostScript, for one, to Ghostscript to run.
_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Png", "Ppm", "Tiff", "WebP")
for _plugin in _PLUGINS:
    with suppress(ImportError):  # some came with later versions, and some are missing in some builds
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")
_NAMED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _NAMED if name in Image.OPEN)
MAX_PIXELS = 120_000_000  # of one picture: at most 1 GB in each process that decodes
MAX_BYTES = 1 << 29  # of one file
PICTURE_SECONDS = 60.0  # of a processor, for one picture; one of MAX_PIXELS takes a quarter of it

Failure = tuple[str, str]  # path, reason
Decoded = tuple[list[str | None], list[Failure]]  # the SHA-256 of each file's bytes, None for one that cannot be read


def decode_image(file: str | IO[bytes], size: int) -> np.ndarray:
    """Decode a file's first image to uint8 RGB [3, size, size] (see `resize_and_crop`); raise what PIL raises.

    Raises ValueError for an image that would take too much memory, before any of it is taken.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"no whole picture of a format that is read ({', '.join(FORMATS)})") from error
    with image:
        _check_pixels(image.size, size)
        return resize_and_crop(image, size)


def _check_pixels(image_size: tuple[int, int], size: int) -> None:
    """Raise ValueError if an image has too many pixels, or too many once its shorter side is scaled to `size`."""
    width, height = image_size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width} x {height} pixels, which may be {MAX_PIXELS // 10**6} million at most: make it smaller"
        )
    longer = size * max(width, height) // max(min(width, height), 1)
    if longer * size > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, too long for its width: cut it")


def read_picture(path: str) -> bytes:
    """Return the bytes of a picture's file. Raises OSError for what is no regular file, a pipe for instance.

    A link may lead to the file, as data sets are often made of links.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file but a pipe, a device or a folder")
        return read_limited(file)


def read_limited(file: IO[bytes]) -> bytes:
    """Return what is in an open picture. Raises ValueError if that is more than any picture has."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
    return data


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Convert an image of any size and mode to uint8 RGB [3, size, size].

    The image is turned by its EXIF orientation, its shorter side is scaled to `size` (bilinear, antialiased), and the
    centre is cut out, as torchvision's Resize and CenterCrop do with a PIL image. An image of that size is not
    resampled. Transparency is dropped, as by PIL's `convert("RGB")`; of 16 bits a channel the upper 8 are kept.
    """
    rgb = to_rgb(ImageOps.exif_transpose(image))
    width, height = rgb.size
    if (width, height) != (size, size):
        shorter = min(width, height)
        width, height = size * width // shorter, size * height // shorter
        left, top = round((width - size) / 2), round((height - size) / 2)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(rgb).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB. Raises ValueError if the range of its values is not known."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known: export it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image.convert("RGB")


def decode_rows(
    images_NCHW: np.ndarray, start: int, paths: Sequence[str], killed_after: float | None = None
) -> Decoded:
    """Decode the files into rows start, start + 1, ... of `images_NCHW` (uint8 [N, 3, S, S]), reading each file once.

    Returns the SHA-256 of each file's bytes, in hex, and path and reason of the files that could not be decoded; their
    rows are left as they were.

    killed_after   seconds of processor time after which one picture ends this process, which must be a worker's, by
                   SIGPROF: nothing else ends a decoder that does not return; None for no limit
    """
    hashes: list[str | None] = []
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata in images that decode well
        for row, path in enumerate(paths, start):
            hashes.append(None)
            if killed_after is not None:
                signal.setitimer(signal.ITIMER_PROF, killed_after)
            try:
                data = read_picture(path)
                hashes[-1] = hashlib.sha256(data).hexdigest()
                images_NCHW[row] = decode_image(io.BytesIO(data), images_NCHW.shape[-1])
            except Exception as error:  # noqa: BLE001 - on damaged files PIL raises almost anything
                failures.append((path, f"{error or type(error).__name__}"))
    if killed_after is not None:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return hashes, failures


def main() -> None:
    """Run a worker: decode the files that each line of stdin, {"start", "paths"}, names into the .npy file in argv.

    For each line it prints what `decode_rows` returns, as JSON.
    """
    # The parent decides when to end: a signal to the whole process group must not kill a worker under it. These are
    # STOP_SIGNALS of `stop_request`, which importing trainlib would cost a tenth of a second (see above).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    images_NCHW = np.lib.format.open_memmap(sys.argv[1], mode="r+")
    for line in sys.stdin:
        print(json.dumps(decode_rows(images_NCHW, **json.loads(line), killed_after=PICTURE_SECONDS)), flush=True)


if __name__ == "__main__":
    main()
