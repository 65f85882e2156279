"""Image files to uint8 arrays; also the program that a decoding worker process runs (see `pool`).

Imports neither torch nor the rest of the project, so that a worker is up in a tenth of a second.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import Image, ImageOps

Failure = tuple[str, str]  # path, reason


def decode_image(file: str | IO[bytes], size: int) -> np.ndarray:
    """A file's first image as uint8 RGB [3, size, size] (see `square`). Raises whatever PIL raises for a bad file."""
    with Image.open(file) as image:
        return square(image, size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """An image of any size and mode as uint8 RGB [3, size, size].

    Turned as its EXIF orientation says, the shorter side scaled to `size` (bilinear, antialiased), then the centre
    cut out: what torchvision's Resize and CenterCrop do to a PIL image. One of that size already is not touched.
    Transparency is dropped, as PIL's `convert("RGB")` does, and 16 bits a channel become the upper 8.
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
    """An image of any mode in 8-bit RGB. Raises ValueError where its range of values is not known."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known: export it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image.convert("RGB")


def decode_rows(images_NCHW: np.ndarray, start: int, paths: Sequence[str]) -> list[Failure]:
    """Decode the files into rows start, start + 1, ... of `images_NCHW` (uint8 [N, 3, S, S]).

    Returns the files that could not be decoded, with the reason; their rows are left as they were.
    """
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata in images that decode well
        for row, path in enumerate(paths, start):
            try:
                images_NCHW[row] = decode_image(path, images_NCHW.shape[-1])
            except Exception as error:  # noqa: BLE001 - on damaged files PIL raises almost anything
                failures.append((path, f"{error or type(error).__name__}"))
    return failures


def main() -> None:
    """For each line of stdin, {"start", "paths"}, decode into the .npy file that argv names and answer with a line."""
    # The parent decides when to end: a signal to the whole process group must not kill a worker under it. These are
    # STOP_SIGNALS of trainlib.runs.stop_request, which importing trainlib would cost a tenth of a second (see above).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    images_NCHW = np.lib.format.open_memmap(sys.argv[1], mode="r+")
    for line in sys.stdin:
        print(json.dumps(decode_rows(images_NCHW, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
