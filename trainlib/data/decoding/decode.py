"""The decoding of image files to uint8 arrays; also the program of a decoding worker process (see `pool`).

Imports neither torch nor the rest of the project, so that a worker is up in a tenth of a second.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import Image, ImageOps

Failure = tuple[str, str]  # path, reason
Decoded = tuple[list[str | None], list[Failure]]  # the SHA-256 of each file's bytes, None for one that cannot be read


def decode_image(file: str | IO[bytes], size: int) -> np.ndarray:
    """Decode a file's first image to uint8 RGB [3, size, size] (see `resize_and_crop`); raise what PIL raises."""
    with Image.open(file) as image:
        return resize_and_crop(image, size)


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


def decode_rows(images_NCHW: np.ndarray, start: int, paths: Sequence[str]) -> Decoded:
    """Decode the files into rows start, start + 1, ... of `images_NCHW` (uint8 [N, 3, S, S]), reading each file once.

    Returns the SHA-256 of each file's bytes, in hex, and path and reason of the files that could not be decoded; their
    rows are left as they were.
    """
    hashes: list[str | None] = []
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata in images that decode well
        for row, path in enumerate(paths, start):
            hashes.append(None)
            try:
                with open(path, "rb") as file:
                    data = file.read()
                hashes[-1] = hashlib.sha256(data).hexdigest()
                images_NCHW[row] = decode_image(io.BytesIO(data), images_NCHW.shape[-1])
            except Exception as error:  # noqa: BLE001 - on damaged files PIL raises almost anything
                failures.append((path, f"{error or type(error).__name__}"))
    return hashes, failures


def main() -> None:
    """Run a worker: decode the files that each line of stdin, {"start", "paths"}, names into the .npy file in argv.

    For each line it prints what `decode_rows` returns, as JSON.
    """
    # The parent decides when to end: a signal to the whole process group must not kill a worker under it. These are
    # STOP_SIGNALS of trainlib.runs.stop_request, which importing trainlib would cost a tenth of a second (see above).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    images_NCHW = np.lib.format.open_memmap(sys.argv[1], mode="r+")
    for line in sys.stdin:
        print(json.dumps(decode_rows(images_NCHW, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
