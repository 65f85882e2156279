"""Pictures of every kind, decoded; the oracle is Pillow with the conversion that the documentation names."""

from __future__ import annotations

import io
import itertools
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from needs import missing_here
from pictures import encoded, png_16, smooth_pixels, tiff_16
from PIL import Image, ImageOps

from trainlib.data.pictures.decoding import decode
from trainlib.data.pictures.decoding.decode import FORMATS, decode_picture, picture_pixels
from trainlib.data.pictures.decoding.jpeg import dct_scale, jpeg_header


def by_pillow(data: bytes, channels: int = 3) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(rgb if channels == 3 else rgb.convert("L")).reshape(rgb.height, rgb.width, channels)


def decoded(data: bytes, **options: Any) -> np.ndarray:
    picture_CHW = decode_picture(data, **options)
    assert picture_CHW.dtype == torch.uint8
    return picture_CHW.permute(1, 2, 0).numpy()


def assert_as_pillow(data: bytes) -> None:
    for channels in (3, 1):
        np.testing.assert_array_equal(decoded(data, channels=channels), by_pillow(data, channels))


@pytest.mark.parametrize("size", [(64, 64), (63, 65), (17, 31), (1, 1), (2, 3), (125, 167), (8, 9)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_jpeg_has_the_pixels_that_pillow_gives(size: tuple[int, int], subsampling: str) -> None:
    image = Image.fromarray(smooth_pixels(*size))
    for progressive, quality in itertools.product([False, True], [30, 95]):
        data = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive, quality=quality)
        assert jpeg_header(data) == (size[1], size[0], 3, False)
        assert_as_pillow(data)
    for more in ({"restart_marker_blocks": 2}, {"keep_rgb": True}, {"comment": b"x" * 70}, {"icc_profile": b"y" * 9}):
        assert_as_pillow(encoded(image, "JPEG", **more))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_another_number_of_components(mode: str) -> None:
    assert_as_pillow(encoded(Image.fromarray(smooth_pixels(37, 50)).convert(mode), "JPEG"))


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"],
    "GIF": ["L", "P"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB"],
    "AVIF": ["L", "RGB", "RGBA"],
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_every_mode_of_every_format(form: str, mode: str) -> None:
    if form not in FORMATS:
        missing_here(f"needs a Pillow that reads {form}")
    image = Image.fromarray(smooth_pixels(24, 30))
    image = image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(smooth_pixels(24, 30, 1, seed=1)[..., 0]))
    data = encoded(image, form)
    assert_as_pillow(data)


def test_a_transparent_colour_of_a_palette_is_dropped() -> None:
    image = Image.fromarray(smooth_pixels(24, 30)).quantize(16)
    assert_as_pillow(encoded(image, "PNG", transparency=3))
    assert_as_pillow(encoded(image, "GIF", transparency=3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(smooth_pixels(24, 40))
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(image, form, exif=exif, **options)
    assert decoded(data).shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert_as_pillow(data)
    if form != "JPEG":
        np.testing.assert_array_equal(picture_pixels(Image.open(io.BytesIO(data))), decode_picture(data))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_as_pillow(encoded(Image.fromarray(smooth_pixels(24, 40)), "JPEG", exif=exif))


def with_exif(data: bytes, kind: int, value: bytes, place: int = 2) -> bytes:
    """Return a JPEG whose EXIF gives one value of this TIFF type as the orientation."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4sI", 0x112, kind, 1, value, 0)
    return data[:place] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[place:]


@pytest.mark.parametrize(
    ("kind", "value"), [(1, b"\6"), (7, b"\6"), (2, b"6"), (2, b""), (5, b"\x1a"), (11, struct.pack("<f", np.nan))]
)
def test_an_orientation_that_is_no_number_turns_nothing(kind: int, value: bytes) -> None:
    data = encoded(Image.fromarray(smooth_pixels(24, 40)), "JPEG")
    np.testing.assert_array_equal(decoded(with_exif(data, kind, value)), decoded(data))


@pytest.mark.parametrize("exif", [b"Exif\0\0no EXIF", b"Exif\0\0MM\0*", bytes(30)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_turns_nothing(form: str, exif: bytes) -> None:
    image = Image.fromarray(smooth_pixels(24, 40))
    np.testing.assert_array_equal(decoded(encoded(image, form, exif=exif)), decoded(encoded(image, form)))


def test_exif_that_follows_the_frame_turns_the_picture() -> None:
    data = encoded(Image.fromarray(smooth_pixels(24, 40)), "JPEG")
    behind = data.index(b"\xff\xda")  # all headers: the scan begins
    turned = with_exif(data, 3, b"\6", behind)
    assert decoded(turned).shape == (40, 24, 3)
    assert_as_pillow(turned)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_picture_is_taken(form: str) -> None:
    if form not in FORMATS:
        missing_here(f"needs a Pillow that reads {form}")
    first, second = (Image.fromarray(smooth_pixels(24, 30, seed=seed)) for seed in (1, 2))
    assert_as_pillow(encoded(first, form, save_all=True, append_images=[second]))


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("kind", ["grey png", "grey tiff", "grey pgm", "LA png", "png", "RGBA png", "tiff", "RGBA big"])
def test_more_than_8_bits_are_scaled_by_the_bits_in_use(kind: str, bits: int) -> None:
    most = (1 << bits) - 1
    channels = {"LA": 2, "png": 3, "tiff": 3, "RGBA": 4}.get(kind.split()[0], 1)
    values = np.random.default_rng(bits).integers(0, most + 1, (11, 13, channels)).astype(np.uint16)
    values[0, 0] = most
    if kind in ("grey tiff", "grey pgm"):
        data = encoded(Image.fromarray(values[..., 0]), "TIFF" if kind == "grey tiff" else "PPM")
    elif kind in ("tiff", "RGBA big"):
        data = tiff_16(values, ">" if kind == "RGBA big" else "<")
    else:
        data = png_16(values)
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    expected = np.round(colours.astype(np.float64) * 255 / most).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data), expected)
    if channels < 3:
        np.testing.assert_array_equal(decoded(data, channels=1), expected[..., :1])
    np.testing.assert_array_equal(decoded(data, upper_bits=True), colours >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_of_16_bits(orientation: int) -> None:
    pixels = smooth_pixels(5, 7)
    data = tiff_16(pixels.astype(np.uint16) * 257, orientation=orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = by_pillow(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded(data), turned)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_damaged_png_of_16_bits_ends_no_process(channels: int) -> None:
    data = png_16(np.random.default_rng(0).integers(0, 1 << 16, (9, 11, channels)).astype(np.uint16))
    for cut in (len(data) // 2, data.index(b"IDAT") + 40):
        with pytest.raises((OSError, ValueError)):
            decode_picture(data[:cut])
        with pytest.raises((OSError, ValueError)):
            decode_picture(data[:cut] + bytes(8) + data[cut + 8 :])


def test_a_tiff_of_16_bits_in_which_0_is_white() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 7)).astype(np.uint16)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    expected = 255 - np.round(values * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data, channels=1)[..., 0], expected)


def test_a_tiff_of_16_bits_with_planes_is_refused() -> None:
    with pytest.raises(ValueError, match="a plane for each channel"):
        decode_picture(tiff_16(np.zeros((4, 4, 3)), t284=2))


def test_a_black_picture_of_16_bits_stays_black() -> None:
    assert not decoded(png_16(np.zeros((4, 4, 1), np.uint16))).any()


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -3, np.int32)])
def test_values_of_an_unknown_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="whose range is not known"):
        decode_picture(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("width", "height", "needed", "scale"),
    [
        (500, 375, 224, 1),
        (672, 900, 224, 2),
        (671, 900, 224, 1),
        (4000, 3000, 224, 8),
        (4000, 2687, 224, 4),
        (9000, 9000, 32, 8),
        (3, 3, 1, 2),
    ],
)
def test_a_scale_leaves_half_as_much_again_as_is_needed(width: int, height: int, needed: int, scale: int) -> None:
    assert dct_scale(width, height, needed) == scale
    assert dct_scale(height, width, needed) == scale


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(512, 640), (509, 701)])
def test_a_much_larger_jpeg_is_decoded_smaller_and_is_almost_the_same(size: tuple[int, int], scale: int) -> None:
    """Measured against the exact picture at the size that is needed, where a model sees it."""
    pixels = np.asarray(Image.fromarray(smooth_pixels(64, 80)).resize(size[::-1], Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (encoded(Image.fromarray(pixels), "JPEG"), encoded(Image.fromarray(pixels), "JPEG", exif=exif)):
        whole, needed = by_pillow(data), int(min(size) / (1.5 * scale))
        found = decoded(data, needed=needed)
        assert found.shape == (-(-whole.shape[0] // scale), -(-whole.shape[1] // scale), 3)
        np.testing.assert_array_equal(decoded(data, needed=min(size)), whole)
        target = (needed * whole.shape[1] // whole.shape[0], needed)
        both = [np.asarray(Image.fromarray(p).resize(target, Image.Resampling.BILINEAR)) for p in (whole, found)]
        difference = np.abs(both[0].astype(int) - both[1])
        assert difference.mean() < (1.5 if min(size) % 8 == 0 else 4)  # else the last block is part of the picture
        grey = decoded(data, needed=needed, channels=1)
        np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(found).convert("L")))


def test_of_a_damaged_jpeg_pillow_has_the_last_word() -> None:
    choice = random.Random(0)
    for number in range(60):
        data = bytearray(encoded(Image.fromarray(smooth_pixels(40, 56)), "JPEG", progressive=bool(number % 2)))
        if number % 3:
            data[choice.randrange(2, len(data))] = choice.randrange(256)
        else:
            del data[choice.randrange(len(data)) :]
        try:
            expected = by_pillow(bytes(data))
        except Exception:  # noqa: BLE001 - on damaged files Pillow raises almost anything
            with pytest.raises(Exception):  # noqa: B017, PT011
                decode_picture(bytes(data))
        else:
            np.testing.assert_array_equal(decoded(bytes(data)), expected)


def test_without_torchvisions_decoder_pillow_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(smooth_pixels(40, 56)), "JPEG")
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(pytest.fail.Exception):
        decode_picture(data)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert_as_pillow(data)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 99)
    for form in ("JPEG", "PNG"):
        with pytest.raises(ValueError, match="it has 10 x 10 pixels"):
            decode_picture(encoded(Image.new("RGB", (10, 10)), form))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_names_the_extra_that_reads_it(brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "FORMATS", tuple(form for form in FORMATS if form not in ("HEIF", "AVIF")))
    with pytest.raises(ValueError, match=r"pip install 'trainlaunch\[heif\]'"):
        decode_picture(b"\0\0\0\x18ftyp" + brand + bytes(100))


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(smooth_pixels(64, 80))).save(file, quality=95)
    found = decoded(file.getvalue())
    assert np.abs(found.astype(int) - smooth_pixels(64, 80)).mean() < 8
    np.testing.assert_array_equal(found, by_pillow(file.getvalue()))


def test_every_format_that_is_read_is_one_that_pillow_knows() -> None:
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"} <= set(FORMATS) <= set(Image.OPEN)
    assert "EPS" not in FORMATS
