"""Killed at any moment, again and again: the same bits in the end, and never more lost than one checkpoint interval."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from soak import only_in_soak, rounds

from trainlib import checkpoint

EVERY = 4
GONE_SECONDS = 10.0  # for the other processes of a run to end, once one of them was killed


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills") / "images"
    tiny.make_images(root)
    return root


def wait_for_moment(cwd: Path, moment: random.Random, running: Callable[[], bool]) -> None:
    """Until some steps after the attempt's start, or some time if that is sooner: while starting, training or saving."""
    metrics = cwd / "runs/run/metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None  # the attempt replaces it before its first row
    from_step = max(checkpoint.steps_in(cwd / "runs/run/checkpoints"), default=0)
    deadline = time.monotonic() + moment.uniform(0.0, 10.0 if moment.random() < 0.7 else 1.0)
    until = from_step + moment.randint(1, 2 * EVERY)
    while running() and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_ino != before and tiny.last_step(cwd) >= until:
            break
        time.sleep(0.002)
    time.sleep(moment.uniform(0.0, 0.03))


def assert_little_was_lost(cwd: Path, reached: list[int]) -> None:
    """Each attempt went on at most one interval before the last row that the ones before it had written."""
    started = [line["from_step"] for line in tiny.attempts(cwd, "start")]
    for step, last in zip(started[1:], reached, strict=False):
        assert last - step <= EVERY


def test_killed_at_random_and_resumed_is_the_same_in_every_bit(tmp_path: Path, images: Path) -> None:
    moment = random.Random(20)
    kills = rounds(20, 70)
    training = tiny.arguments(images, 3 * kills, EVERY)
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    assert ranks.train(training, world_size=2, cwd=whole) == [0, 0], ranks.console(whole)

    reached: list[int] = []
    for _ in range(kills):
        attempts = len(tiny.attempts(killed, "start"))
        under_way = ranks.start(ranks.main, training, world_size=2, cwd=killed)
        wait_for_moment(killed, moment, lambda: under_way.running)  # noqa: B023 - called at once
        victim = moment.randrange(2)
        under_way.signal(victim, signal.SIGKILL)
        codes = under_way.wait(closing=3.0)
        assert codes[victim] == -signal.SIGKILL, "the run was over before all the kills"
        if len(tiny.attempts(killed, "start")) > attempts:
            reached.append(tiny.last_step(killed))
    assert ranks.train(training, world_size=2, cwd=killed) == [0, 0], ranks.console(killed)
    tiny.assert_same_result(killed, whole)
    assert len(reached) > kills / 2  # most of them came to training
    assert_little_was_lost(killed, reached)


def launch(training: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    repository = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
    with (cwd / "console.txt").open("wb") as console:
        command = [sys.executable, "-m", "launch", "run", *training, "--processes", "2"]
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=console, stderr=console)


@only_in_soak
def test_killed_under_the_real_launcher(tmp_path: Path, images: Path) -> None:
    """Any process of the run is killed: the launcher, Accelerate's agent or a rank; then all are gone soon."""
    moment = random.Random(30)
    kills = 30
    training = tiny.arguments(images, 3 * kills, EVERY)
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    assert launch(training, whole).wait(timeout=600) == 0, (whole / "console.txt").read_text()

    reached: list[int] = []
    for _ in range(kills):
        attempts = len(tiny.attempts(killed, "start"))
        launcher = launch(training, killed)
        ended = launcher.poll
        while len(tiny.attempts(killed, "start")) == attempts and ended() is None:
            time.sleep(0.02)
        wait_for_moment(killed, moment, lambda: ended() is None)  # noqa: B023 - called at once
        family = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        moment.choice(family).kill()
        _, left = psutil.wait_procs(family[1:], timeout=GONE_SECONDS)
        assert not left
        assert launcher.wait(timeout=GONE_SECONDS) != 0, "the run was over before all the kills"
        reached.append(tiny.last_step(killed))
    assert launch(training, killed).wait(timeout=600) == 0, (killed / "console.txt").read_text()
    tiny.assert_same_result(killed, whole)
    assert_little_was_lost(killed, reached)
