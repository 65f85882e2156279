"""Training from an archive gives the weights that training from its folder gives, in memory and streamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ranks
import tiny
from archives import tar, zipped

from trainlib.data.sources.packed.pack import pack


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    tiny.make_images(folder / "images")
    pack(folder / "images", folder / "shards", 60_000)
    tar(folder / "images", folder / "images.tar")
    zipped(folder / "images", folder / "images.zip")
    return folder


def weights(images: Path, name: str, cwd: Path, world_size: int, streamed: bool) -> str:
    cwd.mkdir()
    source = "image_folder" if name == "images" else "archive"
    words = tiny.arguments(images / name, 1, 4, f"data.name={source}", "data.augment={flip: true, crop_padding: 4}")
    words += [f"data.root={images / name}", "data.val_fraction=0.2"]
    words += [f"data.cache={'none' if streamed else 'auto'}"]
    assert ranks.train(words, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
    found = str(tiny.summary(cwd)["weights_sha256"])
    shutil.rmtree(cwd)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "streamed"), [(1, False), (2, False), (2, True)])
def test_folder_and_archives_train_the_same_weights(
    images: Path, tmp_path: Path, world_size: int, streamed: bool
) -> None:
    names = ("images", "shards", "images.tar", "images.zip")
    found = {name: weights(images, name, tmp_path / name, world_size, streamed) for name in names}
    assert len(set(found.values())) == 1, found
