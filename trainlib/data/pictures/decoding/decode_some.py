"""The decoding of a few pictures into memory, for predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.decoding.threads import DecodingJob, decode_ahead
from trainlib.data.pictures.files import PictureFiles


def decode_some(files: PictureFiles, indices: Sequence[int], reader: PictureReader) -> tuple[Tensor, dict[int, str]]:
    """Decode these pictures as in evaluation: uint8 [N, C, H, W], and the reason for each row that is without one."""
    images_NCHW = torch.zeros((len(indices), *reader.shape()), dtype=torch.uint8)
    (job,) = decode_ahead([DecodingJob(files, indices, reader, images_NCHW)], 0, lambda: False)
    return images_NCHW, dict(job.failures)
