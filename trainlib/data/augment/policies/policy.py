"""Augmentation policies: which operations, and how strong, each sample gets. They are torchvision's, with its ranges.

Everything is drawn here and applied in `operations`, so that a test can hand in what is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.data.augment.policies.autoaugment import POLICIES
from trainlib.data.augment.policies.operations import Operation, Operations, apply_operations, to_device

_O = Operation
_FACTORS = (_O.BRIGHTNESS, _O.COLOR, _O.CONTRAST, _O.SHARPNESS)
_SIGNED = (_O.SHEAR_X, _O.SHEAR_Y, _O.TRANSLATE_X, _O.TRANSLATE_Y, _O.ROTATE, *_FACTORS)
_WITHOUT_INVERT = tuple(operation for operation in _O if operation not in (_O.INVERT, _O.HUE))

BINS = 31  # magnitudes of RandAugment and TrivialAugment; 10 of the others


class Policy(Protocol):
    """A rule that draws operations for each sample of a batch, and applies them."""

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Change the images, uint8 [N, C, H, W]."""
        ...


@dataclass(frozen=True)
class Space:
    """The arguments that operations may have: middle + magnitude, and middle - magnitude where that is a choice.

    magnitudes_KB   float64 [number of `Operation`s, bins]
    middles_K       1 for a factor, else 0
    signed_K        True for an operation whose magnitude is negative in half of the samples
    """

    magnitudes_KB: Tensor
    middles_K: Tensor
    signed_K: Tensor

    def draw(self, operations_N: Tensor, bins_N: Tensor, signs_N: Tensor) -> Operations:
        """Return operations with the arguments of these bins, negative where `signs_N`, 0 or 1, is 1."""
        magnitudes_N = self.magnitudes_KB[operations_N, bins_N]
        negative_N = self.signed_K[operations_N] & (signs_N == 1)
        arguments_N = self.middles_K[operations_N] + torch.where(negative_N, -magnitudes_N, magnitudes_N)
        return Operations(operations_N, arguments_N)


class _Sequence(ABC):
    """A policy whose operations are applied one after another."""

    @abstractmethod
    def draw(self, draws: Draws, height: int, width: int) -> list[Operations]:
        """Return the operations of each sample, one after another."""

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Change the images, uint8 [N, C, H, W]."""
        height, width = images_NCHW.shape[2:]
        return apply_stages(images_NCHW, self.draw(draws, height, width))


@dataclass(frozen=True)
class TrivialAugment(_Sequence):
    """TrivialAugmentWide: one operation, at any of 31 magnitudes (Müller & Hutter, 2021)."""

    def draw(self, draws: Draws, height: int, width: int) -> list[Operations]:
        """Return the operations of each sample, one after another."""
        space = _space(BINS, 0.99, 32.0, 32.0, 135.0, 0.99, (8, 6))
        return [_draw_any(space, _WITHOUT_INVERT, draws, "trivial", draws.integers("trivial bin", 1, BINS)[:, 0])]


@dataclass(frozen=True)
class RandAugment(_Sequence):
    """RandAugment: `num_ops` operations at one of 31 magnitudes, 0 to 30 (Cubuk et al., 2020)."""

    num_ops: int = 2
    magnitude: int = 9

    def draw(self, draws: Draws, height: int, width: int) -> list[Operations]:
        """Return the operations of each sample, one after another."""
        space = _space(BINS, 0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, (8, 4))
        bins_N = torch.full_like(draws.ids_N, self.magnitude)
        return [
            _draw_any(space, _WITHOUT_INVERT, draws, f"randaugment {stage}", bins_N) for stage in range(self.num_ops)
        ]


@dataclass(frozen=True)
class AutoAugment(_Sequence):
    """AutoAugment: one of 25 pairs of operations, learned for imagenet, cifar10 or svhn (Cubuk et al., 2019)."""

    policy: str = "imagenet"

    def draw(self, draws: Draws, height: int, width: int) -> list[Operations]:
        """Return the operations of each sample, one after another."""
        space = _space(10, 0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, (8, 4))
        pairs = POLICIES[self.policy]
        chosen_N = draws.integers("autoaugment pair", 1, len(pairs))[:, 0]
        chances_N2 = draws.uniform("autoaugment chance", 2)
        signs_N2 = draws.integers("autoaugment sign", 2, 2)
        stages = []
        for stage in range(2):
            operations_N = torch.tensor([pair[stage][0] for pair in pairs])[chosen_N]
            probabilities_N = torch.tensor([pair[stage][1] for pair in pairs], dtype=torch.float64)[chosen_N]
            bins_N = torch.tensor([pair[stage][2] for pair in pairs])[chosen_N]
            operations_N = torch.where(chances_N2[:, stage] < probabilities_N, operations_N, _O.IDENTITY)
            stages.append(space.draw(operations_N, bins_N, signs_N2[:, stage]))
        return stages


@dataclass(frozen=True)
class AugMix:
    """AugMix: the weighted mean of an image and `mixture_width` chains of 1 to 3 operations (Hendrycks et al., 2020).

    severity   1 to 10: how many of 10 magnitudes may occur
    alpha      of the Dirichlet distribution of the weights
    """

    severity: int = 3
    mixture_width: int = 3
    alpha: float = 1.0

    def draw(self, draws: Draws, height: int, width: int) -> tuple[list[list[Operations]], Tensor]:
        """Return the operations of each chain, and the weights of the image and of each chain, float64 [N, 1 + chains].

        A chain that is shorter than 3 ends with identities.
        """
        space = _space(10, 0.3, width / 3, height / 3, 30.0, 0.9, (4, 4))
        usable = tuple(operation for operation in _WITHOUT_INVERT if operation != _O.IDENTITY)
        lengths = 1 + draws.integers("augmix length", self.mixture_width, 3)
        chains = []
        for chain in range(self.mixture_width):
            bins = draws.integers(f"augmix bins {chain}", 3, self.severity)
            stages = [_draw_any(space, usable, draws, f"augmix {chain} {i}", bins[:, i]) for i in range(3)]
            chains.append(
                [
                    Operations(torch.where(lengths[:, chain] > i, stage.operations_N, _O.IDENTITY), stage.arguments_N)
                    for i, stage in enumerate(stages)
                ]
            )
        image_and_mix = draws.dirichlet("augmix image", 1, 2, self.alpha)[:, 0]
        weights = draws.dirichlet("augmix chains", 1, self.mixture_width, self.alpha)[:, 0]
        return chains, torch.cat([image_and_mix[:, :1], weights * image_and_mix[:, 1:]], dim=1)

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Change the images, uint8 [N, C, H, W]."""
        height, width = images_NCHW.shape[2:]
        return mix_chains(images_NCHW, *self.draw(draws, height, width))


def mix_chains(images_NCHW: Tensor, chains: Sequence[Sequence[Operations]], weights: Tensor) -> Tensor:
    """Return the weighted sum of images and what chains of operations make of them; weights as `AugMix.draw` gives."""
    of_image, *of_chains = to_device(weights.float(), images_NCHW.device).view(*weights.shape, 1, 1, 1).unbind(1)
    mixed = of_image * images_NCHW.float()  # not of uint8, which torch multiplies slowly on CPUs
    for chain, weights_N111 in zip(chains, of_chains, strict=True):
        mixed.add_(weights_N111 * apply_stages(images_NCHW, chain).float())
    return mixed.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def apply_stages(images_NCHW: Tensor, stages: Sequence[Operations]) -> Tensor:
    """Apply the operations of several stages, one after another, to uint8 images [N, C, H, W]."""
    for stage in stages:
        images_NCHW = apply_operations(images_NCHW, stage)
    return images_NCHW


def _draw_any(space: Space, usable: Sequence[Operation], draws: Draws, name: str, bins_N: Tensor) -> Operations:
    """Draw one of the usable operations for each sample."""
    chosen_N = draws.integers(f"{name} operation", 1, len(usable))[:, 0]
    signs_N = draws.integers(f"{name} sign", 1, 2)[:, 0]
    return space.draw(torch.tensor(usable)[chosen_N], bins_N, signs_N)


@lru_cache(maxsize=8)
def _space(
    bins: int, shear: float, columns: float, rows: float, degrees: float, factor: float, posterize: tuple[int, int]
) -> Space:
    """Return the arguments of all operations, in float32 as torchvision computes them, for its largest magnitudes.

    posterize   the most bits, and how many fewer the strongest leaves
    """
    largest = {
        _O.SHEAR_X: shear,
        _O.SHEAR_Y: shear,
        _O.TRANSLATE_X: columns,
        _O.TRANSLATE_Y: rows,
        _O.ROTATE: degrees,
        **dict.fromkeys(_FACTORS, factor),
    }
    rows_KB = []
    for operation in _O:
        if operation == _O.POSTERIZE:
            most, fewer = posterize
            row = (most - torch.arange(bins) / ((bins - 1) / fewer)).round()
        elif operation == _O.SOLARIZE:
            row = torch.linspace(1.0, 0.0, bins)
        else:
            row = torch.linspace(0.0, largest.get(operation, 0.0), bins)
        rows_KB.append(row.double())
    magnitudes_KB = torch.stack(rows_KB)
    magnitudes_KB[_O.SOLARIZE] *= 255
    for operation in (_O.TRANSLATE_X, _O.TRANSLATE_Y):
        magnitudes_KB[operation] = magnitudes_KB[operation].trunc()
    middles_K = torch.tensor([float(operation in _FACTORS) for operation in _O], dtype=torch.float64)
    return Space(magnitudes_KB, middles_K, torch.tensor([operation in _SIGNED for operation in _O]))
