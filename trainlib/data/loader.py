"""From the plan to tensors on the device: each step's images, this rank's pieces only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.data.augmentation import augment, normalise
from trainlib.data.images import ImageSet
from trainlib.data.plan import parts_of, split_micro_batches, split_range


@dataclass(frozen=True)
class Preprocess:
    """How uint8 images become the model's input: float32 [B, 3, image_size, image_size]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int


@dataclass(frozen=True)
class Augmentation:
    """Random flips and crops of training images, a function of (seed, epoch, sample index)."""

    seed: int
    flip: bool | str
    crop_padding: int
    fill: str = "black"

    def __bool__(self) -> bool:
        return bool(self.flip) or self.crop_padding > 0


@dataclass(frozen=True)
class RankSlice:
    """Which parts of every batch this process computes, and in pieces of what size.

    A batch has a part for each rank or, in elastic mode, for each virtual shard: then a rank has several.
    """

    rank: int
    world_size: int
    micro_batch_size: int | None
    virtual_shards: int | None = None

    @property
    def num_parts(self) -> int:
        """Of a whole batch."""
        return self.virtual_shards or self.world_size

    @property
    def parts(self) -> range:
        """This rank's."""
        return parts_of(self.num_parts, self.world_size, self.rank)

    def cut(self, batch_ids_N: Tensor, micro_batch_size: int | None) -> list[tuple[int, Tensor]]:
        """This rank's sample indices of a batch, cut into pieces of one part each: [(part, indices)].

        Pieces have at most `micro_batch_size` samples. A part without samples is one empty piece.
        """
        return [
            (part, micro_batch)
            for part in self.parts
            for micro_batch in split_micro_batches(
                batch_ids_N[split_range(len(batch_ids_N), self.num_parts, part)], micro_batch_size
            )
        ]

    def micro_batches(self, batch_ids_N: Tensor) -> list[Tensor]:
        """This rank's sample indices of a batch of training, a piece for each micro-batch."""
        return [micro_batch for _, micro_batch in self.cut(batch_ids_N, self.micro_batch_size)]


class MicroBatch(NamedTuple):
    """A micro-batch. An empty one carries a single stand-in image and no labels, so that the rank can take part."""

    ids_N: Tensor  # the samples' indices in their image set, on the CPU
    images_NCHW: (
        Tensor  # what `TrainState.model` takes: of a frozen backbone, its features of the images (see `features`)
    )
    labels_N: Tensor  # on the images' device
    cpu_labels_N: Tensor
    part: int  # of the batch

    @property
    def is_empty(self) -> bool:
        return len(self.cpu_labels_N) == 0


class Batches:
    """Prepared batches of one set of images for one rank."""

    def __init__(self, image_set: ImageSet, preprocess: Preprocess, rank_slice: RankSlice, device: torch.device):
        self.labels_N = image_set.labels_N
        self.images = image_set.images
        self.preprocess = preprocess
        self.rank_slice = rank_slice
        self.device = device

    def labels_of(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """The labels of each of these batches (sample indices, int64 [B]), on the CPU."""
        return _split(self.labels_N, batches)

    def train(self, batches: Sequence[Tensor], epoch: int, augmentation: Augmentation) -> Iterator[list[MicroBatch]]:
        """This rank's pieces of each of these global batches (sample indices, int64 [B]), augmented."""
        cuts = [self.rank_slice.cut(batch, self.rank_slice.micro_batch_size) for batch in batches]
        loads = [
            micro_batch if len(micro_batch) else batch[:1]
            for batch, cut in zip(batches, cuts, strict=True)
            for _, micro_batch in cut
        ]
        prepared = self._prepared([micro_batch for cut in cuts for micro_batch in cut], loads, epoch, augmentation)
        for cut in cuts:
            yield [next(prepared) for _ in cut]

    def evaluation(self, ids_N: Tensor, batch_size: int) -> Iterator[MicroBatch]:
        """This rank's share of these samples, each exactly once, in pieces of at most `batch_size`."""
        micro_batches = [
            (part, micro_batch) for part, micro_batch in self.rank_slice.cut(ids_N, batch_size) if len(micro_batch)
        ]
        return self._prepared(micro_batches, [micro_batch for _, micro_batch in micro_batches], 0, None)

    def prepared(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """The model's input for each of these tensors of sample indices, as they are: neither cut nor augmented."""
        for images_NCHW in self.images.batches(ids):
            yield self._prepare(images_NCHW.to(self.device, non_blocking=True))

    def dummy_input(self) -> Tensor:
        """One input of the model that stands for no sample."""
        size = self.preprocess.image_size
        return torch.zeros(1, 3, size, size, device=self.device)

    def stored(self, ids_N: Tensor) -> Tensor:
        """These samples' images as the set holds them: uint8 [N, 3, H, W] on the CPU."""
        return next(self.images.batches([ids_N])).cpu()

    def _prepare(self, images_NCHW: Tensor) -> Tensor:
        return normalise(images_NCHW, self.preprocess.mean, self.preprocess.std, self.preprocess.image_size)

    def _prepared(
        self,
        micro_batches: Sequence[tuple[int, Tensor]],
        loads: Sequence[Tensor],
        epoch: int,
        augmentation: Augmentation | None,
    ) -> Iterator[MicroBatch]:
        """These pieces, [(part, sample indices)], with the images `loads`: the same samples, or a stand-in."""
        ids = [ids_N for _, ids_N in micro_batches]
        # One transfer for all labels and indices: one for each piece would cost each step some microseconds.
        labels = labels_there = _split(self.labels_N, ids)
        ids_there: Sequence[Tensor] = ids
        if self.device.type != "cpu":
            labels_there = _split(self.labels_N, ids, self.device)
            ids_there = _split(torch.arange(len(self.labels_N)), ids, self.device)
        images = self.images.batches(loads)
        for index, ((part, ids_N), images_NCHW) in enumerate(zip(micro_batches, images, strict=True)):
            images_NCHW = images_NCHW.to(self.device, non_blocking=True)
            if augmentation and len(ids_N):
                images_NCHW = augment(
                    images_NCHW,
                    ids_there[index],
                    seed=augmentation.seed,
                    epoch=epoch,
                    flip=augmentation.flip,
                    crop_padding=augmentation.crop_padding,
                    fill=augmentation.fill,
                )
            yield MicroBatch(ids_N, self._prepare(images_NCHW), labels_there[index], labels[index], part)


@dataclass(frozen=True)
class Samples:
    """What to train, validate and test on."""

    train: Batches
    test: Batches
    augmentation: Augmentation
    val_ids: Tensor  # indices into the training set; empty = no validation
    train_piece_size: int  # of a rank's largest piece of a batch
    evaluation_batch_size: int


def _split(values_N: Tensor, ids: Sequence[Tensor], device: torch.device | None = None) -> Sequence[Tensor]:
    """The values of each of these tensors of indices; one gather, and one transfer, for all of them."""
    if not ids:
        return ()
    return torch.split(values_N[torch.cat(list(ids))].to(device), [len(ids_B) for ids_B in ids])
