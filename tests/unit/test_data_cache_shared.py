"""The cache of pictures: by several processes at once, without room, and with other files than before."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from cached_pictures import decoded, everything, folder, load, root, shards
from PIL import Image

from trainlib.data import Dataset
from trainlib.data.datasets.images import StreamedImages
from trainlib.data.storage import cache, choice
from trainlib.errors import DataError, StoppedError
from trainlib.runs.machine import cache_folder
from trainlib.runs.machine.cache_folder import cached_data

__all__ = ["decoded", "folder", "root"]

pytestmark = pytest.mark.usefixtures("folder")


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
