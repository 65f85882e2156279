"""A walk through folders of pictures: each file is asked for once, and none is opened."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from trainlib.data.identity.stamp import Stamps, ask
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
NUM_THREADS = 8  # folders at a time where answers come late, as from a network file system, but many at once
LATE_SECONDS = 1e-4  # that a file's answer is waited for; where it comes at once, threads take half as much time again
AT_ONCE = 1_000  # files that are asked for by one call: what is said of each is large for a moment


@dataclass
class FoundFiles:
    """The picture files below a folder, sorted by name; names are relative to that folder.

    left_out   absolute paths of files that are no pictures by their names, and of links back to a folder they lie in
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
    return name[:1] == "." and name[1:2] != "_" and is_image(name)


def folders_above(folder: str) -> tuple[tuple[int, int], ...]:
    """Return device and inode of each folder that this one lies in: what a link in it must not lead back to."""
    parent = Path(os.path.abspath(folder)).parent.resolve()
    return tuple((above.st_dev, above.st_ino) for above in map(os.stat, (parent, *parent.parents)))


def _sorted_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(error) from error


def walk_folders(folders: Sequence[str]) -> list[FoundFiles]:
    """Return the pictures below each of these folders; links are followed, but not in circles."""
    walked: list[FoundFiles] = []
    waited, count = 0.0, 0
    for folder in folders:
        if waited > LATE_SECONDS * (count + 1):
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                return walked + list(pool.map(_walk, folders[len(walked) :]))
        start, used = time.monotonic(), time.thread_time()
        walked.append(_walk(folder))
        waited += time.monotonic() - start - (time.thread_time() - used)
        count += len(walked[-1].names)
    return walked


def _walk(folder: str) -> FoundFiles:
    found = FoundFiles()
    names: list[str] = []
    stamps = [np.empty((0, 4), np.int64)]
    try:
        _walk_into(folder, "", folders_above(folder), names, stamps, found)
    except OSError as error:
        raise _unreadable(error) from error
    order = sorted(range(len(names)), key=names.__getitem__)
    found.names = list(map(names.__getitem__, order))
    found.stamps = Stamps(np.concatenate(stamps)[order])
    found.left_out.sort()
    found.broken.sort()
    found.junk.sort()
    return found


def _walk_into(
    folder: str,
    prefix: str,
    ancestors: tuple[tuple[int, int], ...],
    names: list[str],
    stamps: list[np.ndarray],
    found: FoundFiles,
) -> None:
    """Add what is in the folder and below it; `prefix` comes before its names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    folders: list[str] = []
    try:
        status = os.fstat(descriptor)
        itself = (status.st_dev, status.st_ino)
        if itself in ancestors:
            found.left_out.append(folder)
            return
        every = os.listdir(descriptor)
        entries = [name for name in every if name[0] != "."]
        hidden = [name for name in every if name[0] == "."] if len(entries) < len(every) else []
        found.junk += [path for path in map(f"{folder}/".__add__, hidden) if _is_told(path)]
        for start in range(0, len(entries), AT_ONCE):
            there, rows_N5 = _ask(entries[start : start + AT_ONCE], descriptor, folder, found)
            is_folder_N = rows_N5[:, 4] & 0o170000 == stat.S_IFDIR
            is_picture_N = ~is_folder_N & [name[name.rfind(".") :].lower() in EXTENSIONS for name in there]
            _leave_out(there, is_folder_N, is_picture_N, folder, folders, found)
            names += map(prefix.__add__, compress(there, is_picture_N.tolist()))
            stamps.append(rows_N5[is_picture_N, :4])
    finally:
        os.close(descriptor)
    for name in sorted(folders):
        _walk_into(f"{folder}/{name}", f"{prefix}{name}/", (*ancestors, itself), names, stamps, found)


def _ask(entries: list[str], descriptor: int, folder: str, found: FoundFiles) -> tuple[list[str], np.ndarray]:
    """Ask for a folder's entries; return those that are there, and what `ask` says of them."""
    with suppress(OSError):  # by descriptor: a path would be followed again for each file
        return entries, ask(entries, descriptor)
    there, rows = [], [np.empty((0, 5), np.int64)]
    for name in entries:
        try:
            rows.append(ask([name], descriptor))
            there.append(name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            if is_image(name):
                found.broken.append(f"{folder}/{name}")
            elif not is_junk(name, is_folder=False):
                found.left_out.append(f"{folder}/{name}")
    return there, np.concatenate(rows)


def _is_told(path: str) -> bool:
    """Return True for a hidden folder or picture, which people should know of."""
    return is_hidden_picture(os.path.basename(path)) or os.path.isdir(path)


def _leave_out(
    entries: list[str],
    is_folder_N: np.ndarray,
    is_picture_N: np.ndarray,
    folder: str,
    folders: list[str],
    found: FoundFiles,
) -> None:
    """Note what is among a folder's entries beside pictures: folders to go into, junk, and other files."""
    for row in np.flatnonzero(~is_picture_N).tolist():
        name, is_folder = entries[row], bool(is_folder_N[row])
        is_left_out = is_junk(name, is_folder)
        if is_folder and not is_left_out:
            folders.append(name)
        elif is_folder:
            found.junk.append(f"{folder}/{name}")
        elif not is_left_out:
            found.left_out.append(f"{folder}/{name}")


def _unreadable(error: OSError) -> DataError:
    return DataError(f"data.root: a folder cannot be read: {error}. Grant yourself access, or move it.")
