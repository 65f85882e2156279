"""The decoding of photographs as it was done before there was `data.decode`: in a process of its own, without torch.

It decodes the file that each line of stdin names, whole, by Pillow, and answers with a line.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def decode(data: bytes, size: int) -> np.ndarray:
    """Return uint8 RGB [3, size, size] of a picture: its shorter side scaled to `size`, and the centre cut out."""
    with Image.open(io.BytesIO(data)) as picture:
        turned = ImageOps.exif_transpose(picture).convert("RGB")
        width, height = (size * side // min(turned.size) for side in turned.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        small = turned.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(small.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def main() -> None:
    size = int(sys.argv[1])
    images_NCHW = np.zeros((1, 3, size, size), np.uint8)
    for line in sys.stdin:
        data = Path(line.rstrip("\n")).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        images_NCHW[0] = decode(data, size)
        print(digest, flush=True)


if __name__ == "__main__":
    main()
