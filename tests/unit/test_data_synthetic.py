"""The embedded drawings: always the same bits, balanced, and neither trivial nor unlearnable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from trainlib.config.schema.sections import DataConfig
from trainlib.data import load_data
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.sources.arrays.synthetic import make_synthetic


def pixels(images: ImageSet) -> torch.Tensor:
    return next(images.images.batches([torch.arange(len(images.images))]))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(DataConfig(name="synthetic"))


def test_the_drawings_never_change() -> None:
    small = make_synthetic(num_train=30, num_test=20, seed=3)
    digest = hashlib.sha256(pixels(small.train).numpy().tobytes() + pixels(small.test).numpy().tobytes())
    assert digest.hexdigest() == "a2fb8c61bc5af0df2f3d5ead3ab738fb78c3e4c424d0265313d91bcce417a345"


def test_forms(dataset: Dataset) -> None:
    for split, count in ((dataset.train, 8_000), (dataset.test, 2_000)):
        assert pixels(split).shape == (count, 3, 32, 32)
        assert pixels(split).dtype == torch.uint8
        assert split.labels_N.dtype == torch.int64
        assert split.labels_N.bincount().tolist() == [count // 10] * 10
    assert len(dataset.class_names) == len(set(dataset.class_names)) == 10
    np.testing.assert_allclose(dataset.mean, (pixels(dataset.train)[::4] / 255).mean(dim=(0, 2, 3)), rtol=1e-5)


def test_no_image_comes_twice(dataset: Dataset) -> None:
    images = [image.numpy().tobytes() for split in (dataset.train, dataset.test) for image in pixels(split)]
    assert len(set(images)) == 10_000


def test_a_smaller_set_is_the_beginning_of_a_larger_one_and_a_seed_makes_another(dataset: Dataset) -> None:
    small = make_synthetic(num_train=25, num_test=5)
    assert torch.equal(pixels(small.train), pixels(dataset.train)[:25])
    assert torch.equal(small.test.labels_N, dataset.test.labels_N[:5])
    assert not torch.equal(pixels(make_synthetic(25, 5, seed=1).train), pixels(small.train))


def test_a_linear_model_on_pixels_does_not_solve_it(dataset: Dataset) -> None:
    from sklearn.linear_model import RidgeClassifier

    def flat(split: ImageSet) -> np.ndarray:
        return pixels(split)[:, :, ::2, ::2].flatten(1).numpy().astype(np.float32) / 255

    linear = RidgeClassifier(alpha=10.0).fit(flat(dataset.train), dataset.train.labels_N)
    assert linear.score(flat(dataset.test), dataset.test.labels_N) < 0.4


@pytest.mark.slow
def test_a_convolutional_model_learns_it_soon(dataset: Dataset) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(4)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def scaled(split: ImageSet) -> torch.Tensor:
        return pixels(split) / 255 - 0.5

    images, labels = scaled(dataset.train), dataset.train.labels_N
    for ids in torch.randperm(3_200).split(32):
        loss = nn.functional.cross_entropy(model(images[ids]), labels[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(scaled(dataset.test)).argmax(1) == dataset.test.labels_N).float().mean().item()
    assert accuracy > 0.65
