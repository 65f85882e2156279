"""A data set as the trainer sees it: training and test images with labels, class names and channel statistics."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainlib.data.datasets.images import Pictures
from trainlib.data.identity.listing import Listing

PerChannel = tuple[float, ...]  # one value each for red, green and blue, or one for grey

STATISTICS_SAMPLES = 2_000


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels, int64 [N] or bool [N, C] on the CPU (see `targets`).

    identities_N   a number for each sample, int64 [N], that stays its own where others come and go: random splits go by
                   it; None where it is the sample's index
    groups_N       int64 [N]: no split separates samples with the same number; None where each stands alone
    """

    images: Pictures
    labels_N: Tensor
    identities_N: Tensor | None = None
    groups_N: Tensor | None = None


@dataclass(frozen=True)
class Dataset:
    """Training and test images, with class names in the order of the labels.

    mean, std   of each channel of the training images, scaled to 0..1
    listing     what the data are made of, to tell whether they are still the same
    val_ids     indices of the training images that the data bring for validation, int64; None where it is drawn
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: PerChannel
    std: PerChannel
    listing: Listing = field(default_factory=Listing)
    val_ids: Tensor | None = None


def channel_statistics(images: Pictures) -> tuple[PerChannel, PerChannel]:
    """Return mean and standard deviation of each channel, scaled to 0..1, over at most 2,000 evenly spaced images.

    Summed in integers, so that in-memory and streamed images give the same bits. A standard deviation is at least
    1/255, so that images of one colour can be normalized by it.
    """
    num_chosen = min(len(images), STATISTICS_SAMPLES)
    chosen = torch.arange(num_chosen) * len(images) // num_chosen
    total_C, squares_C, count = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0
    for batch in images.batches(torch.split(chosen, 50)):
        values = batch.cpu().long()
        total_C = total_C + values.sum(dim=(0, 2, 3))
        squares_C = squares_C + values.square().sum(dim=(0, 2, 3))
        count += values[:, 0].numel()
    means = [total / count / 255 for total in total_C.tolist()]
    stds = []
    for total, squares in zip(total_C.tolist(), squares_C.tolist(), strict=True):
        variance = (squares * count - total * total) / count**2
        stds.append(max(variance**0.5, 1.0) / 255)
    return tuple(means), tuple(stds)
