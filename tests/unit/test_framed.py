"""Pictures in memory that are framed for each batch: the pixels of the framing itself, whatever the batches are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data import Dataset, ImageSet, image_dataset, load_data
from trainlib.data.datasets.framed import FramedImages, frame_dataset
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.pictures.configured import frames_of

IDS = torch.tensor([5, 0, 19, 5, 7, 11, 3])


def pictures(height: int = 20, width: int = 28) -> Tensor:
    return torch.randint(
        0, 256, (20, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )


def data(**values: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "synthetic", **values})


def dataset(images_NCHW: Tensor) -> Dataset:
    return image_dataset((images_NCHW, torch.arange(20) % 2), (images_NCHW, torch.arange(20) % 2))


CONFIGS = [
    {"image_size": 16},
    {"image_size": [12, 24], "resize": {"fit": "pad"}},
    {"image_size": 16, "resize": {"fit": "squash", "interpolation": "bicubic"}},
    {"image_size": 16, "train_image_size": 12},
    {"image_size": 16, "augment": {"crop": {}}},
    {"image_size": 16, "train_image_size": [8, 10], "augment": {"crop": {"scale": [0.5, 1.0]}}, "decode": "exact"},
]


@pytest.mark.parametrize("values", CONFIGS)
@pytest.mark.parametrize("sizes", [[7], [1, 0, 4, 2], [1] * 7])
def test_batches_hold_what_the_framing_makes_of_each_picture(values: dict[str, Any], sizes: list[int]) -> None:
    config, images_NCHW = data(**values), pictures()
    frames = frames_of(config, 3)
    framed = frame_dataset(dataset(images_NCHW), config, 3).train.images
    assert isinstance(framed, FramedImages)
    ids, draws = torch.split(IDS, sizes), torch.split(IDS + 1000, sizes)
    for epoch in (None, 0, 4):
        batches = list(framed.batches(ids, epoch, draws))
        assert [len(batch) for batch in batches] == sizes
        assert all(batch.shape[1:] == (3, *frames.shape(epoch)) for batch in batches)
        expected = [frames(images_NCHW[i], int(i) + 1000, epoch) for i in IDS]
        assert torch.equal(torch.cat(batches), torch.stack(expected))


def test_images_of_their_size_are_left_alone() -> None:
    given = dataset(pictures(16, 16))
    assert frame_dataset(given, data(image_size=16), 0).train.images is given.train.images
    synthetic = load_data(data(image_size=32))
    assert isinstance(synthetic.train.images, InMemoryImages)


def test_the_built_in_data_sets_are_framed_too() -> None:
    images = load_data(data(image_size=48, augment={"crop": {}}), 3).train.images
    assert isinstance(images, FramedImages)
    (batch,) = images.batches([IDS], 2)
    assert batch.shape == (7, 3, 48, 48)


def test_a_run_that_began_before_keeps_its_pictures_as_they_are() -> None:
    given = dataset(pictures())
    assert frame_dataset(given, data(image_size=16, decode="pillow"), 0) is given


class Fetched:
    """A data set of a user's own, whose class knows no epochs."""

    def __init__(self, images_NCHW: Tensor):
        self.images_NCHW = images_NCHW

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def to(self, device: torch.device) -> Fetched:
        return self

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        for ids_B in ids:
            yield self.images_NCHW[ids_B]


def test_a_users_own_images_are_framed_as_arrays_are() -> None:
    config, images_NCHW = data(image_size=16, augment={"crop": {}}), pictures()
    own = ImageSet(Fetched(images_NCHW), torch.arange(20) % 2)
    framed = [
        frame_dataset(image_dataset(split, split), config, 3).train.images
        for split in (own, (images_NCHW, own.labels_N))
    ]
    for epoch in (None, 1):
        ours, arrays = (next(FramedImages.batches(images, [IDS], epoch)) for images in framed)  # type: ignore[arg-type]
        assert torch.equal(ours, arrays)


def test_an_error_of_a_framing_reaches_the_caller() -> None:
    images = FramedImages(
        InMemoryImages(torch.zeros(1, 3, 1, 40_000, dtype=torch.uint8)), frames_of(data(image_size=64), 0)
    )
    with pytest.raises(ValueError, match="too long for its width"):
        list(images.batches([torch.tensor([0])]))
