"""Decorators for a user's own functions, which are given to `trainlib.fit`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from trainlib.errors import UserError

_Function = TypeVar("_Function", bound=Callable[..., Any])


def transform(function: _Function) -> _Function:
    """Mark a function as a random change of training images, and return it. Pass it to `trainlib.fit(transform=...)`.

    It is called as function(images_NCHW, indices_N, key), for batches of any size:

    images_NCHW   uint8 [N, C, H, W] on the training's device, after flips, policy and jitter, before normalization
    indices_N     int64 [N] on the same device: the samples' indices; with `data.repeats` and `data.balance`, the k-th
                  use of a sample in an epoch has its index + k * 2**32
    key           a whole number of (seed, epoch), for `trainlib.randomness.draw(key, indices_N)`

    and returns uint8 images of the same shape. An image's result may depend on the image, its index and the key alone.

    Raises UserError if the function does not take three arguments.
    """
    try:
        inspect.signature(function).bind("images_NCHW", "indices_N", "key")
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise UserError(
            f"transform: {name} must take three arguments, (images_NCHW, indices_N, key): {error}"
        ) from error
    return function
