"""Weights & Biases shows exactly what metrics.jsonl holds, whatever happens to the training."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
import wandb_files

EVERY = 4
SECRETS = {"WANDB_API_KEY": "canary" + 34 * "0", "SOME_TOKEN": "canary in a coal mine"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wandb") / "images"
    tiny.make_images(root)
    return root


def tracked(arguments: list[str]) -> int:
    """The training program with W&B, which the tests else leave out."""
    os.environ.pop("WANDB_MODE", None)
    os.environ |= SECRETS
    return ranks.main(arguments)


def followers(cwd: Path) -> list[psutil.Process]:
    """The processes that show the runs of a directory to W&B, and W&B's own."""
    running = psutil.process_iter(["cwd", "cmdline"])
    return [
        process
        for process in running
        if process.info["cwd"] == str(cwd) and "wandb" in " ".join(process.info["cmdline"] or [])
    ]


def test_killed_three_times_each_row_is_there_once(tmp_path: Path, images: Path) -> None:
    """In W&B's files on disk, all attempts together, and in TensorBoard's, exactly as in metrics.jsonl; one run id.

    The training is killed alone, then with the processes of W&B, then alone again. No secret is in any file.
    """
    choice = random.Random(7)
    training = tiny.arguments(images, 12, EVERY, "tracking={log_every: 1, tensorboard: true}")
    for kills_all in (False, True, False):
        moment = tiny.Moment(tmp_path, EVERY, choice)
        under_way = ranks.start(tracked, training, world_size=1, cwd=tmp_path)
        moment.wait(lambda: under_way.running)  # noqa: B023 - called at once
        under_way.signal(0, signal.SIGKILL)
        for process in followers(tmp_path) if kills_all else []:
            process.kill()
        assert under_way.wait() == [-signal.SIGKILL]
    assert ranks.run(tracked, training, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    run = tmp_path / "runs/run"
    assert [start["from_step"] > 0 for start in tiny.attempts(tmp_path, "start")] == [False, True, True, True]
    assert len(wandb_files.logs(run)) > 1
    wandb_files.assert_same_rows(run)
    wandb_files.assert_same_in_tensorboard(run)
    assert_no_secret(run)


def assert_no_secret(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"canary" in path.read_bytes()] == []
