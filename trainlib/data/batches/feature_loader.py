"""The loader of cached features, which take the place of the images where the layers that compute them are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainlib.data.batches.loader import BatchLoader
from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.datasets.images import InMemoryImages


class FeatureLoader(BatchLoader):
    """Makes the same micro-batches as an image loader, with features of the frozen layers in place of images."""

    def __init__(self, image_loader: BatchLoader, features: CachedFeatures):
        super().__init__(
            ImageSet(features, image_loader.labels_N),
            image_loader.preprocess,
            image_loader.rank_slice,
            image_loader.device,
        )
        self._image_loader = image_loader
        self._features = features
        self._to_model_input = lambda features_NX: features_NX

    def dummy_input(self) -> Tensor:
        """Return a model input of one sample's features, all zeros, on the device."""
        return torch.zeros_like(self._features.features_NX[:1], device=self.device)

    def raw_images(self, ids_N: Tensor) -> Tensor:
        """Return the images of these samples: uint8 [N, C, H, W] on the CPU."""
        return self._image_loader.raw_images(ids_N)


class CachedFeatures:
    """The features of a set of images, fetched by sample index as `Images` are.

    compute       frozen layers: model input float32 [B, C, S, S] to features [B, ...]
    image_loader  loader of the images that the features are computed from
    features_NX   the cached features [N, ...] of the samples `ids_N`, in this order
    sizes         batch sizes at which the frozen layers give exactly the cached bits; a batch of another size is
                  computed anew from its images
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        image_loader: BatchLoader,
        ids_N: Tensor,
        features_NX: Tensor,
        sizes: frozenset[int],
    ):
        self.features_NX = features_NX
        self._compute, self._image_loader, self._sizes = compute, image_loader, sizes
        self._cached = InMemoryImages(features_NX, image_loader.device)
        self._row_of_N = torch.full((len(image_loader.images),), -1)
        self._row_of_N[ids_N] = torch.arange(len(ids_N))

    def __len__(self) -> int:
        return len(self._row_of_N)

    def to(self, device: torch.device) -> CachedFeatures:
        """Return the features themselves: they were computed on the device of their loader."""
        return self

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the features [B, ...] for each tensor of sample indices, int64 [B]: the same in every epoch."""
        cached = self._cached.batches([self._row_of_N[ids_B] for ids_B in ids if len(ids_B) in self._sizes])
        images = self._image_loader.model_inputs([ids_B for ids_B in ids if len(ids_B) not in self._sizes])
        for ids_B in ids:
            yield next(cached) if len(ids_B) in self._sizes else self._compute(next(images))
