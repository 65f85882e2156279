"""A few pictures in a cache of small shards, with a count of what is decoded: fixtures and what reads them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.storage import make, store

SHARD_PICTURES = 6  # so that the 34 pictures make up six shards


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(store, "SHARD_PICTURES", SHARD_PICTURES)
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name in ("cat", "dog"):
            class_folder = tmp_path / "images" / split / name
            class_folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (10, 14, 3), np.uint8)
                Image.fromarray(pixels).save(class_folder / f"{i:02}.png")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the pictures lie that were decoded into the cache."""
    places: list[str] = []
    real = make._RecordJob.keep

    def noting(self: make._RecordJob, row: int, data: bytes) -> None:
        places.append(self.files.describe(self.indices[row]))
        real(self, row, data)

    monkeypatch.setattr(make._RecordJob, "keep", noting)
    return places


def load(root: Path, size: int = 10, verify: str = "quick", kept: str = "auto", **kwargs: object) -> Dataset:
    config = DataConfig.model_validate(
        {"name": "image_folder", "root": str(root), "image_size": size, "verify": verify, "cache": kept}
    )
    return load_data(config, **kwargs)  # type: ignore[arg-type]


def everything(dataset: Dataset) -> torch.Tensor:
    splits = (dataset.train.images, dataset.test.images)
    return torch.cat([next(images.batches([torch.arange(len(images))])) for images in splits])


def shards(folder: Path, ending: str = "facts") -> list[Path]:
    return sorted(folder.glob(f"*/[0-9]*.{ending}"))


def shard_of(folder: Path, picture: Path) -> list[str]:
    """The numbers of the shards in whose place a picture is."""
    return [f"{zlib.crc32(str(picture).encode()) % len(shards(folder)):04}"]
