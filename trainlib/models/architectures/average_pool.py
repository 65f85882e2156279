"""Average pooling to a fixed size whose backward pass is deterministic on GPUs, in place of torch's."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn


class MatrixAveragePool2d(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, up to rounding; what has the right size already stays as it is.

    torch's backward pass on GPUs adds with atomics, in an order that changes from run to run.

    output_size   height and width; None for the input's
    """

    def __init__(self, output_size: tuple[int | None, int | None]):
        super().__init__()
        self.output_size = output_size

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the means over the cells of a grid: [N, C, H, W] to [N, C, *output_size]."""
        size = images_NCHW.shape[-2:]
        height, width = (asked or own for asked, own in zip(self.output_size, size, strict=True))
        if (height, width) == size:
            return images_NCHW
        with torch.autocast(images_NCHW.device.type, enabled=False):  # whose narrow numbers would round the means
            rows_HI = averaging_matrix(size[0], height, images_NCHW.device)
            columns_WJ = averaging_matrix(size[1], width, images_NCHW.device)
            return (rows_HI @ images_NCHW.float() @ columns_WJ.T).to(images_NCHW.dtype)


@lru_cache(maxsize=32)
def averaging_matrix(num_inputs: int, num_outputs: int, device: torch.device) -> Tensor:
    """Return the float32 matrix [outputs, inputs] whose rows average what torch's adaptive pooling averages."""
    matrix = torch.zeros(num_outputs, num_inputs, device="cpu")
    for i in range(num_outputs):
        first, end = i * num_inputs // num_outputs, -(-(i + 1) * num_inputs // num_outputs)
        matrix[i, first:end] = 1 / (end - first)
    return matrix.to(device)


def replace_average_pools(module: nn.Module) -> None:
    """Replace each `nn.AdaptiveAvgPool2d` in a module, but for those to a single mean, which are deterministic."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                size = child.output_size
                height, width = size if isinstance(size, tuple | list) else (size, size)
                if (height, width) != (1, 1):
                    setattr(parent, name, MatrixAveragePool2d((height, width)).train(child.training))
