"""What a JPEG file says of itself before its pixels: size and colours, without a decoder."""

from __future__ import annotations

from typing import NamedTuple

_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive: what libjpeg decodes to 8 bits
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_APP1 = 0xE1  # EXIF or XMP, of which either may say how the picture is turned; it may follow the frame's header
_SCAN = 0xDA  # of pixels, before which all headers are


class JpegHeader(NamedTuple):
    """Size in pixels as stored, number of components (1 grey, 3 colours, 4 CMYK), and if there is EXIF or XMP."""

    width: int
    height: int
    components: int
    has_metadata: bool


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of a JPEG file of 8 bits; None for anything else, and where it is damaged."""
    if data[:2] != b"\xff\xd8":
        return None
    place, frame, has_metadata = 2, b"", False
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _SCAN:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in _WITHOUT_LENGTH:
            return None
        if marker in _FRAMES and not frame:
            frame = data[place + 4 : place + 10]
        has_metadata = has_metadata or marker == _APP1
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if len(frame) < 6 or frame[0] != 8:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return JpegHeader(width, height, frame[5], has_metadata) if height and width else None


def dct_scale(width: int, height: int, needed: int) -> int:
    """Return by how much a JPEG may be scaled down while it is decoded: 8, 4, 2 or 1.

    The largest that leaves the shorter side at least 1.5 times as many pixels as are `needed`, so that resizing has
    something to average.
    """
    return next((scale for scale in (8, 4, 2) if 2 * min(width, height) >= 3 * scale * needed), 1)
