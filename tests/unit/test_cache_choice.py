"""What `data.cache` keeps, for amounts of memory and disk and places of the files, and the line that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import tar
from cached_pictures import everything, load, root, shards

from trainlib.config import DataConfig
from trainlib.data import load_data
from trainlib.data.storage import cache
from trainlib.data.storage.choice import Choice, Room, choose

__all__ = ["root"]

GB = 10**9
ROOMY: dict[str, Any] = {"memory": 100 * GB, "disk": 100 * GB, "for_files": 100 * GB}


def kept(asked: str = "auto", *, is_fixed: bool = True, **values: Any) -> str:
    given: dict[str, Any] = {"pixels": 20 * GB, "files": 4 * GB, "folder": "/c"}
    room = Room(**(given | ROOMY | values))
    found = choose(asked, is_fixed, room)
    where = "+memory" * found.is_resident + "+trial" * found.is_trial + "+tight" * found.is_tight
    return found.kept + where


SMALL_MEMORY, SMALL_DISK = {"memory": 10 * GB}, {"disk": 30 * GB, "for_files": 30 * GB}
NFS = {"shared": "nfs4"}


@pytest.mark.parametrize(
    ("is_fixed", "room", "expected"),
    [
        (True, {}, "images+memory"),
        (True, SMALL_MEMORY, "images+trial"),
        (True, SMALL_DISK, "none"),
        (True, SMALL_DISK | NFS, "files"),
        (True, NFS, "images+memory"),
        (True, SMALL_MEMORY | NFS, "images+trial"),
        (False, {}, "pictures"),
        (False, NFS, "pictures"),
        (False, SMALL_MEMORY, "none"),
        (False, SMALL_DISK, "none"),
        (False, SMALL_MEMORY | NFS, "files"),
        (False, SMALL_DISK | NFS, "files"),
        (False, SMALL_MEMORY | NFS | {"files": 60 * GB}, "none"),
        (False, SMALL_MEMORY | NFS | {"files": 60 * GB, "for_files": 120 * GB}, "files"),  # packed before
    ],
)
def test_auto_chooses_by_room_and_place(is_fixed: bool, room: dict[str, Any], expected: str) -> None:
    assert kept(is_fixed=is_fixed, **room) == expected


@pytest.mark.parametrize("is_fixed", [True, False])
def test_what_is_named_is_obeyed_and_told_where_it_is_too_much(is_fixed: bool) -> None:
    tight = {"disk": 6 * GB, "for_files": 6 * GB}
    pixels = "images+memory" if is_fixed else "pictures"
    assert kept("pixels", is_fixed=is_fixed, **tight) == f"{pixels}+tight"
    assert kept("files", is_fixed=is_fixed, **tight) == "files+tight"
    assert kept("files", is_fixed=is_fixed) == "files"
    assert kept("none", is_fixed=is_fixed, **NFS) == "none"


def test_the_line_names_the_numbers() -> None:
    line = choose("auto", False, Room(20 * GB, 4 * GB, 10 * GB, 90 * GB, "/c", 91 * GB, "nfs4")).why
    assert line == (
        "data.cache: files (auto): decoded, the images take 20.0 GB, of 10.0 GB of available memory and 90.0 GB of "
        "disk in /c, more than half of the memory; their files, 4.0 GB on a file system that machines share (nfs4), "
        "are kept there, packed"
    )


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_files_on_a_shared_file_system_are_packed_where_their_pixels_are_too_many(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Archives are not copied; the images are the same."""
    expected = everything(load(root))
    values = {"name": "image_folder", "root": str(root), "image_size": 10}
    if source == "archive":
        values |= {"name": "archive", "root": str(tar(root, tmp_path / "images.tar"))}

    def without_room(asked: str, is_fixed: bool, room: Room) -> Choice:
        return choose(asked, is_fixed, replace(room, disk=0))

    other = tmp_path / "other"
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(other))
    monkeypatch.setattr(cache, "file_system_here", lambda path: "nfs4" if path.suffix == ".png" else "ext4")
    monkeypatch.setattr(cache, "choose", without_room)
    assert torch.equal(everything(load_data(DataConfig.model_validate(values))), expected)
    assert {path.parent.name.split("-")[1] for path in shards(other)} == ({"files"} if source == "folder" else set())
