"""The whitening of the fast recipe against the same computed with NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from parts import build_trainer, make_dataset, resolved
from PIL import Image
from plain_cifar10_fast import random_images
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from trainlib.config import DataConfig
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.datasets.images import Images, InMemoryImages, StreamedImages
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.distributed import process_group
from trainlib.models.architectures.whitening import whitening_weights

PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 32)


def expected_whitening(images_NCHW: Tensor) -> np.ndarray:
    """[24, 12], by NumPy, from every patch of these images, normalised."""
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    images = (images_NCHW.permute(0, 2, 3, 1).numpy() / 255 - mean) / std
    size = images.shape[1] - 1
    corners = [images[:, y : y + size, x : x + size, c] for c in range(3) for y in (0, 1) for x in (0, 1)]
    variances, columns = np.linalg.eigh(np.cov(np.stack([corner.ravel() for corner in corners]), ddof=0))
    rows = []
    for variance, vector in sorted(zip(variances, columns.T, strict=True), key=lambda pair: -pair[0]):
        first = next(number for number in vector if abs(number) >= np.abs(vector).max() / 2)
        rows.append(vector * np.sign(first) / np.sqrt(variance + 5e-4))
    return np.concatenate([rows, -np.array(rows)])


def natural_images(n: int, size: int = 32) -> Tensor:
    """Neighbouring pixels are alike, and so are colours: noise that was smoothed."""
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))
    smooth = F.avg_pool2d(noise, 5, 1, 2) * 200 + 80 * noise[:, :1] + 8 * noise
    return (smooth + 128).clamp(0, 255).to(torch.uint8)


def test_whitening_is_what_numpy_finds() -> None:
    images_NCHW = natural_images(60)
    weights = whitening_weights(InMemoryImages(images_NCHW), torch.arange(10, 60), PREPROCESS)
    assert (weights.shape, weights.dtype) == ((24, 3, 2, 2), torch.float32)
    expected = expected_whitening(images_NCHW[10:])
    assert expected[:, :].std(axis=0).min() > 0.05
    np.testing.assert_allclose(weights.flatten(1).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_whitened_patches_are_uncorrelated_with_variance_one() -> None:
    images_NCHW = natural_images(200)
    weights = whitening_weights(InMemoryImages(images_NCHW), torch.arange(200), PREPROCESS).double()
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std)
    )
    outputs_NCHW = F.conv2d((images_NCHW / 255 - mean) / std, weights[:12])
    covariance = torch.cov(outputs_NCHW.transpose(0, 1).flatten(1))
    assert float((covariance - covariance.diag().diag()).abs().max()) < 1e-5
    assert 0.9 < float(covariance.diag().min()) <= float(covariance.diag().max()) <= 1 + 1e-5


def test_whitening_has_the_same_bits_with_any_number_of_threads_and_from_files(tmp_path: Path) -> None:
    images_NCHW = natural_images(150)
    paths = [str(tmp_path / f"{index}.png") for index in range(150)]
    for image, path in zip(images_NCHW, paths, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_num_threads()
    sources: list[tuple[Images, Tensor]] = [
        (InMemoryImages(images_NCHW), torch.arange(150)),
        (InMemoryImages(images_NCHW), order),
        (StreamedImages(PlainFiles(paths), PictureReader.of(DataConfig(image_size=32))), torch.arange(150)),
    ]
    for threads, (images, ids_N) in enumerate(sources, 1):
        torch.set_num_threads(threads)
        found.append(whitening_weights(images, ids_N, PREPROCESS))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_whitening_looks_at_five_thousand_images_of_all_classes() -> None:
    """Of 10,001 tiny ones, in two halves that differ: at every second, and at no other."""
    images_NCHW = torch.cat([natural_images(5_000, 9), random_images(5_001, 9)])
    ids_N = torch.arange(10_001)
    chosen = torch.tensor([i * 10_001 // 5_000 for i in range(5_000)])
    small = Preprocess(PREPROCESS.mean, PREPROCESS.std, 9)
    weights = whitening_weights(InMemoryImages(images_NCHW), ids_N, small)
    np.testing.assert_allclose(weights.flatten(1), expected_whitening(images_NCHW[chosen]), rtol=1e-4, atol=1e-5)


def test_whitening_of_resized_images_and_of_a_single_colour() -> None:
    images_NCHW = natural_images(20, 32)
    resized = torch.stack([_by_pil(image, 24) for image in images_NCHW])
    large = Preprocess(PREPROCESS.mean, PREPROCESS.std, 24)
    weights = whitening_weights(InMemoryImages(images_NCHW), torch.arange(20), large)
    np.testing.assert_allclose(weights.flatten(1), expected_whitening(resized), rtol=5e-3, atol=5e-3)
    grey = whitening_weights(InMemoryImages(torch.full((3, 3, 32, 32), 77, dtype=torch.uint8)), torch.arange(3), large)
    assert bool(grey.isfinite().all())


def _by_pil(image_CHW: Tensor, size: int) -> Tensor:
    """Resized without rounding to whole numbers between rows and columns, and rounded at the end."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image_CHW.numpy()]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
    return torch.from_numpy(np.stack(resized)).round()


def config_of(**model: Any) -> Any:
    data = {"name": "synthetic", "val_fraction": 0.2, "augment": {"flip": True}}
    train = {"epochs": 1, "batch_size": 20}
    return resolved({"data": data, "model": {"name": "cifar10_fast", "width": 0.05, **model}, "train": train})


def test_a_fresh_run_begins_with_the_whitening_of_the_images_that_it_trains_on(tmp_path: Path) -> None:
    """Not of those held out; and neither where it is switched off, nor where weights are given."""
    dataset = make_dataset(50)
    with process_group.joined(config_of().train) as accelerator:
        trainer = build_trainer(config_of(), dataset, accelerator, None)
        state = trainer.state.classifier.module.state_dict()
        assert len(trainer.plan.ids_N) == 40
        preprocess = Preprocess(dataset.mean, dataset.std, 32)
        expected = whitening_weights(dataset.train.images, trainer.plan.ids_N, preprocess)
        assert torch.equal(state["whiten.weight"], expected)
        other = whitening_weights(dataset.train.images, torch.arange(50), preprocess)
        assert not torch.equal(state["whiten.weight"], other)

        off = build_trainer(config_of(whitening=False), dataset, accelerator, None).state.classifier.module
        assert not torch.allclose(off.state_dict()["whiten.weight"][:12], -off.state_dict()["whiten.weight"][12:])
        whitened_otherwise = {name: tensor.contiguous() for name, tensor in state.items()} | {"whiten.weight": other}
        safetensors.torch.save_file(whitened_otherwise, tmp_path / "w.safetensors")
        given = build_trainer(config_of(weights=str(tmp_path / "w.safetensors")), dataset, accelerator, None)
        assert torch.equal(given.state.classifier.module.state_dict()["whiten.weight"], other)
