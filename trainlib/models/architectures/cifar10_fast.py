"""The network `cifar10_fast` of a fast CIFAR-10 recipe: whitened patches, then three groups of two convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from trainlib.config import Size, sides

GROUP_CHANNELS = (64, 256, 256)
PATCH_SIDE = 2
POOLING = 2 ** len(GROUP_CHANNELS)

# Statistics move fast, as there are few steps. float32 is exact enough for so small an eps, which only prevents a
# division by 0 for a channel without variance.
NORM_MOMENTUM, NORM_EPS = 0.4, 1e-12


class Cifar10Fast(nn.Sequential):
    """A convolutional network from images float32 [N, C, S, S], S at least 9, to logits [N, num_classes].

    After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), and the later recipe with Muon: patches of
    2 x 2 become 24 channels (8 of grey images); then GELU, three groups that halve the side, a maximum over what is
    left of it, and a linear layer whose weights begin with a standard deviation of 1 and whose output is divided by
    their number.

    width       scales the channels of the groups: 64, 256, 256
    whitening   the first convolution has fixed weights that whiten patches of the training images; random until
                `trainlib.models.architectures.whitening.init_whitening` fills them in
    dirac       convolutions begin with their first output channels as copies of their inputs
    channels    of the images
    """

    whiten: nn.Conv2d

    def __init__(
        self,
        num_classes: int,
        image_size: Size,
        width: float = 1.0,
        whitening: bool = True,
        dirac: bool = True,
        channels: int = 3,
    ):
        rows, columns = ((side - PATCH_SIDE + 1) // POOLING for side in sides(image_size))
        if min(rows, columns) < 1:
            raise ValueError(f"needs images of {POOLING + PATCH_SIDE - 1} x {POOLING + PATCH_SIDE - 1} pixels or more")
        inputs = 2 * channels * PATCH_SIDE**2
        whiten = nn.Conv2d(channels, inputs, PATCH_SIDE)
        whiten.weight.requires_grad_(not whitening)
        groups = nn.Sequential()
        for channels in GROUP_CHANNELS:
            outputs = max(1, round(channels * width))
            groups.append(_group(inputs, outputs, dirac))
            inputs = outputs
        head = nn.Linear(inputs, num_classes, bias=False)
        head.weight.detach().div_(head.weight.detach().std())
        super().__init__(
            OrderedDict(
                whiten=whiten,
                activation=nn.GELU(),
                features=groups,
                pool=nn.MaxPool2d((rows, columns)),
                flatten=nn.Flatten(),
                head=head,
                scale=_Divide(inputs),
            )
        )
        self.whitening = whitening


class _Divide(nn.Module):
    """A layer that divides by a constant, which is no weight."""

    def __init__(self, divisor: int):
        super().__init__()
        self.divisor = divisor

    def forward(self, values: Tensor) -> Tensor:
        return values / self.divisor


def _group(inputs: int, outputs: int, dirac: bool) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=_convolution(inputs, outputs, dirac),
            pool=nn.MaxPool2d(2),
            norm1=_norm(outputs),
            activation1=nn.GELU(),
            conv2=_convolution(outputs, outputs, dirac),
            norm2=_norm(outputs),
            activation2=nn.GELU(),
        )
    )


def _convolution(inputs: int, outputs: int, dirac: bool) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    if dirac:
        nn.init.dirac_(convolution.weight.detach()[:inputs])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Build a BatchNorm whose weights stay 1, as the convolution before it has a scale already."""
    norm = nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
