"""Several runs in one process: their ranks find each other each time."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import ranks
from parts import resolved
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainlib.distributed import process_group


def join_twice() -> None:
    """As under torchrun, whose agent keeps one store: rank 1 comes back first, and finds nobody yet."""
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    agent = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=60), wait_for_workers=False)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for number in (1, 2):
        with process_group.joined(resolved({}).train):
            assert process_group.gather_objects(10 * number + rank) == [10 * number, 10 * number + 1]
        time.sleep(0.3 if rank == 0 else 0)
    agent.add("ended", 1)
    while rank == 0 and agent.add("ended", 0) < 2:
        time.sleep(0.01)


def test_ranks_of_a_second_run_find_each_other_and_not_those_of_the_first(tmp_path: Path) -> None:
    assert ranks.run(join_twice, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path, rank=1)
