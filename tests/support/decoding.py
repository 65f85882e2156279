"""The decoding of all pictures of a list through the threads that training uses, with what came of each file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainlib.data.pictures.decoding.failures import Failure
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.decoding.threads import DecodingJob, decode_ahead, decoding_pool
from trainlib.data.pictures.files import PictureFiles


def decode_all(
    files: PictureFiles,
    reader: PictureReader,
    stop_requested: Callable[[], bool] = lambda: False,
    chunk: int = 64,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, list[str | None], list[Failure]]:
    """The images uint8 [N, C, H, W], each file's SHA-256 or None, and the pictures that could not be decoded."""
    images_NCHW = torch.zeros((len(files), *reader.shape()), dtype=torch.uint8)
    chunks = [range(start, min(start + chunk, len(files))) for start in range(0, len(files), chunk)]
    jobs = (DecodingJob(files, part, reader, images_NCHW[part.start : part.stop]) for part in chunks)
    hashes: list[str | None] = []
    failures: list[Failure] = []
    for job in decode_ahead(jobs, decoding_pool().count, stop_requested):
        hashes += job.sha256
        failures += job.named_failures()
        advance(len(job.indices))
    return images_NCHW, hashes, failures
