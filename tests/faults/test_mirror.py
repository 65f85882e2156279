"""A run that is copied to a bucket: its machine goes away for good, the bucket goes away for a while."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks
import tiny
from patience import HANG, wait_until
from s3_server import BUCKET, S3Server, train_with
from soak import only_in_soak, rounds

EVERY = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror") / "images"
    tiny.make_images(root)
    return root


def files(cwd: Path) -> dict[str, bytes]:
    """What the bucket is to hold of a run."""
    run = cwd / "runs/run"
    kinds = ("*.json", "*.jsonl", "config.yaml", "checkpoints/step-*/*")
    return {path.relative_to(run).as_posix(): path.read_bytes() for kind in kinds for path in run.glob(kind)}


def gone(folder: Path) -> bool:
    """Remove a folder in which a process that ends just now may still write; return True once that is done."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def start(server: S3Server, training: list[str], cwd: Path, pause: float = 0.0) -> ranks.Ranks:
    return ranks.start(train_with, server.variables, training, pause, world_size=1, cwd=cwd)


def test_killed_with_its_disk_removed_it_goes_on_from_the_bucket(
    server: S3Server, images: Path, tmp_path: Path
) -> None:
    """At random moments, ten times under `make soak`: the same bits in the end, and the bucket holds all of them."""
    kills, choice = rounds(2, 10), random.Random(7)
    training = tiny.arguments(images, 2 + 8 * kills, EVERY)
    whole, lost = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "lost")
    assert ranks.train(training, cwd=whole, timeout=HANG) == [0]
    training.append(f"mirror={BUCKET}")
    from_steps: list[int] = []
    for _ in range(kills):
        under_way = start(server, training, lost, pause=0.15)
        step = max(server.steps(), default=0)
        wait_until(lambda: not under_way.running or max(server.steps(), default=0) > step)  # noqa: B023 - called at once
        time.sleep(choice.uniform(0.0, 0.5))
        under_way.signal(0, signal.SIGKILL)
        assert under_way.wait() == [-signal.SIGKILL], ranks.console(lost)
        from_steps.append(tiny.attempts(lost, "start")[-1]["from_step"])
        wait_until(lambda: gone(lost / "runs"))
    assert start(server, training, lost).wait() == [0], ranks.console(lost)
    tiny.assert_same_result(lost, whole)
    from_steps.append(tiny.attempts(lost, "start")[-1]["from_step"])
    assert from_steps == sorted(set(from_steps)), "each start went on from where the bucket was"
    there = {name.removeprefix("run/"): content for name, content in server.files().items()}
    assert there == files(lost), "and lease.json is given back"
    assert b"canary" not in b"".join(there.values()) + ranks.console(lost).encode()


def test_a_bucket_that_is_away_for_a_while_gets_everything_in_the_end(images: Path, tmp_path: Path) -> None:
    """Killed in the middle, and back without anything: warned of once, told once, and no step waits for it."""
    server = S3Server()
    try:
        cwd = tiny.in_folder(tmp_path, "run")
        training = tiny.arguments(images, 12, EVERY, f"mirror={BUCKET}")
        under_way = start(server, training, cwd, pause=0.15)
        wait_until(lambda: not under_way.running or bool(server.steps()))
        server.kill()
        wait_until(lambda: not under_way.running or "cannot be reached" in ranks.console(cwd))
        server.start()
        assert under_way.wait() == [0], ranks.console(cwd)
        said = ranks.console(cwd)
        assert said.count("cannot be reached") == said.count("can be reached again; copying goes on") == 1, said
        assert "training goes on" in said
        assert {name.removeprefix("run/"): content for name, content in server.files().items()} == files(cwd)
    finally:
        server.kill()


@only_in_soak
def test_without_the_bucket_the_run_is_the_same(server: S3Server, images: Path, tmp_path: Path) -> None:
    """What could not be copied is named at the end, after a bounded time; a later start copies it."""
    cwd = tiny.in_folder(tmp_path, "run")
    training = tiny.arguments(images, 2, EVERY, f"mirror={BUCKET}-2")
    nowhere = server.variables | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ranks.free_port()}"}
    assert ranks.run(train_with, nowhere, training, world_size=1, cwd=cwd) == [0]
    said = ranks.console(cwd)
    assert said.count("training goes on from the beginning, and nothing there is lost") == 1, said
    assert f"not everything is at {BUCKET}-2; missing there: everything; all of it is in" in said
    assert tiny.summary(cwd)["status"] == "completed"
