"""SHA-256 of each streamed file, to notice files that change while a run reads them again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainlib.data.pictures.files import PictureFiles
from trainlib.errors import DataError


class FileContent:
    """The SHA-256 of each file of a split, by index, as they become known while the files are read."""

    def __init__(self, files: PictureFiles):
        self._files = files
        self._hashes: dict[int, str] = {}
        self._new: list[int] = []

    def learn(self, known: Iterable[tuple[int, str]]) -> None:
        """Take over hashes from earlier attempts at the run."""
        self._hashes.update(known)

    def check(self, ids: Sequence[int], hashes: Sequence[str | None]) -> None:
        """Compare files that were just read with what they were; raise DataError for the first with other bytes."""
        for index, sha256 in zip(ids, hashes, strict=True):
            if sha256 is None:  # it cannot be read, which is told elsewhere
                continue
            if index not in self._hashes:
                self._new.append(index)
            if self._hashes.setdefault(index, sha256) != sha256:
                raise DataError(
                    f"{self._files.describe(index)} has other bytes than when this run read it first; bring the file "
                    "back as it was, or use `--fresh` to begin again or `--name` for another run"
                )

    def take_new(self) -> list[tuple[int, str]]:
        """Return index and hash of the files that became known since the last call."""
        new, self._new = self._new, []
        return [(index, self._hashes[index]) for index in new]
