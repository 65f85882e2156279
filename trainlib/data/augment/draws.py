"""Random numbers of samples: each a hash of a key and the sample's index, computed on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.randomness import draw, key

_ATTEMPTS = 16  # of the gamma sampler, which accepts at least 95% of them: all fail once in 10^20 numbers


@dataclass(frozen=True)
class Draws:
    """A source of random numbers for N samples; each number depends on the key, its name and the sample alone.

    stream   a key, made of whatever else the numbers depend on: the seed, the epoch
    ids_N    int64 [N] on the CPU: the samples' indices
    """

    stream: int
    ids_N: Tensor

    def bits(self, name: str, count: int) -> Tensor:
        """Return 63 random bits for each sample and place: int64 [N, count]."""
        return draw(key(name, folded=self.stream), self.ids_N[:, None] * count + torch.arange(count))

    def uniform(self, name: str, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers from [low, high): float64 [N, count]."""
        return (self.bits(name, count) >> 10).double() * (2.0**-53 * (high - low)) + low

    def integers(self, name: str, count: int, bound: int) -> Tensor:
        """Return whole numbers from 0 to bound - 1: int64 [N, count]."""
        return self.bits(name, count) % bound

    def dirichlet(self, name: str, count: int, width: int, alpha: float) -> Tensor:
        """Return `count` draws for each sample from the symmetric Dirichlet distribution: float64 [N, count, width].

        Of width 2, the first value is a draw from Beta(alpha, alpha).
        """
        log_gammas = self._log_gamma(name, count * width, alpha).view(-1, count, width)
        return torch.softmax(log_gammas, dim=2)

    def _log_gamma(self, name: str, count: int, alpha: float) -> Tensor:
        """Return logarithms of draws from the gamma distribution of this shape: float64 [N, count].

        Marsaglia & Tsang, "A simple method for generating gamma variables" (2000), with a fixed number of attempts, of
        which the first that is accepted counts. A shape below 1 goes by way of alpha + 1, in logarithms, as the number
        itself may be too small for a float.
        """
        d = (alpha + 1 if alpha < 1 else alpha) - 1 / 3
        radius = (-2 * torch.log1p(-self.uniform(f"{name} radius", count * _ATTEMPTS))).sqrt()
        normal = radius * torch.cos(2 * math.pi * self.uniform(f"{name} angle", count * _ATTEMPTS))
        cube = (1 + normal / math.sqrt(9 * d)) ** 3
        log_cube = cube.clamp(min=1e-300).log()
        threshold = torch.log1p(-self.uniform(f"{name} acceptance", count * _ATTEMPTS))
        accepted = (cube > 0) & (threshold < normal * normal / 2 + d * (1 - cube + log_cube))
        first = accepted.view(-1, count, _ATTEMPTS).to(torch.uint8).argmax(dim=2, keepdim=True)
        log_gamma = math.log(d) + log_cube.view(-1, count, _ATTEMPTS).gather(2, first).squeeze(2)
        if alpha < 1:
            log_gamma = log_gamma + torch.log1p(-self.uniform(f"{name} boost", count)).div(alpha).clamp(min=-1e300)
        return log_gamma
