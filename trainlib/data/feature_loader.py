"""Batches of what frozen layers make of the images, by sample index, in the place of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainlib.data.images import ImageSet, ResidentImages
from trainlib.data.loader import Batches


class FeatureBatches(Batches):
    """Batches of features in the place of images; of the same samples, in the same pieces."""

    def __init__(self, batches: Batches, features: FeatureImages):
        super().__init__(ImageSet(features, batches.labels_N), batches.preprocess, batches.rank_slice, batches.device)
        self._of_images = batches
        self._features = features

    def dummy_input(self) -> Tensor:
        return torch.zeros_like(self._features.rows[:1], device=self.device)

    def stored(self, ids_N: Tensor) -> Tensor:
        return self._of_images.stored(ids_N)

    def _prepare(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW


class FeatureImages:
    """An `Images` of features: those that are kept, or anew for a batch of a size that gives other bits.

    compute  images, as the model gets them, to their features
    rows     the features of the samples `ids_N` of `images`, in this order
    sizes    of batches for which the kept ones are the same in every bit
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], images: Batches, ids_N: Tensor, rows: Tensor, sizes: frozenset[int]
    ):
        self.rows = rows
        self._compute, self._images, self._sizes = compute, images, sizes
        self._kept = ResidentImages(rows, images.device)
        self._row_of_N = torch.full((len(images.images),), -1)
        self._row_of_N[ids_N] = torch.arange(len(ids_N))

    def __len__(self) -> int:
        return len(self._row_of_N)

    def to(self, device: torch.device) -> FeatureImages:
        """They are where batches are to be already."""
        return self

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        kept = self._kept.batches([self._row_of_N[ids_B] for ids_B in ids if len(ids_B) in self._sizes])
        images = self._images.prepared([ids_B for ids_B in ids if len(ids_B) not in self._sizes])
        for ids_B in ids:
            yield next(kept) if len(ids_B) in self._sizes else self._compute(next(images))
