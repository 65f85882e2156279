"""Average pooling by matrix products computes what torch's adaptive pooling does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlib.models.architectures.average_pool import MatrixAveragePool2d, replace_average_pools


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (8, 13), (14, 14)])
@pytest.mark.parametrize("output_size", [(7, 7), (6, 6), (3, 5), (None, 4)])
def test_values_and_gradients_are_those_of_torch(size: tuple[int, int], output_size: tuple[int | None, int]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    results = []
    for pool in (nn.AdaptiveAvgPool2d(output_size), MatrixAveragePool2d(output_size)):
        leaf = images.clone().requires_grad_()
        pooled = pool(leaf)
        pooled.square().sum().backward()
        results.append((pooled, leaf.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_what_has_its_size_already_stays() -> None:
    images = torch.randn(2, 3, 7, 7)
    assert MatrixAveragePool2d((7, 7))(images) is images


def test_narrow_numbers_keep_their_type_and_are_averaged_in_float32() -> None:
    images = torch.randn(2, 3, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = MatrixAveragePool2d((2, 2))(images)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, MatrixAveragePool2d((2, 2))(images.float()).bfloat16())


def test_only_pools_to_several_means_are_replaced() -> None:
    network = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(7)), nn.AvgPool2d(2)
    )
    replace_average_pools(network)
    kinds = [type(module).__name__ for module in network.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == ["AdaptiveAvgPool2d", "AdaptiveAvgPool2d", "MatrixAveragePool2d", "AvgPool2d"]
