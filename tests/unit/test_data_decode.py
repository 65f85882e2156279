"""Decoding against torchvision's transforms, in this process and in workers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from trainlib.data.decoding import decode, pool
from trainlib.data.decoding.decode import decode_image, decode_rows
from trainlib.data.decoding.pool import damaged_images, decode_files
from trainlib.errors import DataError, StoppedError, TrainlaunchError
from trainlib.runs.attempt.logs import logging_to_file


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (40, 40), (17, 16), (50, 31), (31, 50), (9, 7), (16, 200)])
def test_size_and_crop_are_those_of_torchvision(tmp_path: Path, width: int, height: int) -> None:
    image = Image.fromarray(random_pixels(height, width))
    image.save(tmp_path / "image.png")
    expected = CenterCrop(16)(Resize(16, InterpolationMode.BILINEAR)(image))
    result = decode_image(str(tmp_path / "image.png"), 16)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "ppm", "webp", "tiff", "gif"])
def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(random_pixels(16, 16)).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_image(str(path), 16), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image = Image.fromarray(random_pixels(16, 16)).convert(mode)
    image.save(path)
    np.testing.assert_array_equal(decode_image(str(path), 16), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, suffix: str) -> None:
    grey = random_pixels(16, 16, channels=1)[:, :, 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"image.{suffix}")
    np.testing.assert_array_equal(decode_image(str(tmp_path / f"image.{suffix}"), 16), np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda p: p), (2, np.fliplr), (3, lambda p: np.rot90(p, 2)), (6, lambda p: np.rot90(p, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_honoured(
    tmp_path: Path, orientation: int, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    stored = random_pixels(16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(decode_image(str(tmp_path / "image.png"), 16), turn(stored).transpose(2, 0, 1))


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
    rows = np.zeros((len(paths), 3, 16, 16), np.uint8)
    hashes, failures = decode_rows(rows, 0, paths)
    assert [path for path, _ in failures] == [*paths[1:-2], paths[-1]]
    assert all(reason for _, reason in failures)
    assert [bool(row.any()) for row in rows] == [True, *[False] * len(contents), True, False]
    assert hashes == [*(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths[:-1]), None]


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


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CHUNK_SIZE", 4)
    monkeypatch.setattr(pool, "decoding_processes", lambda: 3)


def many_images(folder: Path, count: int) -> list[str]:
    for i in range(count):
        Image.fromarray(random_pixels(20, 20, seed=i)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def empty_array(path: Path, count: int) -> Path:
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, 16, 16))
    return path


@pytest.mark.parametrize("parallel_from", [1, 1000])
def test_all_files_are_decoded_into_their_rows(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parallel_from: int
) -> None:
    monkeypatch.setattr(pool, "PARALLEL_FROM", parallel_from)
    paths = many_images(tmp_path, 30)
    odd_name = tmp_path / "nämes with\nnew lines.png"
    Path(paths[5]).rename(odd_name)
    paths[5] = str(odd_name)
    for broken in (17, 2):
        Path(paths[broken]).write_bytes(b"broken")
    array_path = empty_array(tmp_path / "images.npy", 30)
    done: list[int] = []
    hashes, failures = decode_files(paths, array_path, stop_requested=lambda: False, advance=done.append)
    assert hashes == [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    assert [path for path, _ in failures] == [paths[2], paths[17]]
    assert sum(done) == 30
    for i, (path, row) in enumerate(zip(paths, np.load(array_path), strict=True)):
        if i not in (2, 17):
            np.testing.assert_array_equal(row, decode_image(path, 16))


@pytest.mark.parametrize("parallel_from", [1, 1000])
def test_stopping_leaves_no_worker(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parallel_from: int
) -> None:
    monkeypatch.setattr(pool, "PARALLEL_FROM", parallel_from)
    paths = many_images(tmp_path, 30)
    done: list[int] = []
    array_path = empty_array(tmp_path / "images.npy", 30)
    before = psutil.Process().children()
    with pytest.raises(StoppedError, match="Run again"):
        decode_files(paths, array_path, stop_requested=lambda: bool(done), advance=done.append)
    assert 0 < sum(done) < 30
    assert psutil.Process().children() == before


@pytest.mark.parametrize("when", ["at once", "after reading"])
def test_a_worker_that_dies_is_told_with_the_images_that_it_had(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import sys\n" + ("" if when == "at once" else "sys.stdin.readline()\n") + "sys.exit(9)")
    monkeypatch.setattr(decode, "__file__", str(dying))
    monkeypatch.setattr(pool, "PARALLEL_FROM", 1)
    paths = many_images(tmp_path, 12)
    with pytest.raises(TrainlaunchError, match=r"ended with code 9 .*\.png to .*\.png"):
        decode_files(
            paths, empty_array(tmp_path / "images.npy", 12), stop_requested=lambda: False, advance=lambda count: None
        )


def test_a_worker_does_not_import_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({decode.__file__!r}); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
