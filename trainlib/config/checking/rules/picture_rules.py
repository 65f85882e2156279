"""Rules on how pictures become images, that join several values."""

from __future__ import annotations

from collections.abc import Iterator

from trainlib.config.checking.suggest import format_value
from trainlib.config.schema.sections import Config, Normalize
from trainlib.config.schema.values import sides
from trainlib.errors import Mistake

LARGEST_NORMAL = 2.0  # of a mean or deviation on a scale from 0 to 1, or from -1 to 1


def resize_size(config: Config) -> Iterator[Mistake]:
    """Check that `data.resize.size` is a size that an image can be cut out of."""
    resize = config.data.resize
    if resize.size == "auto":
        return
    shorter = min(sides(config.data.image_size))
    if resize.fit == "pad":
        rule = f"got {resize.size}, but fit: pad scales to data.image_size itself: leave it out"
        yield Mistake("data.resize.size", rule)
    elif resize.size < shorter:
        rule = f"got {resize.size}, must be >= {shorter}, the side of the image that is cut out (data.image_size)"
        yield Mistake("data.resize.size", rule)


def normalize_scale(config: Config) -> Iterator[Mistake]:
    """Check that the numbers of `data.normalize` are not those of a scale from 0 to 255."""
    normalize = config.data.normalize
    if isinstance(normalize, str):
        return
    for key, values in (("mean", normalize.mean), ("std", normalize.std)):
        if max(values) > LARGEST_NORMAL:
            rule = f"got {format_value(values)}, must be on a scale from 0 to 1, which images have here: divide by 255"
            yield Mistake(f"data.normalize.{key}", rule)


def one_crop(config: Config) -> Iterator[Mistake]:
    """Check the ranges of `data.augment.crop`, and that images are not cropped twice."""
    augment = config.data.augment
    if augment.crop is None:
        return
    if augment.crop_padding:
        rule = f"got {augment.crop_padding} beside data.augment.crop, must be one of the two: remove the other"
        yield Mistake("data.augment.crop_padding", rule)
    for key, (low, high) in (("scale", augment.crop.scale), ("ratio", augment.crop.ratio)):
        if low > high:
            rule = f"got {format_value([low, high])}, must be the smaller one first: [{high:g}, {low:g}]"
            yield Mistake(f"data.augment.crop.{key}", rule)


def numbers_of_each_channel(config: Config) -> Iterator[Mistake]:
    """Check that `data.normalize` has as many numbers as the images have channels."""
    normalize, channels = config.data.normalize, config.data.channels
    if not isinstance(normalize, Normalize):
        return
    for key, values in (("mean", normalize.mean), ("std", normalize.std)):
        if len(values) != channels:
            wanted = "3 numbers, of red, green and blue" if channels == 3 else "1 number, of grey (data.channels: 1)"
            yield Mistake(f"data.normalize.{key}", f"got {format_value(values)}, must be {wanted}")


def inputs_of_three_channels(config: Config) -> Iterator[Mistake]:
    """Check that no network is asked to change the normalisation of three channels where there is one."""
    if config.data.channels == 1 and config.model.args.get("transform_input"):
        rule = "got true, must be false with data.channels: 1: it is about red, green and blue. Leave it out"
        yield Mistake("model.transform_input", rule)
