"""The decoding of single pictures: of any format, mode and depth that is read, to uint8 tensors, EXIF applied.

A picture is a function of its bytes and the arguments alone. JPEG files are decoded by torchvision, whose pixels are
those of Pillow in less time, and all others by Pillow; where torchvision refuses a file, Pillow has the last word.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from trainlib.data.pictures.decoding.jpeg import dct_scale, jpeg_header

# Decoders of pictures made of pixels. Pillow has others: it gives PostScript, for one, to Ghostscript to run; and that
# of JPEG 2000 lets no other thread run until it has ended.
_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP")
for _plugin in _PLUGINS:
    with suppress(ImportError):  # some came with later versions, and some are missing in some builds
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")
with suppress(ImportError):  # an optional extra
    importlib.import_module("pillow_heif").register_heif_opener()
_NAMED = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _NAMED if name in Image.OPEN)
MAX_PIXELS = 120_000_000  # of one picture: at most 1 GB while it is decoded
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
_GREY_ALPHA = "LA;16B"
_GREY_MODES = ("1", "L", "LA", "La")

# Of odd metadata in pictures that decode well, and of what torchvision will do without one day. For good, as a filter
# that holds for a while would hold for all threads.
warnings.filterwarnings("ignore", module=r"(PIL|torchvision\.io)\.")


def decode_picture(data: bytes, *, channels: int = 3, needed: int | None = None, upper_bits: bool = False) -> Tensor:
    """Decode a file's first picture, turned by its EXIF orientation: uint8 [channels, H, W].

    channels     3: red, green, blue; 1: grey, of colours 0.299 red + 0.587 green + 0.114 blue, as Pillow rounds it
    needed       pixels that the shorter side must have at least: a JPEG much larger than that is decoded at a half, a
                 quarter or an eighth of its size (see `dct_scale`); None: whole
    upper_bits   True: of 16 bits a channel the upper 8 are kept, as in runs that began before they were scaled

    Transparency is dropped, as by Pillow's `convert("RGB")`. Values of more than 8 bits are scaled by the bits that
    they use: with a largest value of 12 bits, 4095 becomes 255.

    Raises ValueError, or what Pillow raises, for what is no whole picture, and for one with more than MAX_PIXELS.
    """
    header = jpeg_header(data)
    scale = 1
    if header is not None:
        check_pixels(header.width, header.height)
        scale = 1 if needed is None else dct_scale(header.width, header.height, needed)
        if scale == 1 and (header.components == 1 or (header.components == 3 and channels == 3)):
            orientation = _orientation(_open(data)) if header.has_metadata else 1
            # Of damaged files Pillow decodes some, and says of others why not.
            with suppress(RuntimeError, ImportError):
                return _turned(_decode_jpeg(data, channels), orientation)
    with _open(data) as image:
        check_pixels(*image.size)
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        wide_HWC = None if upper_bits else _wide_colours(image, data)
        return picture_pixels(image, channels, upper_bits=upper_bits, wide_HWC=wide_HWC)


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for a picture of too many pixels, before memory is taken for them."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width} x {height} pixels, which may be {MAX_PIXELS // 10**6} million at most: make it smaller"
        )


def picture_pixels(
    image: Image.Image, channels: int = 3, *, upper_bits: bool = False, wide_HWC: np.ndarray | None = None
) -> Tensor:
    """Convert a PIL image of any mode as `decode_picture` does: uint8 [channels, H, W].

    wide_HWC   its colours as uint16, where they have more bits than Pillow keeps

    Raises ValueError if the range of the image's values is not known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known: export it with 8 bits")
    image.load()
    orientation = _orientation(image)  # none any more where Pillow has turned the picture itself
    if wide_HWC is not None:
        image = Image.fromarray(_to_8_bits(wide_HWC, upper_bits=False))
    elif image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        values_HW = _to_8_bits(np.asarray(image), upper_bits)
        is_negative = _tiff_tag(image, 262) == 0 and not upper_bits  # 0 is white, which Pillow heeds for 8 bits alone
        image = Image.fromarray(255 - values_HW if is_negative else values_HW)
    if channels == 1:
        grey = image if image.mode in _GREY_MODES else image.convert("RGB")
        picture_CHW = torch.from_numpy(np.array(grey.convert("L")))[None]
    else:
        picture_CHW = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return _turned(picture_CHW, orientation)


def _decode_jpeg(data: bytes, channels: int) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    picture_CHW: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    return picture_CHW


def _orientation(image: Image.Image) -> object:
    """Return the orientation that a picture's metadata name, which may be no number at all; 1 where they name none."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - on damaged metadata Pillow raises almost anything, and the pixels are whole
        return 1


def _turned(picture_CHW: Tensor, orientation: object) -> Tensor:
    """Turn a picture as its EXIF orientation, 1 to 8, says; anything else leaves it as it is."""
    match orientation:
        case 2:
            return picture_CHW.flip(2)
        case 3:
            return picture_CHW.flip(1, 2)
        case 4:
            return picture_CHW.flip(1)
        case 5:
            return picture_CHW.transpose(1, 2)
        case 6:
            return picture_CHW.rot90(-1, (1, 2))
        case 7:
            return picture_CHW.flip(1, 2).transpose(1, 2)
        case 8:
            return picture_CHW.rot90(1, (1, 2))
    return picture_CHW


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in FORMATS:
            raise ValueError(
                "it is a HEIC or AVIF picture, which this installation does not read: pip install 'trainlaunch[heif]', "
                "or save it as JPEG"
            ) from error
        raise ValueError(f"no whole picture of a format that is read ({', '.join(FORMATS)})") from error


def _to_8_bits(values: np.ndarray, upper_bits: bool) -> np.ndarray:
    """Scale whole numbers by the bits that the largest one uses, at least 8, to uint8; `upper_bits`: see above."""
    if upper_bits:
        return (values.clip(0, 0xFFFF) >> 8).astype(np.uint8)
    if values.size and values.min() < 0:
        raise ValueError("some of its pixels are negative numbers, whose range is not known: export it with 8 bits")
    most = (1 << max(8, int(values.max(initial=0)).bit_length())) - 1
    scaled = values.astype(np.uint32 if most < 1 << 16 else np.uint64)  # in place: it takes twice their memory
    np.multiply(scaled, 255, out=scaled)
    np.add(scaled, most // 2, out=scaled)
    np.floor_divide(scaled, most, out=scaled)
    return scaled.astype(np.uint8)


def _wide_colours(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
    """Return the colours of a PNG or TIFF of 16 bits a channel, uint16 [H, W, 3]; None for any other picture.

    Pillow gives the upper 8 bits of each, and the lower 8 as well: for a file whose numbers have their bytes in the
    other order, it would take these for the upper ones. torchvision's decoder of PNG ends the process where a picture
    is damaged.
    """
    bits = _tiff_tag(image, 258) or ()
    if _tiff_tag(image, 284) == 2 and len(bits) > 1 and max(bits) > 8:  # of which Pillow mixes up the bytes
        raise ValueError("it has more than 8 bits, and a plane for each channel: export it with 8 bits, or as PNG")
    modes = {str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile}
    if not modes or not all(";16" in mode for mode in modes) or image.mode not in ("RGB", "RGBA", "RGBX"):
        return None
    with _open(data) as low:
        low.tile = [tile._replace(args=_other_order(tile.args)) for tile in low.tile]
        lower_HWC = np.asarray(low)[..., 1:2] if modes == {_GREY_ALPHA} else np.asarray(low)[..., :3]
    wide_HWC: np.ndarray = np.asarray(image)[..., :3].astype(np.uint16) << 8 | lower_HWC
    return wide_HWC


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """Return the value of a tag of a TIFF file, by its number; None for any other picture."""
    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    return tags.get(tag)


def _other_order(arguments: Any) -> Any:
    """Return the arguments of one of Pillow's decoders, whose first is a mode like RGB;16L, with bytes swapped.

    B is big-endian, L little-endian, N the order of this machine. The bytes of grey and alpha are taken for four
    channels, of which the second is the lower byte of grey.
    """
    if isinstance(arguments, str):
        return "RGBA" if arguments == _GREY_ALPHA else _other_order((arguments,))[0]
    mode, *others = arguments
    little = mode[-1] == "L" or (mode[-1] == "N" and sys.byteorder == "little")
    return (mode[:-1] + ("B" if little else "L"), *others)
