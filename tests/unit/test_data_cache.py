"""The cache of pictures: in shards, of which each is made once, whole, and by one process."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.images import InMemoryImages, StreamedImages
from trainlib.data.storage import cache, choice, make, store
from trainlib.errors import DataError, StoppedError
from trainlib.runs.machine import cache_folder
from trainlib.runs.machine.cache_folder import cached_data

SHARD_PICTURES = 6  # so that the 34 pictures make up six shards


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(store, "SHARD_PICTURES", SHARD_PICTURES)
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
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the pictures lie that were decoded into the cache."""
    places: list[str] = []
    real = make._RecordJob.keep

    def noting(self: make._RecordJob, row: int, data: bytes) -> None:
        places.append(self.files.describe(self.indices[row]))
        real(self, row, data)

    monkeypatch.setattr(make._RecordJob, "keep", noting)
    return places


def load(root: Path, size: int = 10, verify: str = "quick", kept: str = "auto", **kwargs: object) -> Dataset:
    config = DataConfig.model_validate(
        {"name": "image_folder", "root": str(root), "image_size": size, "verify": verify, "cache": kept}
    )
    return load_data(config, **kwargs)  # type: ignore[arg-type]


def everything(dataset: Dataset) -> torch.Tensor:
    splits = (dataset.train.images, dataset.test.images)
    return torch.cat([next(images.batches([torch.arange(len(images))])) for images in splits])


def shards(folder: Path, ending: str = "facts") -> list[Path]:
    return sorted(folder.glob(f"*/[0-9]*.{ending}"))


def shard_of(folder: Path, picture: Path) -> list[str]:
    """The numbers of the shards in whose place a picture is."""
    import zlib

    return [f"{zlib.crc32(str(picture).encode()) % len(shards(folder)):04}"]


def test_images_are_decoded_once(root: Path, folder: Path, decoded: list[str]) -> None:
    first, second = load(root), load(root)
    assert len(decoded) == 34
    assert len(shards(folder)) == len(shards(folder, "data")) == 6
    assert torch.equal(everything(first), everything(second))
    assert (first.mean, first.std) == (second.mean, second.std)
    np.testing.assert_allclose(first.mean, everything(first)[:24].div(255).mean(dim=(0, 2, 3)), rtol=1e-6)


def test_writing_to_the_images_does_not_reach_the_file(root: Path) -> None:
    first = load(root)
    before = everything(first)
    assert isinstance(first.train.images, InMemoryImages)
    first.train.images.images_NCHW.zero_()
    assert torch.equal(everything(load(root)), before)


@pytest.mark.parametrize("change", ["added", "removed", "other size", "same size", "renamed"])
def test_a_change_of_a_file_decodes_the_shards_where_it_was_and_is(
    root: Path, folder: Path, decoded: list[str], change: str
) -> None:
    load(root)
    image = root / "train" / "cat" / "03.png"
    changed = [image]
    if change == "added":
        changed = [root / "test" / "dog" / "99.png"]
        shutil.copy(image, changed[0])
    elif change == "removed":
        image.unlink()
    elif change == "renamed":
        changed.append(image.rename(image.with_name("99.png")))
    else:
        content = image.read_bytes()
        content = content + b"more" if change == "other size" else content[:-12] + bytes(12)
        image.write_bytes(content)
    expected = {number for path in changed for number in shard_of(folder, path)}
    decoded.clear()
    after = load(root)
    assert {number for path in decoded for number in shard_of(folder, Path(path))} == expected
    assert len(decoded) < 20
    assert torch.equal(everything(after), everything(load(root, kept="none")))


@pytest.mark.parametrize("change", ["size", "moved"])
def test_other_pixels_and_another_place_are_another_data_set(root: Path, decoded: list[str], change: str) -> None:
    load(root)
    load(root.rename(root.with_name("elsewhere")) if change == "moved" else root, 10 if change == "moved" else 12)
    assert len(decoded) == 2 * 34


def test_as_many_shards_while_a_data_set_grows_a_little(root: Path, folder: Path, decoded: list[str]) -> None:
    load(root)
    for number in range(50, 60):
        shutil.copy(root / "train/cat/03.png", root / f"train/cat/{number}.png")
    load(root)
    assert len(shards(folder)) == 6
    for number in range(60, 110):
        shutil.copy(root / "train/cat/03.png", root / f"train/cat/{number}.png")
    load(root)
    assert len(shards(folder)) == 16


DAMAGES = ["cut", "empty", "a pixel", "a block", "facts", "no facts", "no data"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_told_and_decoded_again(
    root: Path, folder: Path, decoded: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = load(root)
    path = shards(folder, "facts" if "facts" in damage else "data")[2]
    content = bytearray(path.read_bytes())
    if damage.startswith("no "):
        path.unlink()
    elif damage in ("cut", "empty"):
        path.write_bytes(content[: 500 if damage == "cut" else 0])
    else:
        start, end = {"a pixel": (700, 701), "a block": (200, 900), "facts": (100, 140)}[damage]
        content[start:end] = bytes(byte ^ 0x80 for byte in content[start:end])
        path.write_bytes(content)
    decoded.clear()
    after = load(root)
    assert torch.equal(everything(after), everything(before))
    assert after.mean == before.mean
    assert {number for path in decoded for number in shard_of(folder, Path(path))} == {shards(folder)[2].stem}
    assert ("is damaged" in caplog.text) == (not damage.startswith("no "))


@pytest.mark.parametrize("kept", ["pixels", "files"])
def test_damage_that_turns_up_while_images_are_read_is_told_and_made_good(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(load(root, kept="none"))
    monkeypatch.setattr(choice, "MAX_FRACTION", 1e-9)
    dataset = load(root, kept=kept)
    assert isinstance(dataset.train.images, StreamedImages)
    for path in shards(folder, "data")[:2]:
        content = bytearray(path.read_bytes())
        content[30] ^= 1
        path.write_bytes(content)
    assert torch.equal(everything(dataset), before)
    assert caplog.text.count("is damaged") == 2
    assert len(shards(folder)) == 4  # those two are made at the next start
    assert torch.equal(everything(load(root, kept=kept)), before)
    assert len(shards(folder)) == 6


def test_what_a_crash_left_is_removed(root: Path, folder: Path) -> None:
    load(root)
    path = shards(folder, "data")[1]
    number = path.name[:4]
    (folder / path.parent.name / f"{number}.facts").unlink()
    shutil.copy(path, path.with_name(f".{number}-0123456789abcdef.data.tmp"))
    load(root)
    assert len(list(path.parent.glob(f"*{number}*.data*"))) == 1


def test_all_damaged_images_are_named_and_the_other_shards_are_kept(
    root: Path, folder: Path, decoded: list[str]
) -> None:
    damaged = [root / "train" / "cat" / "05.png", root / "train" / "dog" / "01.png", root / "test" / "dog" / "04.png"]
    whole = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="3 images cannot be decoded") as caught:
        load(root)
    assert all(str(path) in str(caught.value) for path in damaged)
    done = len(shards(folder))
    assert 3 <= done < 6
    decoded.clear()
    for path, content in zip(damaged, whole, strict=True):
        path.write_bytes(content)
    load(root)
    assert len(decoded) < 34


def stopping_after(shards: int) -> Callable[..., Iterator[tuple[bytes, str]]]:
    """Make records as `make_records` does, of so many shards; then raise StoppedError in the middle of the next."""
    begun: list[int] = []

    def make_some(*args: Any) -> Iterator[tuple[bytes, str]]:
        begun.append(1)
        for record in make.make_records(*args):
            yield record
            if len(begun) > shards:
                raise StoppedError("asked to")

    return make_some


def test_stopping_leaves_whole_shards(
    root: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedError):
        load(root, stop_requested=lambda: True)
    monkeypatch.setattr(store, "make_records", stopping_after(3))
    with pytest.raises(StoppedError):
        load(root)
    assert len(shards(folder)) == len(shards(folder, "data")) == 3
    monkeypatch.undo()
    monkeypatch.setattr(store, "SHARD_PICTURES", SHARD_PICTURES)
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(folder))
    before = {path: path.stat().st_mtime_ns for path in shards(folder)}
    load(root)
    assert len(shards(folder)) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_several_at_once_share_the_decoding(root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "world_size", lambda: 3)
    results: list[Dataset] = []
    threads = [
        threading.Thread(target=lambda rank=rank: results.append(load(root, is_main=rank == 0))) for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 34
    assert len(results) == 3
    assert all(torch.equal(everything(result), everything(results[0])) for result in results)


def test_waiting_for_another_process_ends_when_asked_to_stop(root: Path, folder: Path) -> None:
    load(root)
    shards(folder)[0].unlink()
    with shards(folder, "lock")[0].open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoppedError, match="another process"):
            load(root, stop_requested=lambda: True)


def test_what_does_not_fit_is_streamed_with_the_same_results(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resident = load(root)
    shutil.rmtree(folder)
    monkeypatch.setattr(choice, "MAX_FRACTION", 0.0)
    with caplog.at_level("INFO", logger="trainlib.data"):
        streamed = load(root)
    assert isinstance(streamed.train.images, StreamedImages)
    assert [r.getMessage() for r in caplog.records if "decoded anew for each batch" in r.getMessage()]
    assert torch.equal(everything(streamed), everything(resident))
    assert (streamed.mean, streamed.std) == (resident.mean, resident.std)
    assert shards(folder) == []


@pytest.mark.parametrize("kept", ["auto", "pixels"])
def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(load(root, kept="none"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "file" / "cache"))
    if kept == "auto":
        assert torch.equal(everything(load(root)), before)
        assert "cannot be written" in caplog.text
        assert "TRAINLAUNCH_CACHE" in caplog.text
    else:
        with pytest.raises(DataError, match=r"cannot be written.*TRAINLAUNCH_CACHE"):
            load(root, kept=kept)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("kept", ["auto", "pixels", "files"])
def test_on_a_full_disk_images_are_streamed_and_the_room_is_given_back(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(load(root, kept="none"))
    writes: list[int] = []
    real = os.fsync

    def full(descriptor: int) -> None:
        writes.append(descriptor)
        if len(writes) > 6:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert torch.equal(everything(load(root, kept=kept)), before)
    assert os.strerror(code) in caplog.text
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert shards(folder, "data") == []
    assert list(folder.rglob("*.tmp")) == []


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
    assert cache_folder.cache_folder() == Path(expected)


@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_file_that_was_only_touched_is_read_but_not_decoded_again(
    root: Path, decoded: list[str], verify: str
) -> None:
    load(root)
    os.utime(root / "train/cat/03.png", ns=(0, 1))
    load(root, verify=verify)
    load(root, verify=verify)
    assert len(decoded) == 34


@pytest.mark.parametrize("way", ["copied over", "renamed over", "edited in place"])
def test_other_bytes_of_the_same_size_and_time_are_decoded_again(root: Path, decoded: list[str], way: str) -> None:
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
    assert 34 < len(decoded) < 2 * 34
    assert torch.equal(after[3], after[15])  # the cat's pixels are the dog's now
    assert not torch.equal(after[3], before[3])


def test_the_cache_that_can_only_be_read_is_used(root: Path, folder: Path, decoded: list[str]) -> None:
    before = everything(load(root))
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (data,) = cached_data(folder)
    assert data.data == str(root)
    assert torch.equal(everything(load(root)), before)
    assert len(decoded) == 34
