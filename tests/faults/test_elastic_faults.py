"""Killed at any moment, and started again with another number of ranks each time: the bits of one process."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import ranks
import tiny
from patience import HANG
from soak import rounds

pytestmark = pytest.mark.slow

EVERY = 4
WORLD_SIZES = (1, 2, 3, 4)
KILLS = rounds(4, 200)


def test_random_kills_with_a_random_world_size_at_each_start_change_no_bit(tmp_path: Path) -> None:
    """Dropout, augmentation, AdamW, a cosine by steps, clipping, a best checkpoint; the last batch leaves shards empty.

    One rank, any of them, is killed by SIGKILL at a random moment; the run goes on with 1 to 4 ranks, never as before.
    """
    choice = random.Random(7)
    images = tmp_path / "images"
    tiny.make_images(images)
    training = tiny.arguments(images, 3 * KILLS, EVERY, "train.reproducibility=elastic", "data.limit=41")
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    assert ranks.train(training, cwd=whole, timeout=10 * HANG) == [0], ranks.console(whole)

    sizes = [choice.choice(WORLD_SIZES)]
    while len(sizes) <= KILLS:
        sizes.append(choice.choice([size for size in WORLD_SIZES if size != sizes[-1]]))
    for size in sizes[:-1]:
        moment = tiny.Moment(killed, EVERY, choice)
        under_way = ranks.start(ranks.main, training, world_size=size, cwd=killed)
        moment.wait(lambda: under_way.running)  # noqa: B023 - called at once
        victim = choice.randrange(size)
        under_way.signal(victim, signal.SIGKILL)
        assert under_way.wait(closing=3.0)[victim] == -signal.SIGKILL, "the run was over before all the kills"
    codes = ranks.train(training, world_size=sizes[-1], cwd=killed, timeout=10 * HANG)
    assert codes == [0] * sizes[-1], ranks.console(killed)
    tiny.assert_same_result(killed, whole)
    starts = tiny.attempts(killed, "start")
    assert {line["world_size"] for line in starts} <= set(WORLD_SIZES)
    assert any(line["from_step"] for line in starts), "none of the changes came to train"
