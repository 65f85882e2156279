"""Random crops: the same pixels for a sample in an epoch, however batches are cut and pictures stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data import ImageSet, load_data
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.datasets.framed import FramedImages
from trainlib.data.datasets.images import Images, InMemoryImages, StreamedImages, as_images
from trainlib.data.pictures.configured import frames_of
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles

CONFIG = DataConfig.model_validate(
    {"image_size": 16, "train_image_size": [12, 14], "resize": {"size": 20}, "augment": {"crop": {"scale": [0.2, 1.0]}}}
)
NUM_SAMPLES, SEED, EPOCH = 23, 5, 3
PREPROCESS = Preprocess((0.0,) * 3, (1 / 255,) * 3)  # the input is the pixels themselves


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randint(
        0, 256, (NUM_SAMPLES, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def stored(pictures: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Images]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{index}.png") for index in range(NUM_SAMPLES)]
    for path, picture_CHW in zip(paths, pictures, strict=True):
        Image.fromarray(np.ascontiguousarray(picture_CHW.permute(1, 2, 0).numpy())).save(Path(path))
    return {
        "streamed": StreamedImages(PlainFiles(paths), PictureReader.of(CONFIG, SEED)),
        "in memory": FramedImages(InMemoryImages(pictures), frames_of(CONFIG, SEED)),
    }


def in_training(images: Images, world_size: int, micro: int | None, shards: int | None) -> dict[int, Tensor]:
    """The model's input for each sample of an epoch of three batches."""
    order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(2))
    found: dict[int, Tensor] = {}
    for rank in range(world_size):
        loader = BatchLoader(
            ImageSet(images, torch.zeros(NUM_SAMPLES, dtype=torch.int64)),
            PREPROCESS,
            RankSlice(rank, world_size, micro, shards),
            torch.device("cpu"),
        )
        for micro_batches in loader.train_batches(torch.split(order, 8), EPOCH, Augmentation(SEED, False, 0)):
            for batch in micro_batches:
                assert batch.images_NCHW.shape[1:] == (3, 12, 14)
                found |= dict(zip(batch.ids_N.tolist(), batch.images_NCHW, strict=False))
    return found


@pytest.mark.parametrize("storage", ["streamed", "in memory"])
@pytest.mark.parametrize(
    ("world_size", "micro", "shards"),
    [(1, None, None), (2, None, None), (4, None, None), (1, 3, None), (2, 1, None), (3, None, 6)],
)
def test_a_sample_has_the_same_pixels_in_an_epoch(
    pictures: Tensor, stored: dict[str, Images], storage: str, world_size: int, micro: int | None, shards: int | None
) -> None:
    found = in_training(stored[storage], world_size, micro, shards)
    crop = frames_of(CONFIG, SEED).training
    assert sorted(found) == [*range(NUM_SAMPLES)]
    for index, image_CHW in found.items():
        expected = crop(pictures[index], index, EPOCH)  # type: ignore[call-arg]
        assert torch.equal(image_CHW.round().to(torch.uint8), expected), index


@pytest.mark.parametrize("storage", ["streamed", "in memory"])
def test_evaluation_sees_the_centre_and_the_dummy_input_is_of_training(
    pictures: Tensor, stored: dict[str, Images], storage: str
) -> None:
    image_set = ImageSet(stored[storage], torch.zeros(NUM_SAMPLES, dtype=torch.int64))
    loader = BatchLoader(image_set, PREPROCESS, RankSlice(0, 1, None, None), torch.device("cpu"))
    evaluation = frames_of(CONFIG, SEED).evaluation
    for batch in loader.eval_batches(torch.arange(NUM_SAMPLES), 5):
        for index, image_CHW in zip(batch.ids_N.tolist(), batch.images_NCHW, strict=True):
            assert torch.equal(image_CHW.round().to(torch.uint8), evaluation(pictures[index]))
    assert loader.dummy_input().shape == (1, 3, 12, 14)
    assert loader.raw_images(torch.tensor([3])).shape == (1, 3, 16, 16)


def test_images_that_an_earlier_run_decoded_are_not_taken_for_random_crops(
    pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))
    for index, picture_CHW in enumerate(pictures):
        folder = tmp_path / "photos" / ("test" if index > 15 else "train") / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(picture_CHW.permute(1, 2, 0).numpy())).save(folder / f"{index:02d}.png")
    values = {"name": "image_folder", "root": str(tmp_path / "photos"), "image_size": 16}
    fixed = load_data(DataConfig.model_validate(values), SEED).train.images
    assert isinstance(fixed, InMemoryImages)
    for key, value in (("augment", {"crop": {}}), ("train_image_size", 12)):
        config = DataConfig.model_validate(values | {key: value})
        images = as_images(load_data(config, SEED).train.images)
        [of_evaluation] = images.batches([torch.tensor([0, 4])])
        [of_training] = images.batches([torch.tensor([0, 4])], EPOCH)
        assert torch.equal(of_evaluation, next(fixed.batches([torch.tensor([0, 4])])))
        expected = [frames_of(config, SEED)(pictures[index], number, EPOCH) for number, index in ((0, 0), (4, 8))]
        assert torch.equal(of_training, torch.stack(expected))
