"""Decoded images, fetched by index: held in memory, or decoded from their files for each batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from trainlib.data.decoding.decode import PICTURE_SECONDS, Failure, decode_rows
from trainlib.data.decoding.pool import WORKER_BYTES, damaged_images, decoding_processes
from trainlib.data.identity.content import FileContent
from trainlib.runs.attempt.stop_request import ignore_stop_signals
from trainlib.runs.machine.launch_variables import local_world_size

_Item = tuple[Tensor, list[str | None], list[Failure]]  # images, and what `decode_rows` says of their files

BATCHES_AHEAD = 2  # for each process that decodes
DEVICE_MEMORY_FRACTION = 0.5  # of what is free: the model needs room too


class Pictures(Protocol):
    """Decoded images, uint8 RGB, all of one size, in batches by index: what a class of a user's own must give."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Pictures:
        """Return the same images with their batches on `device`."""
        ...

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield, for each tensor of indices, int64 [B] (B may be 0), the images uint8 [B, 3, H, W] on their device."""
        ...


class Images(Pictures, Protocol):
    """Decoded images, uint8 RGB, in batches by index; those of training may have another size than the others."""

    def to(self, device: torch.device) -> Images:
        """Return the same images with their batches on `device`."""
        ...

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield, for each tensor of indices, int64 [B] (B may be 0), the images uint8 [B, 3, H, W] on their device.

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
        """Yield the images uint8 [B, 3, H, W] for each tensor of indices, int64 [B]."""
        return self.pictures.batches(ids)


class InMemoryImages:
    """Images in memory or in a memory-mapped file, uint8 [N, 3, H, W]: a batch is one gather."""

    def __init__(self, images_NCHW: Tensor, device: torch.device | None = None):
        self.images_NCHW = images_NCHW
        self.device = device or images_NCHW.device

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def to(self, device: torch.device) -> InMemoryImages:
        """Move the images to the device or, if they would take too much of its memory, each batch as it is fetched."""
        if device.type == "cuda" and self.images_NCHW.device != device:
            free, _ = torch.cuda.mem_get_info(device)
            if self.images_NCHW.nbytes > free * DEVICE_MEMORY_FRACTION:
                return InMemoryImages(self.images_NCHW, device)
        return InMemoryImages(self.images_NCHW.to(device))

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, 3, H, W] for each tensor of indices, int64 [B]: the same in every epoch."""
        if not ids:
            return
        # One transfer for all indices; one a batch would make every step wait for the device.
        indices = torch.cat(list(ids)).to(self.images_NCHW.device)
        for indices_B in torch.split(indices, [len(ids_B) for ids_B in ids]):
            yield self.images_NCHW.index_select(0, indices_B).to(self.device)


class StreamedImages:
    """Image files that worker processes decode for each batch, ahead of it, for data that does not fit in memory.

    The bits are those of the same images decoded into memory. A file whose bytes change meanwhile is an error.
    """

    def __init__(
        self,
        paths: Sequence[str],
        image_size: int,
        device: torch.device | None = None,
        content: FileContent | None = None,
    ):
        self.paths = paths
        self.content = content or FileContent(paths)
        self.image_size = image_size
        self.device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> StreamedImages:
        """Return the same images with their batches on `device`."""
        return StreamedImages(self.paths, self.image_size, device, self.content)

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, 3, S, S] for each tensor of indices, int64 [B]; DataError for a damaged file."""
        on_cuda = self.device.type == "cuda"
        loader: DataLoader[_Item] = DataLoader(
            _DecodedBatches(self.paths, self.image_size),
            sampler=[ids_B.tolist() for ids_B in ids],
            batch_size=None,  # an item is a batch already
            num_workers=min(self._processes(max(map(len, ids), default=0)), len(ids)),
            prefetch_factor=BATCHES_AHEAD if len(ids) else None,
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=on_cuda,
            generator=torch.Generator(),  # else it would draw from the global one, which belongs to the model
        )
        for ids_B, (batch, hashes, failures) in zip(ids, loader, strict=True):
            self.content.check(ids_B.tolist(), hashes)
            if failures:
                raise damaged_images([(path, reason) for path, reason in failures])
            yield batch.to(self.device, non_blocking=on_cuda)

    def _processes(self, batch_size: int) -> int:
        """Return how many processes decode for this rank, each holding batches of this size."""
        batch_bytes = 3 * self.image_size**2 * batch_size
        return decoding_processes(WORKER_BYTES + (BATCHES_AHEAD + 1) * batch_bytes, local_world_size())


class _DecodedBatches(TorchDataset[_Item]):
    """The data set of torch's DataLoader, whose items are whole batches."""

    def __init__(self, paths: Sequence[str], image_size: int):
        self.paths = paths
        self.image_size = image_size

    def __getitem__(self, ids: list[int]) -> _Item:
        """Decode a batch, with what `decode_rows` returns: an exception would reach the parent with a traceback."""
        images_NCHW = np.empty((len(ids), 3, self.image_size, self.image_size), np.uint8)
        paths = [self.paths[i] for i in ids]
        hashes, failures = decode_rows(images_NCHW, 0, paths, PICTURE_SECONDS if get_worker_info() else None)
        return torch.from_numpy(images_NCHW), hashes, failures


def _leave_signals_to_parent(_worker: int) -> None:
    """Ignore signals in a worker: SLURM sends them to every process, and a dead worker would cost the checkpoint."""
    ignore_stop_signals()
