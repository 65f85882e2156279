"""The loader that turns sample indices into tensors on a rank's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.dataset import ImageSet
from trainlib.data.images import as_images


class MicroBatch(NamedTuple):
    """Samples that a rank computes in one forward pass; all of one shard of the global batch.

    ids_N          int64 [N] on the CPU: the samples' indices in their image set
    images_NCHW    the model's input on the device: float32 [N, 3, S, S], or features of a frozen backbone. An empty
                   micro-batch holds one dummy image, so that its rank can take part in the collectives of the step
    labels_N       int64 [N] on the device
    cpu_labels_N   the same on the CPU
    shard          index of the shard of the global batch
    """

    ids_N: Tensor
    images_NCHW: Tensor
    labels_N: Tensor
    cpu_labels_N: Tensor
    shard: int

    @property
    def is_empty(self) -> bool:
        """True if there are no samples, and the image is a dummy."""
        return len(self.cpu_labels_N) == 0


class BatchLoader:
    """Makes one rank's micro-batches of one set of images, on the rank's device."""

    def __init__(self, image_set: ImageSet, preprocess: Preprocess, rank_slice: RankSlice, device: torch.device):
        self.labels_N = image_set.labels_N
        self.images = as_images(image_set.images)
        self.preprocess = preprocess
        self.rank_slice = rank_slice
        self.device = device
        self._to_model_input: Callable[[Tensor], Tensor] = preprocess

    def labels_of(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the labels, int64 [B] on the CPU, of each of these batches of sample indices, int64 [B]."""
        return _gather_split(self.labels_N, batches)

    def train_batches(
        self,
        batches: Sequence[Tensor],
        epoch: int,
        augmentation: Augmentation,
        draws: Sequence[Tensor] | None = None,
    ) -> Iterator[list[MicroBatch]]:
        """Yield this rank's augmented micro-batches of each of these global batches of sample indices, int64 [B].

        draws   for each batch the draw numbers of its samples (see `plan`), by which they are augmented; None: indices
        """
        micro_batch_size = self.rank_slice.micro_batch_size
        slices = [self.rank_slice.split(batch, micro_batch_size) for batch in batches]
        micro_batches = [micro_batch for rank_slice in slices for micro_batch in rank_slice]
        split_draws = [
            draws_N for batch in draws or batches for _, draws_N in self.rank_slice.split(batch, micro_batch_size)
        ]
        first = [batch[:1] for batch, rank_slice in zip(batches, slices, strict=True) for _ in rank_slice]
        # A dummy image for an empty shard, of the first sample of the batch.
        image_ids = [ids_N if len(ids_N) else one for (_, ids_N), one in zip(micro_batches, first, strict=True)]
        image_draws = [draws_N if len(draws_N) else one for draws_N, one in zip(split_draws, first, strict=True)]
        images = self.images.batches(image_ids, epoch, image_draws)
        loaded = self._load(micro_batches, images, split_draws, epoch, augmentation)
        for rank_slice in slices:
            yield [next(loaded) for _ in rank_slice]

    def eval_batches(self, ids_N: Tensor, batch_size: int) -> Iterator[MicroBatch]:
        """Yield this rank's share of these samples, each exactly once, in batches of at most `batch_size`."""
        micro_batches = [(shard, ids_B) for shard, ids_B in self.rank_slice.split(ids_N, batch_size) if len(ids_B)]
        ids = [ids_B for _, ids_B in micro_batches]
        return self._load(micro_batches, self.images.batches(ids), ids, 0, None)

    def model_inputs(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the model's input for each of these tensors of sample indices, neither split over ranks nor augmented.

        ids   int64 [B] each; every one gives float32 [B, 3, S, S] on the device
        """
        for images_NCHW in self.images.batches(ids):
            yield self._to_model_input(images_NCHW.to(self.device, non_blocking=True))

    def dummy_input(self) -> Tensor:
        """Return a model input of one image, all zeros, on the device."""
        size = self.preprocess.image_size
        return torch.zeros(1, 3, size, size, device=self.device)

    def raw_images(self, ids_N: Tensor) -> Tensor:
        """Return the images of these samples as the image set holds them: uint8 [N, 3, H, W] on the CPU."""
        return next(self.images.batches([ids_N])).cpu()

    def _load(
        self,
        micro_batches: Sequence[tuple[int, Tensor]],
        images: Iterator[Tensor],
        draws: Sequence[Tensor],
        epoch: int,
        augmentation: Augmentation | None,
    ) -> Iterator[MicroBatch]:
        """Yield the tensors of these micro-batches, given as (shard, sample indices).

        images   the images of each, uint8 [B, 3, H, W]: one dummy image for an empty micro-batch
        draws    the draw numbers of the samples of each
        """
        ids = [ids_N for _, ids_N in micro_batches]
        # One transfer for all labels and indices: one for each micro-batch would cost each step some microseconds.
        cpu_labels = labels = _gather_split(self.labels_N, ids)
        if self.device.type != "cpu":
            labels = _gather_split(self.labels_N, ids, self.device)
            draws = _transfer(draws, self.device)
        for index, ((shard, ids_N), images_NCHW) in enumerate(zip(micro_batches, images, strict=True)):
            images_NCHW = images_NCHW.to(self.device, non_blocking=True)
            if augmentation and len(ids_N):
                images_NCHW = augmentation(images_NCHW, draws[index], epoch)
            yield MicroBatch(ids_N, self._to_model_input(images_NCHW), labels[index], cpu_labels[index], shard)


@dataclass(frozen=True)
class DataModule:
    """The loaders of a run's training, validation and test samples.

    train             loader of the training set, which also holds the validation samples
    val_ids           int64: indices of the validation samples in the training set; empty without validation
    micro_batch_size  samples in a rank's largest micro-batch of training
    eval_batch_size   the most samples in a rank's batch of validation or test
    """

    train: BatchLoader
    test: BatchLoader
    augmentation: Augmentation
    val_ids: Tensor
    micro_batch_size: int
    eval_batch_size: int


def _gather_split(values_N: Tensor, ids: Sequence[Tensor], device: torch.device | None = None) -> Sequence[Tensor]:
    """Return `values_N[ids_B]` for each tensor of indices, with one gather and one transfer for all of them."""
    if not ids:
        return ()
    return torch.split(values_N[torch.cat(list(ids))].to(device), [len(ids_B) for ids_B in ids])


def _transfer(values: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Return these tensors on the device, with one transfer for all of them."""
    return torch.split(torch.cat(list(values)).to(device), [len(value) for value in values]) if values else ()
