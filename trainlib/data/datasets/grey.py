"""Pictures in memory, or of a user's own, as grey ones where the configuration asks for one channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainlib.data.datasets.dataset import Dataset, ImageSet, channel_statistics
from trainlib.data.datasets.images import InMemoryImages, Pictures
from trainlib.data.pictures.channels import in_channels

AT_ONCE = 1_000  # images


def grey_dataset(dataset: Dataset) -> Dataset:
    """Return the data set with grey images of one channel, and their mean and standard deviation."""
    train, test = (replace(images, images=_grey(images)) for images in (dataset.train, dataset.test))
    mean, std = channel_statistics(train.images)
    return replace(dataset, train=train, test=test, mean=mean, std=std)


def _grey(image_set: ImageSet) -> Pictures:
    images = image_set.images
    if isinstance(images, InMemoryImages):
        parts = [in_channels(part_NCHW, 1) for part_NCHW in torch.split(images.images_NCHW, AT_ONCE)]
        return InMemoryImages(torch.cat(parts), images.device)
    return GreyPictures(images)


class GreyPictures:
    """Pictures of a user's own class, made grey as they are fetched."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device) -> GreyPictures:
        """Return the same pictures with their batches on `device`."""
        return GreyPictures(self.pictures.to(device))

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures uint8 [B, 1, H, W] for each tensor of indices, int64 [B]."""
        for pictures_BCHW in self.pictures.batches(ids):
            yield in_channels(pictures_BCHW, 1)
