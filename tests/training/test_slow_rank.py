"""A rank that is slower than the others is named, with host and device, in the log, the rows and `launch status`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
from soak import only_in_soak

from launch.runs.show import run_details
from trainlib.runs.attempt.status import read_run
from trainlib.runs.files.json_records import read_lines

ELASTIC = ("train.reproducibility=elastic", "train.virtual_shards=4")


def slowed(arguments: list[str], slow: int, seconds: float, scale: float) -> int:
    """In each rank: train, one of them with a pause in each step; minutes are as short as `scale` says."""
    from trainlib.distributed.pace import slow_ranks
    from trainlib.training.step.train_step import train_step
    from trainlib.training.tuning import memory

    def later(*rest: Any) -> Any:
        time.sleep(seconds)
        return train_step(*rest)

    for name in ("PART_SECONDS", "LONG_SECONDS"):
        ranks.replace(slow_ranks, name, getattr(slow_ranks, name) * scale)
    if scale < 1:  # then nothing averages what a busy machine does to a step
        ranks.replace(slow_ranks, "LIMIT", 1.5)
    if int(os.environ["RANK"]) == slow:
        ranks.replace(memory, "train_step", later)
    return ranks.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "slow", "more"), [(2, 0, []), (3, 2, [*ELASTIC])])
def test_a_slow_rank_is_named_and_no_other(tmp_path: Path, world_size: int, slow: int, more: list[str]) -> None:
    tiny.make_images(tmp_path / "images")
    training = tiny.arguments(tmp_path / "images", 8, 100, *more)
    codes = ranks.run(slowed, training, slow, 0.1, 0.01, world_size=world_size, cwd=tmp_path)
    assert codes == [0] * world_size, ranks.console(tmp_path)
    said = ranks.console(tmp_path)
    assert f"slow for a minute: rank {slow} on " in said
    assert "CPU" in said
    named = [row for row in read_lines(tmp_path / "runs/run/metrics.jsonl") if "slow" in row]
    assert named
    assert all(row["slow"].startswith(f"rank {slow} on ") and ";" not in row["slow"] for row in named)
    run = read_run(tmp_path / "runs/run")
    of_then = replace(run, last=run.last | {("train", "step"): named[0]})  # it need not be slow in the last row
    assert f"slow:        rank {slow} on " in run_details(of_then, datetime.now(UTC))


@only_in_soak
def test_nobody_is_named_in_a_run_with_unequal_shares(tmp_path: Path) -> None:
    """Four virtual shards on three ranks, which share the cores of this machine: for SLOW_MINUTES (10)."""
    tiny.make_images(tmp_path / "images")
    minutes = float(os.environ.get("SLOW_MINUTES", "10"))
    epochs = 1_000_000
    training = tiny.arguments(
        tmp_path / "images", epochs, 1000, *ELASTIC, "checkpoint.best=null", "tracking.log_every=20"
    )
    started = ranks.start(slowed, training, -1, 0.0, 1.0, world_size=3, cwd=tmp_path)
    time.sleep(60 * minutes)
    for rank in range(3):
        started.signal(rank, 15)
    assert started.wait() == [75, 75, 75], ranks.console(tmp_path)
    assert "slow for a minute" not in ranks.console(tmp_path)
    assert tiny.last_step(tmp_path) > 100
