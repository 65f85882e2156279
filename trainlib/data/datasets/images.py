"""Decoded images, fetched by index: held in memory, or decoded from their files for each batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from trainlib.data.identity.content import FileContent
from trainlib.data.pictures.decoding.failures import damaged_images
from trainlib.data.pictures.decoding.reader import Reader
from trainlib.data.pictures.decoding.threads import STOP_SECONDS, DecodingJob, decode_ahead, jobs_ahead
from trainlib.data.pictures.files import PictureFiles
from trainlib.platform.accelerators import free_memory, pins_memory

DEVICE_MEMORY_FRACTION = 0.5  # of what is free: the model needs room too


class Pictures(Protocol):
    """Decoded images, uint8 RGB, all of one size, in batches by index: what a class of a user's own must give."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Pictures:
        """Return the same images with their batches on `device`."""
        ...

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield, for each tensor of indices, int64 [B] (B may be 0), the images uint8 [B, C, H, W] on their device."""
        ...


class Images(Pictures, Protocol):
    """Decoded images, uint8 RGB, in batches by index; those of training may have another size than the others."""

    def to(self, device: torch.device) -> Images:
        """Return the same images with their batches on `device`."""
        ...

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield, for each tensor of indices, int64 [B] (B may be 0), the images uint8 [B, C, H, W] on their device.

        epoch   of training, in which images may be cut at random out of their pictures; None: images of evaluation
        draws   for each tensor of indices the draw numbers of the samples, int64 [B] on the CPU, by which they are cut;
                None: the indices

        Raises DataError for an image that cannot be decoded.
        """
        ...


def as_images(pictures: Pictures) -> Images:
    """Return these images, or, of a class that knows no epochs, images that are the same in each."""
    if "epoch" in inspect.signature(pictures.batches).parameters:
        return cast(Images, pictures)
    return _SameInEveryEpoch(pictures)


class _SameInEveryEpoch:
    """Images of a class of a user's own."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device) -> _SameInEveryEpoch:
        """Return the same images with their batches on `device`."""
        return _SameInEveryEpoch(self.pictures.to(device))

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, C, H, W] for each tensor of indices, int64 [B]."""
        return self.pictures.batches(ids)


class InMemoryImages:
    """Images in memory or in a memory-mapped file, uint8 [N, C, H, W]: a batch is one gather."""

    def __init__(self, images_NCHW: Tensor, device: torch.device | None = None):
        self.images_NCHW = images_NCHW
        self.device = device or images_NCHW.device

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def to(self, device: torch.device) -> InMemoryImages:
        """Move the images to the device or, if they would take too much of its memory, each batch as it is fetched."""
        needs_room = pins_memory(device) and self.images_NCHW.device != device
        if needs_room and self.images_NCHW.nbytes > free_memory(device) * DEVICE_MEMORY_FRACTION:
            return InMemoryImages(self.images_NCHW, device)
        return InMemoryImages(self.images_NCHW.to(device))

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, C, H, W] for each tensor of indices, int64 [B]: the same in every epoch."""
        if not ids:
            return
        # One transfer for all indices; one a batch would make every step wait for the device.
        indices = torch.cat(list(ids)).to(self.images_NCHW.device)
        for indices_B in torch.split(indices, [len(ids_B) for ids_B in ids]):
            yield self.images_NCHW.index_select(0, indices_B).to(self.device)


class StreamedImages:
    """Pictures that threads decode for each batch, ahead of it, for data that does not fit in memory.

    The bits are those of the same images decoded into memory. A file whose bytes change meanwhile is an error.

    is_cached        True for copies that are checked by themselves, whatever happens to the files meanwhile
    stop_requested   looked at while a batch is waited for: a decoder that does not return must not make a run deaf
    """

    def __init__(
        self,
        files: PictureFiles,
        reader: Reader,
        stop_requested: Callable[[], bool] = lambda: False,
        device: torch.device | None = None,
        content: FileContent | None = None,
        is_cached: bool = False,
    ):
        self.files = files
        self.reader = reader
        self.content = None if is_cached else content or FileContent(files)
        self.device = device or torch.device("cpu")
        self._stop_requested = stop_requested

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> StreamedImages:
        """Return the same images with their batches on `device`."""
        return StreamedImages(self.files, self.reader, self._stop_requested, device, self.content, self.content is None)

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, C, H, W] for each tensor of indices, int64 [B]; DataError for a damaged file."""
        is_pinned = pins_memory(self.device)
        shape = self.reader.shape(epoch)
        jobs = (
            DecodingJob(
                self.files,
                ids_B.tolist(),
                self.reader,
                torch.empty((len(ids_B), *shape), dtype=torch.uint8, pin_memory=is_pinned),  # torch keeps it for reuse
                epoch,
                draws_B.tolist(),
                is_hashed=self.content is not None,
            )
            for ids_B, draws_B in zip(ids, draws or ids, strict=True)
        )
        largest = max(map(len, ids), default=0)
        for job in decode_ahead(jobs, jobs_ahead(largest, math.prod(shape)), self._stop_requested, STOP_SECONDS):
            if self.content is not None:
                self.content.check(job.indices, job.sha256)
            if job.failures:
                raise damaged_images(job.named_failures())
            yield job.out_NCHW.to(self.device, non_blocking=is_pinned)
