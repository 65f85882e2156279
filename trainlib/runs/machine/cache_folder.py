"""The cache of data sets on this machine: where it is, what is in it, and the removal of what nobody uses any more.

The pictures of a data set are in a folder of their own, with the file `about.json`, and the file `used`, which is
touched at each use. Versions before that kept two files for each data set, `<key>.npy` and `<key>.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainlib.errors import DataError
from trainlib.runs.files.locks import is_locked

ABOUT, USED = "about.json", "used"
_EARLIER = (".npy", ".json", ".lock", ".partial")  # the endings of an earlier version's files


@dataclass(frozen=True)
class CachedData:
    """What the cache holds of one data set.

    data    where the pictures lie; None where an earlier version did not say
    kept    what is kept of them, for people
    size    bytes on disk
    used    seconds since 1970 of the last use
    """

    name: str
    paths: tuple[Path, ...]
    data: str | None
    kept: str
    size: int
    used: float


def cache_folder() -> Path:
    """Return $TRAINLAUNCH_CACHE or, by the XDG base directory specification, trainlaunch in the user's cache folder."""
    if own := os.environ.get("TRAINLAUNCH_CACHE"):
        return Path(os.path.expanduser(own)).absolute()
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise DataError(
            "There is no folder for decoded images, as this user has no home directory: set the environment variable "
            "HOME, or TRAINLAUNCH_CACHE to a folder on a disk with room."
        )
    return Path(folder).absolute() / "trainlaunch"


def cached_data(folder: Path) -> list[CachedData]:
    """Return what is in the cache, least recently used first; nothing where the folder is missing."""
    entries: list[os.DirEntry[str]] = []
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    names = {Path(entry.name).stem for entry in entries if entry.name.endswith((".npy", ".json"))}
    files = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    earlier = [[file for file in files if file.stem == name and file.suffix in _EARLIER] for name in sorted(names)]
    cached = [*filter(None, map(_in_folder, folders)), *map(_of_earlier_version, earlier)]
    return sorted(cached, key=lambda one: one.used)


def remove(cached: CachedData) -> bool:
    """Remove one data set from the cache; return False, and leave it, while a process prepares it.

    A training that reads it goes on: the system keeps open files until they are closed. Raises OSError.
    """
    if any(is_locked(path) for path in _locks(cached)):
        return False
    for path in cached.paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return True


def chosen(cached: Sequence[CachedData], names: Sequence[str]) -> list[CachedData]:
    """Return the data sets of these names, of which the beginning is enough. Raises DataError for another number."""
    found: list[CachedData] = []
    for name in names:
        fitting = [one for one in cached if one.name == name] or [one for one in cached if one.name.startswith(name)]
        if len(fitting) != 1:
            there = ", ".join(one.name for one in fitting or cached) or "nothing"
            what = "is the beginning of several names" if fitting else "is not in the cache"
            raise DataError(f"{name} {what}: {there}. `launch cache list` shows the names.")
        found += fitting
    return found


def _in_folder(path: Path) -> CachedData | None:
    """Return what is in a folder of the cache; None for a folder that is something else."""
    try:
        about = json.loads((path / ABOUT).read_bytes())
        data, kept = str(about["data"]), str(about["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CachedData(path.name, (path,), data, kept, _size(_walk(path)), _used(path / USED))


def _of_earlier_version(paths: Sequence[Path]) -> CachedData:
    """Return what two files of an earlier version hold."""
    return CachedData(paths[0].stem, tuple(paths), None, "of an earlier version", _size(paths), max(map(_used, paths)))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _locks(cached: CachedData) -> Iterator[Path]:
    for path in cached.paths:
        yield from (file for file in (_walk(path) if path.is_dir() else [path]) if file.suffix == ".lock")


def _size(paths: Iterator[Path] | Sequence[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


def _used(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
