"""The pictures of one data set in the cache, in shards of about 4,096, which processes and nodes make together.

In which shard a picture is follows from its name, so that a picture that is added, removed or edited changes one shard,
and what was made before a kill stays. Each shard has a lock of its own: whoever holds it makes the shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from trainlib.data.identity.hashes import Hashes
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.decoding.failures import Failure, damaged_images
from trainlib.data.pictures.files import PictureFiles, places
from trainlib.data.storage.make import make_records
from trainlib.data.storage.records import Records
from trainlib.data.storage.shard import Facts, OpenShard, Shard
from trainlib.errors import StoppedError
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.locks import acquire, exclusive_lock
from trainlib.runs.machine.cache_folder import ABOUT, USED
from trainlib.runs.machine.limits import usable_cores

SHARD_PICTURES = 4096  # about
MOST_SHARDS = 256  # of which each process keeps a file open
POLL_SECONDS = 0.2
NAMED_AT_MOST = 5

Advance = Callable[[int], None]

logger = logging.getLogger("trainlib.data")


class Store:
    """The folder of one data set in the cache, as far as it fits the pictures that the data set has now.

    files, stamps   the pictures, and what the file system says of them
    verify          read every file again, not only those whose stamp is not the one that they were read under
    check_all       called with each shard that is opened; it returns False for one that is damaged
    """

    def __init__(
        self,
        folder: Path,
        files: PictureFiles,
        stamps: Stamps,
        records: Records,
        *,
        verify: bool = False,
        check_all: Callable[[OpenShard], bool] = lambda shard: True,
    ):
        self.folder, self.files, self.stamps, self.records = folder, files, stamps, records
        self._verify, self._check_all = verify, check_all
        self.shards: list[Shard] = []
        self.opened: dict[int, OpenShard] = {}
        self._made: list[Shard] = []
        self._failures: dict[int, list[Failure]] = {}

    def prepare(self, data: str, stop_requested: Callable[[], bool]) -> None:
        """Make the folder, open the shards that are there, and note that they are used. Raises OSError.

        data   where the pictures lie, for people
        """
        count = self._present_count()
        if self._about() != self._about_of(data, count):
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.folder / "about.lock", stop_requested=stop_requested):
                count = self._present_count()
                write_atomically(self.folder / ABOUT, json.dumps(self._about_of(data, count)))
        with suppress(OSError):  # of a cache that can only be read
            (self.folder / USED).touch()
        self.shards = list(_divide(self.folder, places(self.files), self.stamps, count))
        with ThreadPoolExecutor(min(usable_cores(), 8)) as threads:
            for shard, opened in zip(self.shards, threads.map(self._open, self.shards), strict=True):
                if opened is not None:
                    self.opened[shard.number] = opened

    def missing(self) -> list[Shard]:
        """Return the shards that are still to be made, or to be opened where another process has made them."""
        return [shard for shard in self.shards if shard.number not in self.opened]

    def complete(
        self, advance: Advance, stop_requested: Callable[[], bool], *, first: int = 0, only_one: bool = False
    ) -> None:
        """Make the shards that are missing, except those that other processes make, and open all of them.

        advance   called with the number of pictures that are done
        first     the shard to begin with: another one in each process
        only_one  True to return after one shard

        Raises DataError that names all damaged pictures, StoppedError when asked to stop, and OSError.
        """
        while missing := [shard for shard in self.missing() if shard.number not in self._failures]:
            missing.sort(key=lambda shard: (shard.number - first) % len(self.shards))
            if any(self._complete_one(shard, advance, stop_requested) for shard in missing):
                if only_one:
                    break
            elif stop_requested():
                raise StoppedError(
                    f"Stopped while another process prepared the data ({self.folder}), before training. Run again."
                )
            else:
                time.sleep(POLL_SECONDS)
        if self._failures:
            raise damaged_images([failure for number in sorted(self._failures) for failure in self._failures[number]])

    def _complete_one(self, shard: Shard, advance: Advance, stop_requested: Callable[[], bool]) -> bool:
        """Open or make a shard; return False where another process is at it."""
        opened = self._open(shard)
        if opened is None:
            try:
                lock = acquire(shard.lock_path, seconds=0)
            except BlockingIOError:
                return False
            with lock:
                opened = self._open(shard)  # that process may just have made it
                if opened is None:
                    self._make(shard, advance, stop_requested)
                    advance = _nothing
                    opened = self._open(shard) if shard.number not in self._failures else None
        if opened is not None:
            advance(len(shard.rows_N))
            self.opened[shard.number] = opened
        return True

    def _make(self, shard: Shard, advance: Advance, stop_requested: Callable[[], bool]) -> None:
        """Make a shard; where some of its pictures cannot be decoded, note them, and keep nothing."""
        failures: list[Failure] = []
        indices = shard.rows_N.tolist()
        records = make_records(self.files, indices, self.records, failures, advance, stop_requested)
        with suppress(_Damaged):
            shard.write(_unless(failures, records), self.stamps.rows_N4[shard.rows_N])
            self._made.append(shard)
        if failures:
            self._failures[shard.number] = failures

    def _open(self, shard: Shard) -> OpenShard | None:
        """Open a shard; None where it is missing, damaged, or of files that are others now."""
        try:
            facts = shard.read_facts()
            if facts is None:
                return None
            opened = OpenShard(shard, facts)
            if not self._check_all(opened):
                raise ValueError
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            logger.warning(
                "The cache of decoded images is damaged (%s): its %d images are decoded again.",
                shard.facts_path,
                len(shard.rows_N),
            )
            shard.discard()
            return None
        return self._with_present_files(opened)

    def _with_present_files(self, opened: OpenShard) -> OpenShard | None:
        """Return the shard if the pictures' files are those that it was made of; read those whose stamp is another."""
        rows_N, facts = opened.shard.rows_N, opened.facts
        stamps_N4 = self.stamps.rows_N4[rows_N]
        is_stale_N = np.ones(len(rows_N), bool) if self._verify else (facts.stamps_N4 != stamps_N4).any(1)
        stale = np.nonzero(is_stale_N)[0].tolist()
        if not stale:
            return opened
        changed = self._changed(facts, rows_N, stale)
        if changed:
            more = f" and {len(changed) - NAMED_AT_MOST} more" if len(changed) > NAMED_AT_MOST else ""
            names = ", ".join(changed[:NAMED_AT_MOST])
            logger.warning("Image files that changed since they were decoded are decoded again: %s%s.", names, more)
            opened.shard.discard()
            return None
        if (facts.stamps_N4 != stamps_N4).any():
            opened = opened.with_stamps(stamps_N4)
            with suppress(OSError):  # else the files are read again at the next start
                opened.shard.write_facts(opened.facts)
        return opened

    def _changed(self, facts: Facts, rows_N: np.ndarray, places: Sequence[int]) -> list[str]:
        """Return where those of these pictures lie whose files have other bytes now, or cannot be read."""

        def now(place: int) -> bytes | None:
            try:
                return hashlib.sha256(self.files.read(int(rows_N[place]))).digest()
            except (OSError, ValueError):
                return None

        with ThreadPoolExecutor(usable_cores()) as threads:
            found = zip(places, threads.map(now, places), strict=True)
            return [
                self.files.describe(int(rows_N[place]))
                for place, digest in found
                if digest != facts.hashes_N32[place].tobytes()
            ]

    def hashes(self) -> Hashes:
        """Return the SHA-256 of each picture's file; the store is complete."""
        hashes = Hashes.unknown(len(self.files))
        for opened in self.opened.values():
            hashes.hashes_N32[opened.shard.rows_N] = opened.facts.hashes_N32
            hashes.is_known_N[opened.shard.rows_N] = True
        return hashes

    def remove_made(self) -> None:
        """Remove the shards that this process has made."""
        for shard in self._made:
            shard.remove()

    def _present_count(self) -> int:
        return _number_of_shards(self._about().get("shards"), len(self.files))

    def _about_of(self, data: str, count: int) -> dict[str, object]:
        return {"data": data, "kept": self.records.key, "pictures": len(self.files), "shards": count}

    def _about(self) -> dict[str, object]:
        try:
            about = json.loads((self.folder / ABOUT).read_bytes())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


class _Damaged(Exception):  # noqa: N818 - it is no error of its own
    """Ends the writing of a shard of which a picture cannot be decoded."""


def _unless(failures: list[Failure], records: Iterator[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
    """Yield the records; raise _Damaged at the end if there are failures."""
    yield from records
    if failures:
        raise _Damaged


def _nothing(count: int) -> None:
    """Do nothing: these pictures were counted before."""


def _number_of_shards(before: object, num_pictures: int) -> int:
    """Return how many shards a data set has: as many as before, unless it has grown or shrunk by more than a half."""
    wanted = min(max(1, -(-num_pictures // SHARD_PICTURES)), MOST_SHARDS)
    return before if isinstance(before, int) and wanted <= 2 * before and before <= 2 * wanted else wanted


def _divide(folder: Path, names: Iterable[str], stamps: Stamps, count: int) -> Iterator[Shard]:
    """Yield the shards of pictures with these names; in which shard, and in which place, follows from the names."""
    encoded = [name.encode(errors="surrogateescape") for name in names]
    crc_N = np.fromiter(map(zlib.crc32, encoded), np.int64, len(encoded))
    adler_N = np.fromiter(map(zlib.adler32, encoded), np.int64, len(encoded))
    shard_N = crc_N % count
    order_N = np.lexsort((adler_N, crc_N, shard_N))
    starts = np.searchsorted(shard_N[order_N], range(count + 1)).tolist()
    sizes = stamps.rows_N4[:, 0]
    for number in range(count):
        rows_N = order_N[starts[number] : starts[number + 1]]
        rows = rows_N.tolist()
        digest = hashlib.sha256(b"\0".join(map(encoded.__getitem__, rows)))
        digest.update(sizes[rows_N].astype("<i8").tobytes())
        yield Shard(folder, number, rows_N, digest.hexdigest())
