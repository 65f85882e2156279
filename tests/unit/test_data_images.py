"""Resident and streamed images give the same batches, and so the same statistics."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data.datasets.dataset import channel_statistics
from trainlib.data.datasets.images import InMemoryImages, StreamedImages
from trainlib.data.pictures.decoding import threads
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.pictures.framing import Frames, Framing, RandomCrop
from trainlib.errors import DataError

NUM_IMAGES, SIZE = 23, 12


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, SIZE, SIZE), np.uint8)


@pytest.fixture(scope="module")
def paths(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(array):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(len(array))]


def streamed(paths: list[str]) -> StreamedImages:
    return StreamedImages(PlainFiles(paths), PictureReader.of(DataConfig(image_size=SIZE)))


def batch_ids() -> list[Tensor]:
    return [torch.tensor([3, 0, 22]), torch.tensor([], dtype=torch.int64), torch.tensor([7, 7]), torch.arange(23)]


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_batches_are_the_images_of_these_indices_in_order(kind: str, array: np.ndarray, paths: list[str]) -> None:
    images = InMemoryImages(torch.from_numpy(array)) if kind == "resident" else streamed(paths)
    images = images.to(torch.device("cpu"))
    assert len(images) == NUM_IMAGES
    batches = list(images.batches(batch_ids()))
    assert len(batches) == 4
    for batch, ids in zip(batches, batch_ids(), strict=True):
        assert batch.dtype == torch.uint8
        np.testing.assert_array_equal(batch.numpy(), array[ids.numpy()])
    assert list(images.batches([])) == []


def test_a_batch_is_a_copy(array: np.ndarray) -> None:
    images = InMemoryImages(torch.from_numpy(array.copy()))
    next(images.batches([torch.arange(5)])).zero_()
    np.testing.assert_array_equal(images.images_NCHW.numpy(), array)


def test_streaming_leaves_the_random_numbers_of_the_model_alone(paths: list[str]) -> None:
    before = torch.get_rng_state()
    list(streamed(paths).batches([torch.arange(4)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_image_in_the_stream_is_named_without_a_traceback(tmp_path: Path, paths: list[str]) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(Path(paths[0]).read_bytes()[:60])
    with pytest.raises(DataError, match=r"damaged\.png") as caught:
        list(streamed([*paths, str(damaged)]).batches([torch.arange(3), torch.tensor([1, NUM_IMAGES])]))
    assert "Traceback" not in str(caught.value)
    assert "delete, move or export" in str(caught.value)


def test_statistics_are_those_of_the_pixels(array: np.ndarray, paths: list[str]) -> None:
    mean, std = channel_statistics(InMemoryImages(torch.from_numpy(array)))
    np.testing.assert_allclose(mean, (array / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (array / 255).std(axis=(0, 2, 3)), rtol=1e-12)
    assert channel_statistics(streamed(paths)) == (mean, std)


def test_statistics_are_taken_over_evenly_spaced_images(monkeypatch: pytest.MonkeyPatch, array: np.ndarray) -> None:
    monkeypatch.setattr("trainlib.data.datasets.dataset.STATISTICS_SAMPLES", 4)
    mean, _ = channel_statistics(InMemoryImages(torch.from_numpy(array)))
    np.testing.assert_allclose(mean, (array[[0, 5, 11, 17]] / 255).mean(axis=(0, 2, 3)), rtol=1e-12)


def test_images_of_one_colour_can_be_normalised() -> None:
    grey = InMemoryImages(torch.full((3, 3, 4, 4), 51, dtype=torch.uint8))
    assert channel_statistics(grey) == ((0.2, 0.2, 0.2), (1 / 255, 1 / 255, 1 / 255))


def test_a_file_with_other_bytes_than_before_is_an_error(paths: list[str], tmp_path: Path) -> None:
    copies = [str(shutil.copy(path, tmp_path)) for path in paths[:3]]
    images = streamed(copies)
    list(images.batches([torch.arange(3)]))
    assert images.content is not None
    assert [index for index, _ in images.content.take_new()] == [0, 1, 2]
    assert images.content.take_new() == []
    shutil.copy(copies[0], copies[1])
    with pytest.raises(DataError, match="has other bytes than when this run read it first"):
        list(images.to(torch.device("cpu")).batches([torch.tensor([0]), torch.tensor([1])]))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 23])
def test_neither_threads_nor_batches_change_a_random_cut(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr(threads, "_pool", threads._Pool(count))
    reader = PictureReader(Frames(Framing(8, 8), RandomCrop(5, 8, 8)))
    files = PlainFiles(paths)
    expected = torch.stack([reader(files.read(i), i + 100, 2) for i in range(NUM_IMAGES)])
    ids = torch.split(torch.arange(NUM_IMAGES), size)
    found = torch.cat(list(StreamedImages(files, reader).batches(ids, 2, [ids_B + 100 for ids_B in ids])))
    assert torch.equal(found, expected)
