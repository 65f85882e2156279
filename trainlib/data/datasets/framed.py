"""Pictures in memory that are all of one size, resized and cut for each batch as those of files are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.grey import grey_dataset
from trainlib.data.datasets.images import InMemoryImages, Pictures
from trainlib.data.pictures.configured import frames_of
from trainlib.data.pictures.framing import Frames, Framing
from trainlib.runs.machine.limits import usable_cores

BATCHES_AHEAD = 2  # that are framed while one is trained on


def frame_dataset(dataset: Dataset, config: DataConfig, seed: int) -> Dataset:
    """Return a data set in memory, or of a user's own, with its pictures framed as those of files are.

    They are made grey where the configuration asks for one channel.
    Those of a run that began before this was so stay as they are: they are resized on the device.
    """
    if config.channels == 1:
        dataset = grey_dataset(dataset)
    if config.is_older:
        return dataset
    frames = frames_of(config, seed)

    def framed(image_set: ImageSet) -> ImageSet:
        return replace(image_set, images=frame_images(image_set.images, frames))

    return replace(dataset, train=framed(dataset.train), test=framed(dataset.test))


def frame_images(images: Pictures, frames: Frames) -> Pictures:
    """Return the images as the frames make them of these pictures: themselves, where nothing is to be done."""
    if isinstance(images, InMemoryImages) and isinstance(frames.training, Framing):
        height, width = images.images_NCHW.shape[2:]
        if all(framing.keeps(height, width) for framing in (frames.evaluation, frames.training)):
            return images
    return FramedImages(images, frames)


class FramedImages:
    """Images that are cut out of pictures of one size, on the CPU, by threads that are some batches ahead."""

    def __init__(self, pictures: Pictures, frames: Frames, device: torch.device | None = None):
        self.pictures, self.frames = pictures, frames
        self.device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device) -> FramedImages:
        """Return the same images with their batches on `device`; the pictures stay where they are."""
        return FramedImages(self.pictures, self.frames, device)

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, C, H, W] for each tensor of indices, int64 [B]; see `Images`."""
        pending: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(min(usable_cores(), 1 + BATCHES_AHEAD), "framing") as threads:
            for draws_B, pictures_BCHW in zip(draws or ids, self.pictures.batches(ids), strict=True):
                pending.append(threads.submit(self._frame, pictures_BCHW.cpu(), draws_B.tolist(), epoch))
                if len(pending) > BATCHES_AHEAD:
                    yield pending.popleft().result().to(self.device)
            while pending:
                yield pending.popleft().result().to(self.device)

    def _frame(self, pictures_BCHW: Tensor, draws: list[int], epoch: int | None) -> Tensor:
        """Return the images of a batch of pictures, uint8 [B, C, H, W], on the CPU."""
        framing = self.frames.evaluation if epoch is None else self.frames.training
        if isinstance(framing, Framing):
            return framing(pictures_BCHW).contiguous()
        assert epoch is not None
        images_BCHW = pictures_BCHW.new_empty(len(draws), pictures_BCHW.shape[1], framing.height, framing.width)
        for image_CHW, picture_CHW, draw in zip(images_BCHW, pictures_BCHW, draws, strict=True):
            image_CHW.copy_(framing(picture_CHW, draw, epoch))
        return images_BCHW
