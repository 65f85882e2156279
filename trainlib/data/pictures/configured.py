"""The framing of pictures that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace

from trainlib.config import DataConfig, sides
from trainlib.data.pictures.framing import Frames, Framing, RandomCrop


def frames_of(config: DataConfig, seed: int) -> Frames:
    """Return how pictures become images, in evaluation and in training.

    What is `auto` here is so for a model without weights that say otherwise: size is `image_size`, bilinear.
    """
    evaluation = evaluation_of(config)
    height, width = sides(config.train_image_size or config.image_size)
    if crop := config.augment.crop:
        (least, most), (low, high) = crop.scale, crop.ratio
        cut = RandomCrop(seed, height, width, (least, most), (low, high), crop.interpolation, evaluation.pillow)
        return Frames(evaluation, cut)
    size = evaluation.size and round(evaluation.size * min(height, width) / min(evaluation.height, evaluation.width))
    return Frames(evaluation, replace(evaluation, height=height, width=width, size=size))


def evaluation_of(config: DataConfig) -> Framing:
    """Return how pictures become images in evaluation and prediction."""
    height, width = sides(config.image_size)
    size, interpolation = config.resize.size, config.resize.interpolation
    return Framing(
        height,
        width,
        config.resize.fit,
        None if size == "auto" else size,
        "bilinear" if interpolation == "auto" else interpolation,
        pillow=config.decode != "fast",
    )
