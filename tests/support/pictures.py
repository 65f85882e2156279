"""Pictures made by the tests, of kinds that Pillow itself does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def smooth_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Uint8 [H, W, C] with the structure of a photograph: colours that change slowly, and some noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    fine = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: np.ndarray = (fine + random.integers(-8, 9, fine.shape)).clip(0, 255).astype(np.uint8)[..., :channels]
    return pixels


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_16(values_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, of 1 to 4 channels."""
    height, width, channels = values_HWC.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_16(values_HWC: np.ndarray, order: str = "<", orientation: int = 1, **others: int) -> bytes:
    """An uncompressed TIFF of 16 bits a channel, of 3 or 4 channels; `order` is "<" or ">".

    others   values of tags, such as t262=0, in the place of those that they have
    """
    height, width, channels = values_HWC.shape
    pixels = values_HWC.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: -1, 259: 1, 262: 2, 273: -2, 274: orientation, 277: channels}
    tags |= {278: height, 279: len(pixels), 284: 1} | ({338: 2} if channels == 4 else {})
    tags |= {int(tag[1:]): value for tag, value in others.items()}
    bits_at = 8 + 2 + 12 * len(tags) + 4
    values = {-1: bits_at, -2: bits_at + 2 * channels}
    entries = b""
    for tag, value in sorted(tags.items()):
        is_bits = tag == 258
        count, kind = (channels, 3) if is_bits else (1, 4)
        entries += struct.pack(f"{order}HHII", tag, kind, count, values.get(value, value))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + pixels
