"""The loader that turns sample indices into tensors on a rank's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.mix import mix
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.datasets.images import InMemoryImages, as_images
from trainlib.data.targets import Targets


class MicroBatch(NamedTuple):
    """Samples that a rank computes in one forward pass; all of one shard of the global batch.

    ids_N          int64 [N] on the CPU: the samples' indices in their image set
    images_NCHW    the model's input on the device: float32 [N, C, S, S], or features of a frozen backbone. An empty
                   micro-batch holds one dummy image, so that its rank can take part in the collectives of the step
    targets        what the model is to answer: of the classes of the samples, or of mixtures
    shard          index of the shard of the global batch
    places_KN      of a raw micro-batch (see `BatchLoader.raw_batches`): how each image is cut and mirrored
    """

    ids_N: Tensor
    images_NCHW: Tensor
    targets: Targets
    shard: int
    places_KN: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """True if there are no samples, and the image is a dummy."""
        return len(self.targets) == 0


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
        """Return the labels, on the CPU, of each of these batches of sample indices, int64 [B]."""
        return _gather_split(self.labels_N, batches)

    def train_batches(
        self,
        batches: Sequence[Tensor],
        epoch: int,
        augmentation: Augmentation,
        draws: Sequence[Tensor] | None = None,
        first_step: int = 0,
    ) -> Iterator[list[MicroBatch]]:
        """Yield this rank's augmented micro-batches of each of these global batches of sample indices, int64 [B].

        draws        for each batch the draw numbers of its samples (see `plan`), by which they are augmented; None:
                     indices
        first_step   the number of the first batch's step, by which samples are mixed
        """
        is_mixed = bool(augmentation.mixing)
        steps = [
            self._pieces(batch, draws_B, first_step + i, is_mixed)
            for i, (batch, draws_B) in enumerate(zip(batches, draws or batches, strict=True))
        ]
        loaded = self._load([piece for pieces in steps for piece in pieces], epoch, augmentation)
        for pieces in steps:
            yield [next(loaded) for _ in pieces]

    def raw_batches(
        self, batches: Sequence[Tensor], epoch: int, augmentation: Augmentation, draws: Sequence[Tensor]
    ) -> Iterator[list[MicroBatch]]:
        """Yield what `train_batches` does, before it is changed on the device (see `finished`), with no kernel for it.

        The images are uint8 [N, C, H, W]; or their indices, int64 [N], where all images are on the device.
        """
        steps = [self._pieces(batch, draws_B, 0, False) for batch, draws_B in zip(batches, draws, strict=True)]
        loaded = self._load([piece for pieces in steps for piece in pieces], epoch, augmentation, is_raw=True)
        for pieces in steps:
            yield [next(loaded) for _ in pieces]

    def finished(self, raw: MicroBatch, augmentation: Augmentation) -> MicroBatch:
        """Return a micro-batch of `raw_batches` as `train_batches` gives it; the same operations for each of a size."""
        images_NCHW = raw.images_NCHW
        if (resident_NCHW := self._resident) is not None:
            images_NCHW = resident_NCHW.index_select(0, images_NCHW)
        if raw.places_KN is not None and not raw.is_empty:
            images_NCHW = augmentation.crop_and_flip(images_NCHW, raw.places_KN)
        return raw._replace(images_NCHW=self._to_model_input(images_NCHW), places_KN=None)

    @property
    def _resident(self) -> Tensor | None:
        """All images, where they are on the device."""
        images = self.images
        is_there = isinstance(images, InMemoryImages) and images.images_NCHW.device == images.device == self.device
        return images.images_NCHW if is_there and isinstance(images, InMemoryImages) else None

    def eval_batches(self, ids_N: Tensor, batch_size: int) -> Iterator[MicroBatch]:
        """Yield this rank's share of these samples, each exactly once, in batches of at most `batch_size`."""
        slices = self.rank_slice.split(ids_N, batch_size)
        return self._load([_Piece(shard, ids_B, ids_B, ids_B) for shard, ids_B in slices if len(ids_B)])

    def model_inputs(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the model's input for each of these tensors of sample indices, neither split over ranks nor augmented.

        ids   int64 [B] each; every one gives float32 [B, C, S, S] on the device
        """
        for images_NCHW in self.images.batches(ids):
            yield self._to_model_input(images_NCHW.to(self.device, non_blocking=True))

    def dummy_input(self) -> Tensor:
        """Return a model input of one training image, all zeros, on the device."""
        first = next(self.images.batches([torch.tensor([0])], 0))
        return torch.zeros_like(self._to_model_input(first.to(self.device)))

    def raw_images(self, ids_N: Tensor) -> Tensor:
        """Return the images of these samples as the image set holds them: uint8 [N, C, H, W] on the CPU."""
        return next(self.images.batches([ids_N])).cpu()

    def _pieces(self, batch: Tensor, draws_B: Tensor, step: int, is_mixed: bool) -> list[_Piece]:
        """Return what to load for this rank's micro-batches of a global batch."""
        size = self.rank_slice.micro_batch_size
        own = self.rank_slice.split(batch, size)
        own_draws = own if draws_B is batch else self.rank_slice.split(draws_B, size)
        if not is_mixed:
            # A dummy image for an empty shard, of the first sample of the batch.
            return [
                _Piece(shard, ids_N, *((ids_N, draws_N) if len(ids_N) else (batch[:1], draws_B[:1])))
                for (shard, ids_N), (_, draws_N) in zip(own, own_draws, strict=True)
            ]
        before = self.rank_slice.split(batch.roll(1), size)
        before_draws = self.rank_slice.split(draws_B.roll(1), size)
        pieces = []
        for (shard, ids_N), (_, draws_N), (_, before_N), (_, before_draws_N) in zip(
            own, own_draws, before, before_draws, strict=True
        ):
            images_M, draws_M = torch.cat([before_N[:1], ids_N]), torch.cat([before_draws_N[:1], draws_N])
            if len(ids_N) == 0:
                images_M, draws_M = batch[:1], draws_B[:1]
            pieces.append(_Piece(shard, ids_N, images_M, draws_M, before_N, step))
        return pieces

    def _load(
        self,
        pieces: Sequence[_Piece],
        epoch: int | None = None,
        augmentation: Augmentation | None = None,
        *,
        is_raw: bool = False,
    ) -> Iterator[MicroBatch]:
        """Yield the micro-batches; epoch None: those of an evaluation."""
        # One transfer for all labels and indices: one for each micro-batch would cost each step some microseconds.
        ids = [piece.ids_N for piece in pieces] + [piece.before_N for piece in pieces if piece.before_N is not None]
        draws: Sequence[Tensor] = [piece.draws_M for piece in pieces]
        cpu_labels = labels = _gather_split(self.labels_N, ids)
        if self.device.type != "cpu":
            labels = _gather_split(self.labels_N, ids, self.device)
        if augmentation is not None and epoch is not None and draws:  # crops and flips of the whole epoch at once
            sizes = [len(draws_M) for draws_M in draws]
            parts = torch.split(augmentation.places(torch.cat(list(draws)), epoch), sizes, dim=1)
            # In one transfer, but each batch's in one piece of memory.
            flat = torch.cat([part.flatten() for part in parts]).to(self.device).split([part.numel() for part in parts])
            places = [values.view(part.shape) for values, part in zip(flat, parts, strict=True)]
        targets = [Targets(*both) for both in zip(labels, cpu_labels, strict=True)]
        second = targets[len(pieces) :]  # of all pieces, or of none
        image_ids = [piece.images_M for piece in pieces]
        if is_raw and self._resident is not None:
            images = iter(torch.split(torch.cat(image_ids).to(self.device), [len(ids_M) for ids_M in image_ids]))
        else:
            images = self.images.batches(image_ids) if epoch is None else self.images.batches(image_ids, epoch, draws)
        for i, (piece, images_NCHW) in enumerate(zip(pieces, images, strict=True)):
            images_NCHW = images_NCHW.to(self.device, non_blocking=True)
            if is_raw:
                yield MicroBatch(piece.ids_N, images_NCHW, targets[i], piece.shard, places[i])
                continue
            if augmentation is None or epoch is None or len(piece.ids_N) == 0:
                values = self._to_model_input(images_NCHW)
            else:
                images_NCHW = augmentation.crop_and_flip(images_NCHW, places[i])
                images_NCHW = augmentation.change(images_NCHW, draws[i], epoch)
                values = augmentation.erase(self._to_model_input(images_NCHW), draws[i], epoch)
                if augmentation.mixing and piece.before_N is not None:
                    mixture = augmentation.mixing.draw(piece.step, values.shape[2], values.shape[3])
                    values = mix(values, mixture)
                    targets[i] = targets[i].mixed_with(second[i], mixture.weight)
            yield MicroBatch(piece.ids_N, values, targets[i], piece.shard)


class _Piece(NamedTuple):
    """What to load for one micro-batch; all indices int64 on the CPU.

    ids_N       its samples
    images_M    the images to load: those of its samples; with one before them where they are mixed; or one dummy image
    draws_M     the draw numbers of these images
    before_N    the sample before each in the global batch, where they are mixed
    step        the step's number, where they are mixed
    """

    shard: int
    ids_N: Tensor
    images_M: Tensor
    draws_M: Tensor
    before_N: Tensor | None = None
    step: int = 0


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
