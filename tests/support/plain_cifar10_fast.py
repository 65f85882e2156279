"""The network of the fast recipe written out in plain PyTorch, and images for it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Plain(nn.Module):
    """The network as anybody would write it; it draws its initial weights in the order of its layers."""

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), num_classes: int = 10, dirac: bool = True):
        super().__init__()
        channels = (24, *widths)
        self.whiten = nn.Conv2d(3, 24, 2)
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(channels):
            for fan_in in (inputs, outputs):
                convolution = nn.Conv2d(fan_in, outputs, 3, padding="same", bias=False)
                if dirac:
                    for channel in range(min(fan_in, outputs)):
                        convolution.weight.data[channel] = 0
                        convolution.weight.data[channel, channel, 1, 1] = 1
                self.convolutions.append(convolution)
                self.norms.append(nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4))
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        for group in range(3):
            x = F.max_pool2d(self.convolutions[2 * group](x), 2)
            x = F.gelu(self.norms[2 * group](x))
            x = F.gelu(self.norms[2 * group + 1](self.convolutions[2 * group + 1](x)))
        x = x.amax(dim=(2, 3))
        logits: Tensor = self.head(x) / x.shape[1]
        return logits

    def named_as_ours(self) -> dict[str, Tensor]:
        """The state_dict under the names that checkpoints have."""
        assert self.whiten.bias is not None
        state = {"whiten.weight": self.whiten.weight, "whiten.bias": self.whiten.bias, "head.weight": self.head.weight}
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            place = f"features.{index // 2}"
            state[f"{place}.conv{index % 2 + 1}.weight"] = convolution.get_parameter("weight")
            state |= {f"{place}.norm{index % 2 + 1}.{name}": value for name, value in norm.state_dict().items()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}


def random_images(n: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
