"""A rank that only loses another one says so in one line, and with a code that nobody takes for the reason."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import ranks
import tiny

from trainlib.errors import EXIT_CONNECTION_LOST
from trainlib.runs.records.failure_record import FailureRecord, clear, read_all, root_cause, save


def train_until_rank_1_is_gone(arguments: list[str]) -> int:
    """In each rank: train; rank 1 ends with 7 once there are rows."""
    if os.environ["RANK"] == "1":

        def go_away() -> None:
            while tiny.last_step(Path()) < 3:
                time.sleep(0.02)
            os._exit(7)

        threading.Thread(target=go_away, daemon=True).start()
    return ranks.main(arguments)


def test_the_rank_that_is_left_tells_it_in_one_line(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    arguments = tiny.arguments(tmp_path / "images", 500, 400, "tracking.wandb.mode=disabled")
    codes = ranks.run(train_until_rank_1_is_gone, arguments, world_size=2, cwd=tmp_path)
    assert codes == [EXIT_CONNECTION_LOST, 7]
    lines = (tmp_path / "runs/run/logs/rank-0.log").read_text().splitlines()
    assert lines[0] == "=== attempt 1 ==="
    assert lines[-1].startswith("lost the connection to another rank (Connection ")
    assert not any("Traceback" in line for line in lines)
    (end,) = tiny.attempts(tmp_path, "end")
    assert end["status"] == "failed"
    assert end["reason"].startswith("ConnectionLostError: lost the connection to another rank")


def record(time: str, rank: int, exit_code: int) -> FailureRecord:
    return FailureRecord(time, rank, f"n{rank}", exit_code, None, f"runs/x/logs/rank-{rank}.log", "the last line")


def test_of_several_nodes_the_root_cause_is_found(tmp_path: Path) -> None:
    lost, failed, later = record("2026-01-01T00:00:01", 0, 76), record("2026-01-01T00:00:02", 1, 7), record("3", 2, 1)
    for node, left in enumerate((later, lost, failed)):
        save(tmp_path, node, left)
    (tmp_path / "logs" / "node-9.failure.json").write_text('{"rank": ')
    assert read_all(tmp_path) == [later, lost, failed]
    assert root_cause(read_all(tmp_path)) == failed
    for node in range(3):
        clear(tmp_path, node)
    assert root_cause(read_all(tmp_path)) is None
