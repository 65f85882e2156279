"""The making of records of many pictures, by the threads that decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from trainlib.data.pictures.decoding.failures import Failure
from trainlib.data.pictures.decoding.threads import PIECE, DecodingJob, decode_ahead, decoding_pool
from trainlib.data.pictures.files import PictureFiles
from trainlib.data.storage.records import Records

JOB_PICTURES = 2 * PIECE


class _RecordJob(DecodingJob):
    """Pictures of which records are made; `made` has the record of each row, None for one that cannot be decoded."""

    def __init__(self, files: PictureFiles, indices: Sequence[int], records: Records):
        super().__init__(files, indices, records.reader, torch.empty(0))
        self.records = records
        self.made: list[bytes | None] = [None] * len(indices)

    def keep(self, row: int, data: bytes) -> None:
        """Make the record of a picture's file."""
        self.made[row] = self.records.encode(data)


def make_records(
    files: PictureFiles,
    indices: Sequence[int],
    records: Records,
    failures: list[Failure],
    advance: Callable[[int], None],
    stop_requested: Callable[[], bool],
) -> Iterator[tuple[bytes, str]]:
    """Yield the record of each of these pictures, and the SHA-256 of its file, in order.

    failures   gets the pictures that cannot be decoded, of which nothing is yielded
    advance    called with the number of pictures that have just been done

    Raises StoppedError when asked to stop, and DataError for a picture that takes far too long.
    """
    chunks = [indices[start : start + JOB_PICTURES] for start in range(0, len(indices), JOB_PICTURES)]
    jobs = (_RecordJob(files, chunk, records) for chunk in chunks)
    for job in decode_ahead(jobs, decoding_pool().count, stop_requested):
        assert isinstance(job, _RecordJob)
        failures += job.named_failures()
        for record, sha256 in zip(job.made, job.sha256, strict=True):
            if record is not None and sha256 is not None:
                yield record, sha256
        advance(len(job.indices))
