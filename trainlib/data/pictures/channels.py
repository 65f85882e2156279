"""Colours to grey and back, of whole batches of decoded pictures, with Pillow's values."""

from __future__ import annotations

from torch import Tensor

_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue, of 65536, as Pillow's convert("L") has them


def in_channels(pictures_NCHW: Tensor, channels: int) -> Tensor:
    """Return pictures uint8 [N, 3 or 1, H, W] as [N, channels, H, W]; those of so many channels are not copied.

    Of colours grey is 0.299 red + 0.587 green + 0.114 blue, and as colours grey is three times the same.
    """
    present = pictures_NCHW.shape[1]
    if present == channels or present not in (1, 3):  # what is neither is told where a network takes it
        return pictures_NCHW
    if channels == 3:
        return pictures_NCHW.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = (
        part.int().mul_(weight) for part, weight in zip(pictures_NCHW.split(1, 1), _WEIGHTS, strict=True)
    )
    grey: Tensor = red.add_(green).add_(blue).add_(1 << 15) >> 16
    return grey.to(pictures_NCHW.dtype)
