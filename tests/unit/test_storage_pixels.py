"""Storage changes no pixel: whatever is kept of pictures, and wherever, images have the bits of those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainlib.data.datasets.images import InMemoryImages, StreamedImages
from trainlib.data.identity.stamp import Stamp, Stamps
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.pictures.framing import Frames, Framing, RandomCrop
from trainlib.data.storage import cache, choice, store
from trainlib.data.storage.cache import DecodedImages, load_decoded

EVALUATION = Framing(24, 24, size=28)
FRAMES = {
    "the same in every epoch": Frames(EVALUATION, EVALUATION),
    "cut at random": Frames(EVALUATION, RandomCrop(7, 20, 20)),
    "another size in training": Frames(EVALUATION, Framing(16, 16)),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures of several formats, modes and sizes; some much larger than needed, some turned by their metadata."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, (mode, width, height, ending) in enumerate(
        [
            ("RGB", 400, 300, "jpg"),
            ("RGB", 33, 47, "jpg"),
            ("L", 200, 260, "jpg"),
            ("CMYK", 60, 40, "jpg"),
            ("RGB", 50, 41, "png"),
            ("RGBA", 41, 50, "png"),
            ("P", 30, 30, "png"),
            ("L", 26, 90, "webp"),
            ("RGB", 24, 24, "bmp"),
            ("RGB", 64, 32, "jpg"),
            ("RGB", 100, 28, "jpg"),
            ("RGB", 90, 90, "jpg"),
            ("L", 31, 29, "png"),
            ("RGB", 300, 500, "jpg"),
        ]
    ):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height))
        image = coarse.convert(mode)
        if ending == "jpg" and number % 2:
            image.info["exif"] = turned.tobytes()
        image.save(folder / f"{number:02}.{ending}", exif=image.info.get("exif", b""))
    return [str(path) for path in sorted(folder.iterdir())]


def load(paths: list[str], frames: Frames, decode: str, kept: str) -> DecodedImages:
    stamps = Stamps.of([Stamp.of(Path(path).stat()) for path in paths])
    return load_decoded(
        PlainFiles(paths),
        stamps,
        len(paths) - 4,
        PictureReader(frames, decode=decode),
        place=str(Path(paths[0]).parent),
        cache=kept,
        stop_requested=lambda: False,
        is_main=True,
    )


def all_views(images: DecodedImages) -> list[torch.Tensor]:
    """Training images in three epochs, in an order of their own, each with a draw number; and those of evaluation."""
    ids = [torch.tensor([3, 0, 7]), torch.tensor([], dtype=torch.int64), torch.tensor([7, 9, 1, 8])]
    draws = [ids_B + 100 for ids_B in ids]
    views = [batch.clone() for epoch in (0, 1, 5) for batch in images.train.batches(ids, epoch, draws)]
    for part in (images.train, images.test):
        views += [batch.clone() for batch in part.batches([torch.arange(len(part))])]
    return views


@pytest.mark.parametrize(("decode", "world_size"), [("exact", 1), ("fast", 1), ("fast", 2), ("fast", 4)])
@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_every_way_to_keep_pictures_gives_the_same_bits(
    paths: list[str], frames: Frames, decode: str, world_size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "SHARD_PICTURES", 5)
    monkeypatch.setattr(cache, "world_size", lambda: world_size)
    expected = load(paths, frames, decode, "none")
    views = all_views(expected)
    is_fixed = frames.training == frames.evaluation
    for kept in ("pixels", "files", "auto"):
        for rank in range(world_size):
            monkeypatch.setattr(cache, "rank", lambda rank=rank: rank)
            loaded = load(paths, frames, decode, kept)
            assert isinstance(loaded.train, InMemoryImages) == (is_fixed and kept != "files")
            assert all(torch.equal(a, b) for a, b in zip(all_views(loaded), views, strict=True))
            assert (loaded.mean, loaded.std) == (expected.mean, expected.std)
            assert all(loaded.hashes)
    monkeypatch.setattr(choice, "MAX_FRACTION", 1e-9)  # too much for the memory
    ahead = load(paths, frames, decode, "pixels")
    assert isinstance(ahead.train, StreamedImages)
    assert all(torch.equal(a, b) for a, b in zip(all_views(ahead), views, strict=True))
