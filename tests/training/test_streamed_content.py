"""Pictures that are streamed: bytes that are not those that the run read first end it, in any attempt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ranks
import tiny

from trainlib.runs.directory import RunDirectory
from trainlib.training.checkpoints.provenance import read_listing

pytestmark = pytest.mark.slow


def train_streamed(arguments: list[str], change_at: int | None = None) -> int:
    """The training program without a cache; a picture is edited after some step."""
    from trainlib.train import main
    from trainlib.training.hooks import HeartbeatHook

    if change_at is not None:
        calls: list[int] = []

        def on_progress(self: HeartbeatHook) -> None:
            calls.append(1)
            if len(calls) == change_at:
                edit(Path("images"))

        ranks.replace(HeartbeatHook, "on_progress", on_progress)
    return main([*arguments[:3], "data.cache=none", *arguments[3:]])  # behind `data={...}`, which sets all of it


def edit(images: Path) -> None:
    for picture in ("train/a/03.png", "train/a/04.png", "train/b/07.png"):
        content = (images / picture).read_bytes()
        (images / picture).write_bytes(content[:-12] + bytes(12))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("streamed")
    tiny.make_images(cwd / "images")
    assert ranks.run(train_streamed, words(1), world_size=1, cwd=cwd) == [0], ranks.console(cwd)
    return cwd


def words(epochs: int, *more: str) -> list[str]:
    return tiny.arguments(Path("images"), epochs, 4, "scheduler=null", *more)


def test_every_file_that_was_read_is_on_record(trained: Path) -> None:
    listing = read_listing(RunDirectory(trained / "runs/run"))
    assert listing is not None
    assert [bool(file.sha256) for file in listing.files[:60]] == [True] * 60


def test_unchanged_files_go_on_streamed_or_from_the_cache(trained: Path, tmp_path: Path) -> None:
    digests = set()
    for name, train in (("streamed", train_streamed), ("cached", ranks.main)):
        shutil.copytree(trained, tmp_path / name)
        assert ranks.run(train, [*words(2), "--resume"], world_size=1, cwd=tmp_path / name) == [0]
        digests.add(tiny.digest(tmp_path / name))
    assert len(digests) == 1


@pytest.mark.parametrize("way", ["streamed", "cached"])
def test_a_file_edited_between_two_attempts_is_named(trained: Path, tmp_path: Path, way: str) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    edit(tmp_path / "copy/images")
    train = train_streamed if way == "streamed" else ranks.main
    assert ranks.run(train, [*words(2), "--resume"], world_size=1, cwd=tmp_path / "copy") == [2]
    said = ranks.console(tmp_path / "copy")
    assert "other bytes" in said
    assert any(name in said for name in ("a/03.png", "a/04.png", "b/07.png"))


def test_a_file_edited_while_it_trains_ends_the_run(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    assert ranks.run(train_streamed, words(3), 5, world_size=1, cwd=tmp_path) == [2]
    assert "has other bytes than when this run read it first" in ranks.console(tmp_path)
    assert tiny.summary(tmp_path)["status"] == "failed"
