"""The cache of pictures made by processes that are killed, and by several at once: nothing is decoded twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
from patience import HANG
from PIL import Image
from soak import only_in_soak

SHARD_PICTURES = 20
PICTURES = 200  # in ten shards


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    for split, count in (("train", 80), ("test", 20)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")
    return root


def load(root: str, cache: str, hang_after: int | None = None) -> int:
    """Load the pictures as a rank does; print how many it decoded, and a digest of all images.

    hang_after   after so many pictures nothing more is decoded, until somebody kills this process
    """
    from trainlib.config.schema.sections import DataConfig
    from trainlib.data import fingerprint, load_data
    from trainlib.data.storage import make, store

    os.environ["TRAINLAUNCH_CACHE"] = cache
    decoded: list[int] = []
    keep = make._RecordJob.keep

    def counting(self: make._RecordJob, row: int, data: bytes) -> None:
        if hang_after is not None and len(decoded) >= hang_after:
            Path("hangs").touch()
            time.sleep(10 * HANG)
        decoded.append(row)
        keep(self, row, data)

    ranks.replace(make._RecordJob, "keep", counting)
    ranks.replace(store, "SHARD_PICTURES", SHARD_PICTURES)
    dataset = load_data(DataConfig(name="image_folder", root=root, image_size=9))
    print(f"decoded {len(decoded)} {fingerprint(dataset)}")
    return 0


def said(cwd: Path, rank: int = 0) -> list[str]:
    """What `load` printed: the number of pictures, and a digest."""
    (line,) = [line for line in ranks.console(cwd, rank).splitlines() if line.startswith("decoded ")]
    return line.split()[1:]


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


@pytest.mark.parametrize("hang_after", [pytest.param(5, marks=only_in_soak), 90, pytest.param(190, marks=only_in_soak)])
def test_after_a_kill_only_the_rest_is_decoded(pictures: Path, tmp_path: Path, hang_after: int) -> None:
    cache = tmp_path / "cache"
    killed = ranks.start(load, str(pictures), str(cache), hang_after, world_size=1, cwd=folder(tmp_path, "killed"))
    while not (tmp_path / "killed/hangs").exists():
        time.sleep(0.05)
        assert killed.running, ranks.console(tmp_path / "killed")
    killed.signal(0, signal.SIGKILL)
    assert killed.wait() == [-signal.SIGKILL]
    complete = sum(len(np.load(facts)["ends_N"]) for facts in cache.glob("*/*.facts"))
    assert hang_after - 3 * SHARD_PICTURES < complete <= hang_after

    assert ranks.run(load, str(pictures), str(cache), world_size=1, cwd=folder(tmp_path, "again")) == [0]
    assert ranks.run(load, str(pictures), str(tmp_path / "other"), world_size=1, cwd=folder(tmp_path, "whole")) == [0]
    assert int(said(tmp_path / "again")[0]) == PICTURES - complete
    assert said(tmp_path / "whole") == [str(PICTURES), *said(tmp_path / "again")[1:]]
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=only_in_soak)])
def test_ranks_that_start_together_share_the_decoding(pictures: Path, tmp_path: Path, world_size: int) -> None:
    assert (
        ranks.run(load, str(pictures), str(tmp_path / "cache"), world_size=world_size, cwd=tmp_path) == [0] * world_size
    )
    lines = [said(tmp_path, rank) for rank in range(world_size)]
    assert sum(int(line[0]) for line in lines) == PICTURES
    assert len({tuple(line[1:]) for line in lines}) == 1


def test_a_rank_that_is_killed_leaves_its_share_to_the_others(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed = ranks.start(load, str(pictures), str(cache), 30, world_size=1, cwd=folder(tmp_path, "killed"))
    while not (tmp_path / "killed/hangs").exists():
        time.sleep(0.05)
    other = ranks.start(load, str(pictures), str(cache), world_size=1, cwd=folder(tmp_path, "other"))
    time.sleep(1.0)  # in which it does all but the shard of the first
    killed.signal(0, signal.SIGKILL)
    assert other.wait() == [0], ranks.console(tmp_path / "other")
    killed.wait()
    assert int(said(tmp_path / "other")[0]) >= PICTURES - 30
