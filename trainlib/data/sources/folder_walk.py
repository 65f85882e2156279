"""A walk through folders of pictures: each file is asked for once, by several threads, and nothing is opened."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from trainlib.data.identity.stamp import Stamps, stamp_values
from trainlib.errors import DataError

EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
    }
    | {".webp"}
)
# What file managers, archives and network drives leave behind, in lower case; hidden ones are left out too.
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
    | {"@recycle", "__pycache__"}
)
NUM_THREADS = 8  # folders at a time: a network file system answers each question late, but many at once


@dataclass
class FoundFiles:
    """The picture files below a folder, sorted by name; names are relative to that folder.

    left_out   absolute paths of files that are no pictures by their names
    broken     absolute paths of links whose target is missing
    junk       absolute paths of hidden folders and pictures, and of folders that file managers, archives and network
               drives have made
    """

    names: list[str] = field(default_factory=list)
    stamps: Stamps = field(default_factory=lambda: Stamps.of([]))
    left_out: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    junk: list[str] = field(default_factory=list)


def is_image(name: str) -> bool:
    """Return True for the name of a picture, by its ending."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_junk(name: str, is_folder: bool) -> bool:
    """Return True for what is hidden, and for what file managers, archives and network drives leave behind."""
    lower = name.lower()
    return lower.startswith(".") or lower in SYSTEM_FILES or (is_folder and lower in SYSTEM_FOLDERS)


def visible(folder: str) -> list[os.DirEntry[str]]:
    """Return a folder's entries by name, without junk. Raises DataError where it cannot be read."""
    return [entry for entry in _sorted_entries(folder) if not is_junk(entry.name, entry.is_dir())]


def named_junk(folder: str) -> list[str]:
    """Return the paths of the folders and pictures that `visible` leaves out."""
    entries = _sorted_entries(folder)
    return [e.path for e in entries if is_junk(e.name, e.is_dir()) and (e.is_dir() or is_hidden_picture(e.name))]


def is_hidden_picture(name: str) -> bool:
    """Return True for the name of a hidden picture; what macOS keeps beside a file, `._name`, is none."""
    return name[0] == "." and name[1:2] != "_" and is_image(name)


def _sorted_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(error) from error


def walk_folders(folders: Sequence[str]) -> list[FoundFiles]:
    """Return the pictures below each of these folders; links are followed, but not in circles."""
    if len(folders) < 2:
        return [_walk(folder) for folder in folders]
    with ThreadPoolExecutor(min(NUM_THREADS, len(folders))) as pool:
        return list(pool.map(_walk, folders))


def _walk(folder: str) -> FoundFiles:
    found = FoundFiles()
    names: list[str] = []
    stamps = array("q")  # four numbers for each name: a flat array, as millions of tuples would take gigabytes
    try:
        _walk_into(folder, "", (), names, stamps, found)
    except OSError as error:
        raise _unreadable(error) from error
    order = sorted(range(len(names)), key=names.__getitem__)
    found.names = [names[i] for i in order]
    rows_N4 = np.frombuffer(stamps, np.int64).reshape(-1, 4) if names else np.empty((0, 4), np.int64)
    found.stamps = Stamps(rows_N4[order])
    found.left_out.sort()
    found.broken.sort()
    found.junk.sort()
    return found


def _walk_into(
    folder: str,
    prefix: str,
    ancestors: tuple[tuple[int, int], ...],
    names: list[str],
    stamps: array[int],
    found: FoundFiles,
) -> None:
    """Add what is in the folder and below it; `prefix` comes before its names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        itself = (status.st_dev, status.st_ino)
        if itself in ancestors:
            return
        with os.scandir(descriptor) as entries:  # by descriptor: a path would be followed again for each file
            folders = _add_files(entries, folder, prefix, names, stamps, found)
    finally:
        os.close(descriptor)
    for name in sorted(folders):
        _walk_into(f"{folder}/{name}", f"{prefix}{name}/", (*ancestors, itself), names, stamps, found)


def _add_files(
    entries: Iterable[os.DirEntry[str]],
    folder: str,
    prefix: str,
    names: list[str],
    stamps: array[int],
    found: FoundFiles,
) -> list[str]:
    """Add the files among a folder's entries; return the names of the folders. A file takes a few microseconds."""
    folders = []
    for entry in entries:
        name = entry.name
        try:
            if name[0] == ".":
                if is_hidden_picture(name) or entry.is_dir():
                    found.junk.append(f"{folder}/{name}")
            elif entry.is_dir():
                if is_junk(name, is_folder=True):
                    found.junk.append(f"{folder}/{name}")
                else:
                    folders.append(name)
            elif name[name.rfind(".") :].lower() in EXTENSIONS:
                stamps.extend(stamp_values(entry.stat()))
                names.append(prefix + name)
            elif not is_junk(name, is_folder=False):
                found.left_out.append(f"{folder}/{name}")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            found.broken.append(f"{folder}/{name}")
    return folders


def _unreadable(error: OSError) -> DataError:
    return DataError(f"data.root: a folder cannot be read: {error}. Grant yourself access, or move it.")
