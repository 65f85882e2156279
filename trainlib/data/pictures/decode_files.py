"""The decoding of many pictures at once: all of a data set into an array on disk, or a few into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainlib.data.pictures.failures import Failure
from trainlib.data.pictures.files import PictureFiles
from trainlib.data.pictures.reader import PictureReader
from trainlib.data.pictures.threads import DecodingJob, decode_ahead, decoding_pool

CHUNK_SIZE = 64  # pictures between two reports of progress

Decoded = tuple[list[str | None], list[Failure]]  # the SHA-256 of each file's bytes, None for one that cannot be read


def decode_files(
    files: PictureFiles,
    array_path: Path,
    reader: PictureReader,
    *,
    stop_requested: Callable[[], bool],
    advance: Callable[[int], None],
) -> Decoded:
    """Decode picture i into row i of the .npy file at `array_path`: uint8 [N, C, H, W], created before at full size.

    advance     called with the number of pictures that have just been decoded
    Returns the SHA-256 of each file's bytes, and the pictures that could not be decoded; both in order.

    Raises StoppedError when asked to stop, and DataError for a picture that takes far too long.
    """
    rows_NCHW = torch.from_numpy(np.lib.format.open_memmap(array_path, mode="r+"))
    chunks = [range(start, min(start + CHUNK_SIZE, len(files))) for start in range(0, len(files), CHUNK_SIZE)]
    jobs = (DecodingJob(files, chunk, reader, rows_NCHW[chunk.start : chunk.stop]) for chunk in chunks)
    hashes: list[str | None] = []
    failures: list[Failure] = []
    for job in decode_ahead(jobs, decoding_pool().count, stop_requested):
        hashes += job.sha256
        failures += job.named_failures()
        advance(len(job.indices))
    return hashes, failures


def decode_some(files: PictureFiles, indices: Sequence[int], reader: PictureReader) -> tuple[Tensor, dict[int, str]]:
    """Decode these pictures as in evaluation: uint8 [N, C, H, W], and the reason for each row that is without one."""
    images_NCHW = torch.zeros((len(indices), *reader.shape()), dtype=torch.uint8)
    (job,) = decode_ahead([DecodingJob(files, indices, reader, images_NCHW)], 0, lambda: False)
    return images_NCHW, dict(job.failures)
