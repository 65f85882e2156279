"""Decoding and resizing against torchvision's transforms, and the decoding of many files by threads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding import decode_all
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from trainlib.config import DataConfig
from trainlib.data.pictures.decoding.decode_some import decode_some
from trainlib.data.pictures.decoding.failures import damaged_images
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.errors import DataError, StoppedError
from trainlib.runs.attempt.logs import logging_to_file


def reader(decode: str, size: int = 16) -> PictureReader:
    return PictureReader.of(DataConfig.model_validate({"image_size": size, "decode": decode}))


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (40, 40), (17, 16), (50, 31), (31, 50), (9, 7), (16, 200)])
@pytest.mark.parametrize("decode", ["pillow", "exact", "fast"])
def test_size_and_crop_are_those_of_torchvision(tmp_path: Path, width: int, height: int, decode: str) -> None:
    """With Pillow the bits of runs that began before there was a choice; with torch within one level of them."""
    image = Image.fromarray(random_pixels(height, width))
    image.save(tmp_path / "image.png")
    expected = np.asarray(CenterCrop(16)(Resize(16, InterpolationMode.BILINEAR)(image))).transpose(2, 0, 1)
    result = reader(decode)((tmp_path / "image.png").read_bytes()).numpy()
    assert result.dtype == np.uint8
    difference = np.abs(result.astype(int) - expected).max()
    assert difference <= (1 if decode == "fast" else 0)
    np.testing.assert_array_equal(reader(decode).of_image(image), result)


def test_decoders_differ_only_where_they_say(tmp_path: Path) -> None:
    small, large = random_pixels(40, 40), random_pixels(16 * 16, 16 * 16)
    for name, pixels in (("small", small), ("large", large)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=95)
    exact, fast = (
        {name: reader(d)((tmp_path / f"{name}.jpg").read_bytes()) for name in ("small", "large")}
        for d in ("exact", "fast")
    )
    assert (exact["small"].int() - fast["small"].int()).abs().max() <= 1
    assert (exact["large"].int() - fast["large"].int()).abs().max() > 1


def damaged_files(folder: Path) -> dict[str, bytes]:
    Image.fromarray(random_pixels(64, 64)).save(folder / "good.png")
    Image.fromarray(random_pixels(64, 64)).save(folder / "good.jpg")
    Image.fromarray(random_pixels(8, 8)[:, :, 0].astype(np.float32)).save(folder / "float.tiff")
    png, jpeg = (folder / "good.png").read_bytes(), (folder / "good.jpg").read_bytes()
    return {
        "truncated.png": png[: len(png) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header.png": png[:20],
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "zeros.png": bytes(100),
        "float.tiff": (folder / "float.tiff").read_bytes(),
    }


def test_every_kind_of_damage_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    contents = damaged_files(tmp_path)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in ["good.png", *contents, "good.jpg", "missing.png"]]
    rows, failures = decode_some(PlainFiles(paths), range(len(paths)), reader("fast"))
    assert sorted(failures) == [*range(1, len(paths) - 2), len(paths) - 1]
    assert all(failures.values())
    assert [bool(row.any()) for row in rows] == [True, *[False] * len(contents), True, False]


def test_the_error_names_all_or_the_log_does(tmp_path: Path) -> None:
    failures = [(f"image-{i}.png", "broken") for i in range(13)]
    text = str(damaged_images(failures))
    assert text.startswith("13 images cannot be decoded; delete, move or export them again:\n  image-0.png: broken\n")
    assert text.endswith("image-12.png: broken")
    with (
        pytest.raises(DataError, match=r"image-9.png: broken\n  ... and 3 more: logs/"),
        logging_to_file(tmp_path / "log"),
    ):
        raise damaged_images(failures)
    assert [f"image-{i}.png: broken" in (tmp_path / "log").read_text() for i in range(13)] == [True] * 13


def many_images(folder: Path, count: int) -> list[str]:
    for i in range(count):
        Image.fromarray(random_pixels(20, 20, seed=i)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


@pytest.mark.parametrize("chunk", [4, 7, 64])
def test_all_files_are_decoded_into_their_rows(tmp_path: Path, chunk: int) -> None:
    paths = many_images(tmp_path, 30)
    odd_name = tmp_path / "nämes with\nnew lines.png"
    Path(paths[5]).rename(odd_name)
    paths[5] = str(odd_name)
    for broken in (17, 2):
        Path(paths[broken]).write_bytes(b"broken")
    paths.append(str(tmp_path / "missing.png"))
    done: list[int] = []
    images_NCHW, hashes, failures = decode_all(PlainFiles(paths), reader("fast"), chunk=chunk, advance=done.append)
    assert hashes == [*(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths[:-1]), None]
    assert [path for path, _ in failures] == [paths[2], paths[17], paths[30]]
    assert sum(done) == 31
    for i, (path, row) in enumerate(zip(paths, images_NCHW, strict=True)):
        if i not in (2, 17, 30):
            np.testing.assert_array_equal(row, reader("fast")(Path(path).read_bytes()))


def test_stopping_ends_at_once(tmp_path: Path) -> None:
    done: list[int] = []
    files = PlainFiles(many_images(tmp_path, 30))
    with pytest.raises(StoppedError, match="Run again"):
        decode_all(files, reader("fast"), lambda: bool(done), chunk=4, advance=done.append)
    assert 0 < sum(done) < 30


def test_decoding_leaves_the_threads_of_the_model_as_they_were(tmp_path: Path) -> None:
    import threading

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        files = PlainFiles(many_images(tmp_path, 3))
        decode_some(files, [0, 1, 2], reader("fast"))
        assert torch.get_num_threads() == 3
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [3]
    finally:
        torch.set_num_threads(before)
