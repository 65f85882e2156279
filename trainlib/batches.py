"""From the plan to tensors on the device: each step's images, this rank's pieces only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.data.images import ImageSet
from trainlib.data.transforms import augment, normalise
from trainlib.plan import micro_batches, share


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
    flip: bool
    crop_padding: int

    def __bool__(self) -> bool:
        return self.flip or self.crop_padding > 0


@dataclass(frozen=True)
class Shard:
    """Which part of every batch this process computes, and in pieces of what size."""

    rank: int
    world_size: int
    micro_batch_size: int | None

    def pieces(self, batch_ids_N: Tensor) -> list[Tensor]:
        """This rank's sample indices of a batch, cut into micro-batches; one empty piece where it has none."""
        mine = batch_ids_N[share(len(batch_ids_N), self.world_size, self.rank)]
        return micro_batches(mine, self.micro_batch_size)


@dataclass(frozen=True)
class Piece:
    """A micro-batch. An empty one carries a single stand-in image and no labels, so that the rank can take part."""

    ids_N: Tensor  # the samples' indices in their image set, on the CPU
    images_NCHW: Tensor
    labels_N: Tensor  # on the images' device
    cpu_labels_N: Tensor

    @property
    def is_empty(self) -> bool:
        return len(self.cpu_labels_N) == 0


class Batches:
    """Prepared batches of one set of images for one rank."""

    def __init__(self, image_set: ImageSet, preprocess: Preprocess, shard: Shard, device: torch.device):
        self.labels_N = image_set.labels_N
        self._images = image_set.images
        self.preprocess = preprocess
        self._shard = shard
        self._device = device

    def train(self, batches: Sequence[Tensor], epoch: int, augmentation: Augmentation) -> Iterator[list[Piece]]:
        """This rank's pieces of each of these global batches (sample indices, int64 [B]), augmented."""
        pieces = [self._shard.pieces(batch) for batch in batches]
        loads = [
            piece if len(piece) else batch[:1] for batch, cut in zip(batches, pieces, strict=True) for piece in cut
        ]
        decoded = self._images.batches(loads)
        for cut in pieces:
            yield [self._piece(piece, next(decoded), epoch, augmentation) for piece in cut]

    def evaluation(self, ids_N: Tensor, batch_size: int) -> Iterator[Piece]:
        """This rank's share of these samples, each exactly once, in pieces of at most `batch_size`."""
        mine = ids_N[share(len(ids_N), self._shard.world_size, self._shard.rank)]
        pieces = list(torch.split(mine, batch_size)) if len(mine) else []
        for piece, images_NCHW in zip(pieces, self._images.batches(pieces), strict=True):
            yield self._piece(piece, images_NCHW, 0, None)

    def stored(self, ids_N: Tensor) -> Tensor:
        """These samples' images as the set holds them: uint8 [N, 3, H, W] on the CPU."""
        return next(self._images.batches([ids_N])).cpu()

    def _piece(self, ids_N: Tensor, images_NCHW: Tensor, epoch: int, augmentation: Augmentation | None) -> Piece:
        images_NCHW = images_NCHW.to(self._device, non_blocking=True)
        if augmentation and len(ids_N):
            images_NCHW = augment(
                images_NCHW,
                ids_N.to(self._device, non_blocking=True),
                seed=augmentation.seed,
                epoch=epoch,
                flip=augmentation.flip,
                crop_padding=augmentation.crop_padding,
            )
        prepared = normalise(images_NCHW, self.preprocess.mean, self.preprocess.std, self.preprocess.image_size)
        cpu_labels_N = self.labels_N[ids_N]
        return Piece(ids_N, prepared, cpu_labels_N.to(self._device, non_blocking=True), cpu_labels_N)
