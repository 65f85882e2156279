"""With random crops, MixUp and CutMix: the same bits from every storage and source, and after a stop at any step."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import tiny
from archives import tar, zipped
from class_folders import save_picture
from stopping import train_until
from tiers import slow_but

from trainlib.data.sources.packed.pack import pack
from trainlib.errors import EXIT_STOPPED

AUGMENT = "{crop: {}, flip: true, policy: trivial, erase: 0.2, mixup: 0.4, cutmix: 1.0}"
STORAGES = ["none", "pixels", "files", "auto"]
SOURCES = ["folder", "shards", "images.tar", "images.zip"]
ELASTIC = ("train.reproducibility=elastic", "train.virtual_shards=4", "train.micro_batch_size=2")
UNEVEN = ("data.balance=0.5", "data.repeats=2")
EPOCH_STEPS = 4  # of 30 training samples: 8, 8, 8 and 6


class Runs:
    """Finished runs on pictures of 20 to 33 pixels, in classes of different sizes; those of equal words are one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._done: dict[tuple[object, ...], Path] = {}
        for split, counts in (("train", (6, 24)), ("test", (3, 3))):
            for name, count in zip(("a", "b"), counts, strict=True):
                for index in range(count):
                    save_picture(folder / "folder" / split / name / f"{index:02}.png", size=20 + index % 14)
        pack(folder / "folder", folder / "shards", 20_000)
        tar(folder / "folder", folder / "images.tar")
        zipped(folder / "folder", folder / "images.zip")

    def words(self, source: str, cache: str, *more: str) -> list[str]:
        name = "image_folder" if source == "folder" else "archive"
        return [
            "quickstart",
            "name=run",
            f"data={{name: {name}, root: {self.folder / source}, val_fraction: 0, image_size: 16, cache: {cache}, "
            f"augment: {AUGMENT}}}",
            "model={name: cifar10_cnn}",
            "optimizer={name: SGD, lr: 0.01, momentum: 0.9}",
            "scheduler=null",
            "train={epochs: 2, batch_size: 8, micro_batch_size: 3}",
            "tracking={log_every: 1, tensorboard: false, progress: false, wandb: {mode: disabled}}",
            "checkpoint={every: 1ep, keep: 2}",
            *more,
        ]

    def __call__(self, world_size: int, source: str, cache: str, *more: str) -> Path:
        """The folder of a run of so many ranks, which begins with an empty cache of pictures."""
        key = (world_size, source, cache, *more)
        if key not in self._done:
            cwd = tiny.in_folder(self.folder, f"run-{len(self._done)}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TRAINLAUNCH_CACHE", str(cwd / "cache"))
                words = self.words(source, cache, *more)
                assert ranks.train(words, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
            self._done[key] = cwd
        return self._done[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("storages"))


@pytest.mark.parametrize(
    ("world_size", "source", "cache"),
    slow_but(
        [(1, "images.tar", "files")],
        [(size, source, cache) for size in (1, 2) for source in SOURCES for cache in STORAGES][1:],
    ),
)
def test_every_storage_and_source_trains_the_same_weights(runs: Runs, world_size: int, source: str, cache: str) -> None:
    """On as many ranks bit for bit; on another number of them, step by step, within 1e-5 of the loss."""
    found, alone = runs(world_size, source, cache), runs(1, "folder", "none")
    expected = alone if world_size == 1 else runs(world_size, "folder", "none")
    assert tiny.digest(found) == tiny.digest(expected)
    assert tiny.rows(found) == tiny.rows(expected)
    steps, steps_alone = ([row for row in tiny.rows(cwd) if row.get("scope") == "step"] for cwd in (found, alone))
    assert len(steps) == 2 * EPOCH_STEPS
    for ours, others in zip(steps, steps_alone, strict=True):
        assert ours["loss"] == pytest.approx(others["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "source", "cache"),
    [(2, "folder", "none"), (2, "images.tar", "pixels"), (4, "images.zip", "files"), (1, "shards", "auto")],
)
def test_elastic_runs_have_one_digest(runs: Runs, world_size: int, source: str, cache: str) -> None:
    found = runs(world_size, source, cache, *ELASTIC, *UNEVEN)
    expected = runs(1, "folder", "none", *ELASTIC, *UNEVEN)
    assert tiny.digest(found) == tiny.digest(expected)
    assert tiny.rows(found) == tiny.rows(expected)


# Two ranks agree one step later than the one that was asked, and there must be a step left to stop before.
STOPS = [(size, step) for size in (1, 2) for step in range(1, 2 * EPOCH_STEPS + 1 - size)]


@pytest.mark.parametrize(("world_size", "step"), slow_but([(1, 3)], STOPS))
def test_a_stop_with_balance_and_repeats_changes_no_bit(runs: Runs, tmp_path: Path, world_size: int, step: int) -> None:
    """The run goes on with another storage, which may change at any time."""
    whole = runs(world_size, "folder", "none", *UNEVEN)
    cwd = tiny.in_folder(tmp_path, "stopped")
    words = runs.words("folder", "none", *UNEVEN)
    codes = ranks.run(train_until, words, step, world_size=world_size, cwd=cwd)
    assert codes == [EXIT_STOPPED] * world_size, ranks.console(cwd)
    words = runs.words("folder", "files", *UNEVEN)
    assert ranks.train(words, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
    assert tiny.digest(cwd) == tiny.digest(whole)
    assert tiny.rows(cwd) == tiny.rows(whole)
