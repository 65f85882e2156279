"""Pictures in the cache, read by index as files are: each record is checked, and made anew where it is damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from trainlib.data.pictures.files import PictureFiles
from trainlib.data.storage.records import Records
from trainlib.data.storage.shard import OpenShard

logger = logging.getLogger("trainlib.data")


class StoredFiles:
    """The records of a data set's pictures, by the pictures' indices.

    files    the pictures themselves, of which a record is made where that in the cache is damaged
    shards   all of the data set's
    """

    def __init__(self, files: PictureFiles, records: Records, shards: Sequence[OpenShard]):
        self.files, self.records, self.shards = files, records, shards
        self._shard_N = np.empty(len(files), np.int32)
        self._row_N = np.empty(len(files), np.int32)
        for number, shard in enumerate(shards):
            rows_N = shard.shard.rows_N
            self._shard_N[rows_N] = number
            self._row_N[rows_N] = np.arange(len(rows_N))

    def __len__(self) -> int:
        return len(self.files)

    def describe(self, index: int) -> str:
        """Return where the picture lies, for people."""
        return self.files.describe(index)

    def read(self, index: int) -> bytes:
        """Return the record of a picture. Raises OSError or ValueError where it is damaged, and the picture as well."""
        shard, row = self.shards[self._shard_N[index]], int(self._row_N[index])
        record = shard.read(row)
        return record if record is not None else self._made_anew(index, shard, row)

    def _made_anew(self, index: int, shard: OpenShard, row: int) -> bytes:
        logger.warning(
            "The cache of decoded images is damaged (%s): %s is decoded again, and its shard at the next start.",
            shard.shard.facts_path,
            self.describe(index),
        )
        shard.shard.discard()
        data = self.files.read(index)
        if hashlib.sha256(data).digest() != shard.facts.hashes_N32[row].tobytes():
            raise ValueError("it has other bytes than when it was decoded into the cache")
        return self.records.encode(data)
