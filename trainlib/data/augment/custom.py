"""A transform of the user's own: a function that changes whole batches of training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.data.augment.policies.operations import to_device
from trainlib.errors import UserError
from trainlib.randomness import draw

# Images uint8 [N, C, H, W], sample indices int64 [N] on their device and a key, to images of the same form.
Transform = Callable[[Tensor, Tensor, int], Tensor]

REMEDY = "draw random numbers with trainlib.randomness.draw(key, indices_N), which gives 63 bits for each sample"


@dataclass(frozen=True)
class CustomTransform:
    """A user's transform, whose results are checked."""

    function: Transform

    def __call__(self, images_NCHW: Tensor, draws: Draws) -> Tensor:
        """Change the images, uint8 [N, C, H, W]. Raises UserError for a result of another form."""
        ids_N = to_device(draws.ids_N, images_NCHW.device)
        result = self.function(images_NCHW, ids_N, draws.stream)
        if not isinstance(result, Tensor):
            raise UserError(f"transform: {self.name} returned a {type(result).__name__}, must return a tensor")
        got, expected = (result.dtype, list(result.shape)), (torch.uint8, list(images_NCHW.shape))
        if got != expected or result.device != images_NCHW.device:
            raise UserError(
                f"transform: {self.name} returned {got[0]} {got[1]} on {result.device}, must return {expected[0]} "
                f"{expected[1]} on {images_NCHW.device}, as it was given"
            )
        return result

    @property
    def name(self) -> str:
        """Name of the function, for people."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def checked(self, channels: int, height: int, width: int) -> CustomTransform:
        """Return this transform. Raises UserError unless an image's result depends on it, its index and the key alone.

        Otherwise the result of a training would depend on how its batches are cut, and could not be repeated.
        """
        ids_N = torch.arange(7, 15)
        images_NCHW = (draw(11, torch.arange(8 * channels * height * width)) & 255).to(torch.uint8)
        images_NCHW = images_NCHW.view(8, channels, height, width)
        for stream in (1, 2):
            whole = self(images_NCHW.clone(), Draws(stream, ids_N))
            if not torch.equal(whole, self(images_NCHW.clone(), Draws(stream, ids_N))):
                raise UserError(f"transform: {self.name} gives other images for the same indices and key: {REMEDY}")
            parts = [self(images_NCHW[i : i + 3].clone(), Draws(stream, ids_N[i : i + 3])) for i in (0, 3, 6)]
            if not torch.equal(whole, torch.cat(parts)):
                raise UserError(
                    f"transform: {self.name} gives other images in smaller batches, must change each "
                    f"image by itself: {REMEDY}"
                )
        return self
