"""The cache of decoded images: decoded once, by one process, and never half."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.images import InMemoryImages, StreamedImages
from trainlib.data.pictures import decode_files
from trainlib.data.pictures.files import PictureFiles
from trainlib.data.storage import cache
from trainlib.data.storage.cache import cache_folder
from trainlib.errors import DataError, StoppedError


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name in ("cat", "dog"):
            class_folder = tmp_path / "images" / split / name
            class_folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (10, 14, 3), np.uint8)
                Image.fromarray(pixels).save(class_folder / f"{i:02}.png")
    return tmp_path / "images"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each decoding had."""
    counts: list[int] = []
    real = decode_files.decode_files

    def counting(files: PictureFiles, *args: Any, **kwargs: Any) -> object:
        counts.append(len(files))
        return real(files, *args, **kwargs)

    monkeypatch.setattr(cache, "decode_files", counting)
    return counts


def load(root: Path, **kwargs: object) -> Dataset:
    return load_data(DataConfig(name="image_folder", root=str(root), image_size=10), **kwargs)  # type: ignore[arg-type]


def everything(dataset: Dataset) -> torch.Tensor:
    splits = (dataset.train.images, dataset.test.images)
    return torch.cat([next(images.batches([torch.arange(len(images))])) for images in splits])


def names(folder: Path) -> list[str]:
    """Endings of the cache's files, without the lock files that stay for the next process."""
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def test_images_are_decoded_once(root: Path, folder: Path, decodings: list[int]) -> None:
    first, second = load(root), load(root)
    assert decodings == [34]
    assert torch.equal(everything(first), everything(second))
    assert (first.mean, first.std) == (second.mean, second.std)
    np.testing.assert_allclose(first.mean, everything(first)[:24].div(255).mean(dim=(0, 2, 3)), rtol=1e-6)
    assert names(folder) == [".json", ".npy"]


def test_writing_to_the_images_does_not_reach_the_file(root: Path) -> None:
    first = load(root)
    before = everything(first)
    assert isinstance(first.train.images, InMemoryImages)
    first.train.images.images_NCHW.zero_()
    assert torch.equal(everything(load(root)), before)


@pytest.mark.parametrize("change", ["added", "size", "moved"])
def test_a_change_is_decoded_anew(root: Path, decodings: list[int], change: str) -> None:
    load(root)
    image, size = root / "train" / "cat" / "03.png", 10
    if change == "added":
        (root / "test" / "dog" / "99.png").write_bytes(image.read_bytes())
    elif change == "size":
        size = 12
    else:
        root = root.rename(root.with_name("elsewhere"))
    load_data(DataConfig(name="image_folder", root=str(root), image_size=size))
    assert len(decodings) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "no statistics", "bad statistics"])
def test_a_damaged_entry_is_made_anew(root: Path, folder: Path, damage: str) -> None:
    expected = load(root)
    before = everything(expected)
    [array], [statistics] = folder.glob("*.npy"), folder.glob("*.json")
    if damage == "truncated":
        array.write_bytes(array.read_bytes()[:500])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "no statistics":
        statistics.unlink()
    else:
        statistics.write_text("{")
    again = load(root)
    assert torch.equal(everything(again), before)
    assert again.mean == expected.mean


def test_what_a_crash_left_is_replaced(root: Path, folder: Path) -> None:
    load(root)
    [array] = folder.glob("*.npy")
    array.rename(array.with_suffix(".partial"))
    load(root)
    assert names(folder) == [".json", ".npy"]


def test_all_damaged_images_are_named_and_nothing_is_kept(root: Path, folder: Path) -> None:
    damaged = [root / "train" / "cat" / "05.png", root / "train" / "dog" / "01.png", root / "test" / "dog" / "04.png"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="3 images cannot be decoded") as caught:
        load(root)
    assert all(str(path) in str(caught.value) for path in damaged)
    assert names(folder) == []


def test_stopping_leaves_nothing(root: Path, folder: Path) -> None:
    with pytest.raises(StoppedError):
        load(root, stop_requested=lambda: True)
    assert names(folder) == []


def test_of_several_at_once_one_decodes(root: Path, decodings: list[int]) -> None:
    results: list[Dataset] = []
    threads = [
        threading.Thread(target=lambda rank=rank: results.append(load(root, is_main=rank == 0))) for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decodings == [34]
    assert len(results) == 3
    assert all(torch.equal(everything(result), everything(results[0])) for result in results)


def test_waiting_for_another_process_ends_when_asked_to_stop(root: Path, folder: Path) -> None:
    import fcntl

    load(root)
    [array] = folder.glob("*.npy")
    array.unlink()
    with array.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoppedError, match="another process"):
            load(root, stop_requested=lambda: True)


def test_what_does_not_fit_is_streamed_with_the_same_results(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resident = load(root)
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(cache, "MAX_FRACTION", 0.0)
    with caplog.at_level("INFO", logger="trainlib.data"):
        streamed = load(root)
    assert isinstance(streamed.train.images, StreamedImages)
    assert [r.getMessage() for r in caplog.records if "decoded anew for each batch" in r.getMessage()]
    assert torch.equal(everything(streamed), everything(resident))
    assert (streamed.mean, streamed.std) == (resident.mean, resident.std)
    assert names(folder) == [".json"]


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot be written.*TRAINLAUNCH_CACHE"):
        load(root)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TRAINLAUNCH_CACHE": "/own"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/trainlaunch"),
        ({}, "/home/me/.cache/trainlaunch"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name in ("TRAINLAUNCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_file_that_was_only_touched_is_read_but_not_decoded_again(
    root: Path, decodings: list[int], verify: str
) -> None:
    load(root)
    os.utime(root / "train/cat/03.png", ns=(0, 1))
    config = DataConfig(name="image_folder", root=str(root), image_size=10, verify=verify)  # type: ignore[arg-type]
    load_data(config)
    load_data(config)
    assert len(decodings) == 1


@pytest.mark.parametrize("way", ["copied over", "renamed over", "edited in place"])
def test_other_bytes_of_the_same_size_and_time_are_decoded_again(root: Path, decodings: list[int], way: str) -> None:
    """As `rsync --times`, `cp --preserve` and archives leave them."""
    for image in root.rglob("*.png"):
        Image.open(image).save(image.with_suffix(".bmp"))
        image.unlink()
        os.utime(image.with_suffix(".bmp"), ns=(10**18, 10**18))
    before = everything(load(root))
    image, other = root / "train/cat/03.bmp", root / "train/dog/03.bmp"
    content = other.read_bytes()
    if way == "renamed over":
        (root / "new").write_bytes(content)
        (root / "new").rename(image)
    elif way == "copied over":
        shutil.copy2(other, image)
    else:
        with image.open("r+b") as file:
            file.write(content)
    os.utime(image, ns=(10**18, 10**18))
    after = everything(load(root))
    assert len(decodings) == 2
    assert torch.equal(after[3], after[15])  # the cat's pixels are the dog's now
    assert not torch.equal(after[3], before[3])


@pytest.mark.parametrize("damage", ["a pixel", "a block", "facts"])
def test_a_damaged_entry_is_told_and_decoded_again(
    root: Path, folder: Path, decodings: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(load(root))
    (array_path,), (facts_path,) = folder.glob("*.npy"), folder.glob("*.json")
    content = bytearray((facts_path if damage == "facts" else array_path).read_bytes())
    start, end = {"a pixel": (5000, 5001), "a block": (200, 9000), "facts": (0, 20)}[damage]
    content[start:end] = bytes(byte ^ 0x80 for byte in content[start:end])
    (facts_path if damage == "facts" else array_path).write_bytes(content)
    assert torch.equal(everything(load(root)), before)
    assert len(decodings) == 2
    assert ("is damaged" in caplog.text) == (damage != "facts")
