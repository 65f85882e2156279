"""The cache of pictures: in shards, of which each is made once, whole, and by one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_pictures import SHARD_PICTURES, decoded, everything, folder, load, root, shard_of, shards

from trainlib.data.datasets.images import InMemoryImages, StreamedImages
from trainlib.data.storage import choice, make, store
from trainlib.errors import DataError, StoppedError

__all__ = ["decoded", "folder", "root"]

pytestmark = pytest.mark.usefixtures("folder")


def test_images_are_decoded_once(root: Path, folder: Path, decoded: list[str]) -> None:
    first, second = load(root), load(root)
    assert len(decoded) == 34
    assert len(shards(folder)) == len(shards(folder, "data")) == 6
    assert torch.equal(everything(first), everything(second))
    assert (first.mean, first.std) == (second.mean, second.std)
    np.testing.assert_allclose(first.mean, everything(first)[:24].div(255).mean(dim=(0, 2, 3)), rtol=1e-6)


def test_how_many_pictures_are_decoded_is_told(root: Path) -> None:
    told: list[tuple[int, int]] = []
    load(root, tell_decoded=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (34, 34)
    told.clear()
    load(root, tell_decoded=lambda done, total: told.append((done, total)))
    assert told == []


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
    data = max(shards(folder, "data"), key=lambda path: path.stat().st_size)
    path = data.with_name(f"{data.name[:4]}.facts") if "facts" in damage else data
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
    assert {number for path in decoded for number in shard_of(folder, Path(path))} == {data.name[:4]}
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
