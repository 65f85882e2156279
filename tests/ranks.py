"""Run the training program as one or several real processes, without each of them importing torch anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "accelerate", "torchvision", "trainlib.session"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(arguments: Sequence[str], *, world_size: int = 1, cwd: Path, timeout: float = 120.0) -> list[int]:
    """`trainlib.train.main(arguments)` in each of `world_size` gloo ranks; returns their exit codes.

    What they print goes to `cwd/console-<rank>.txt`.
    """
    port = free_port()
    ranks = [
        _context.Process(target=_rank, args=(rank, world_size, port, list(arguments), str(cwd)))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} of {world_size} ranks did not end within {timeout} s"
    return [process.exitcode or 0 for process in ranks]


def console(cwd: Path, rank: int = 0) -> str:
    return (cwd / f"console-{rank}.txt").read_text()


def _rank(rank: int, world_size: int, port: int, arguments: list[str], cwd: str) -> None:
    os.chdir(cwd)
    output = os.open(f"console-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TRAINLAUNCH_WORLD_SIZE=str(world_size),
        )
    from trainlib.train import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
