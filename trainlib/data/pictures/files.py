"""The encoded pictures of a data set, read by index: files of a folder here, members of archives elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import IO, Protocol

import numpy as np

MAX_BYTES = 1 << 29  # of one file


class PictureFiles(Protocol):
    """The bytes of a data set's pictures as they are stored, by index; any number of threads may read at a time."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture. Raises OSError or ValueError where it is missing, damaged or far too large."""
        ...

    def describe(self, index: int) -> str:
        """Return where a picture lies, for people: a path, or an archive and the member in it."""
        ...


class PlainFiles:
    """Pictures that are files of their own, as `read_picture` reads them: regular ones up to a limit of size."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Return a file's bytes. Raises OSError for what is no regular file, ValueError for one far too large."""
        return read_picture(self.paths[index])

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return self.paths[index]


class SomeFiles:
    """Some of a data set's pictures: picture i is number `indices[i]` of `files`."""

    def __init__(self, files: PictureFiles, indices: Sequence[int] | np.ndarray):
        self.files, self.indices = files, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture; raise what the files raise."""
        return self.files.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Return where a picture lies."""
        return self.files.describe(int(self.indices[index]))


def is_plain(files: PictureFiles) -> bool:
    """Return True if each picture is a file of its own."""
    while isinstance(files, SomeFiles):
        files = files.files
    return isinstance(files, PlainFiles)


def places(files: PictureFiles) -> list[str]:
    """Return where each picture lies: `describe` of all of them, which takes a tenth of the time of so many calls."""
    match files:
        case PlainFiles():
            return list(files.paths)
        case SomeFiles():
            return list(map(places(files.files).__getitem__, files.indices))
    return [files.describe(index) for index in range(len(files))]


def read_picture(path: str) -> bytes:
    """Return the bytes of a picture's file. Raises OSError for what is no regular file, a pipe for instance.

    A link may lead to the file, as data sets are often made of links.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file but a pipe, a device or a folder")
        # One call where a file object makes six, and takes MAX_BYTES of memory for a moment.
        data = os.read(descriptor, min(status.st_size, MAX_BYTES) + 1)
        if len(data) == status.st_size <= MAX_BYTES:
            return data
        with os.fdopen(descriptor, "rb", closefd=False) as file:  # it grows, or answers come in parts
            file.seek(0)
            return read_limited(file)
    finally:
        os.close(descriptor)


def read_limited(file: IO[bytes]) -> bytes:
    """Return what is in an open picture. Raises ValueError if that is more than any picture has."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
    return data
