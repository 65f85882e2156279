"""Test-time augmentation: the mean of the logits over several views of each image."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Network = Callable[[Tensor], Tensor]  # images float32 [N, 3, S, S], normalised, to logits [N, C]


def with_tta(network: Network, test_time: str) -> Network:
    """Return a function from images to the network's mean logits over several views of each image.

    test_time   `evaluation.test_time`, the views:
        none            the image alone: the network itself is returned
        flip            the image and its mirror image, left to right
        flip_translate  these two, with half of the weight, and both of the image moved by one pixel, up and left and
                        down and right, with the other half; reflected pixels fill the edge

    The network must be in eval mode. Method: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024).
    """

    def flip(images_NCHW: Tensor) -> Tensor:
        return 0.5 * network(images_NCHW) + 0.5 * network(images_NCHW.flip(3))

    def flip_translate(images_NCHW: Tensor) -> Tensor:
        height, width = images_NCHW.shape[2:]
        padded = F.pad(images_NCHW, (1, 1, 1, 1), mode="reflect")
        moved_NC = 0.5 * flip(padded[:, :, 2:, 2:]) + 0.5 * flip(padded[:, :, :height, :width])
        return 0.5 * flip(images_NCHW) + 0.5 * moved_NC

    return {"none": network, "flip": flip, "flip_translate": flip_translate}[test_time]
