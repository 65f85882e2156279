"""The encoded pictures of a data set, read by index: files of a folder here, members of archives elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainlib.data.decoding.decode import read_picture


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

    def __init__(self, files: PictureFiles, indices: Sequence[int]):
        self.files, self.indices = files, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture; raise what the files raise."""
        return self.files.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Return where a picture lies."""
        return self.files.describe(int(self.indices[index]))
