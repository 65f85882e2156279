"""Run the training program, or any function, as one or several real ranks, without each importing torch anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

CLOSING_SECONDS = 10.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "accelerate", "torchvision", "trainlib.session"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(arguments: Sequence[str], *, world_size: int = 1, cwd: Path, timeout: float = 120.0) -> list[int]:
    """`trainlib.train.main(arguments)` in each of `world_size` gloo ranks; returns their exit codes."""
    return run(_main, list(arguments), world_size=world_size, cwd=cwd, timeout=timeout)


def run(
    function: Callable[..., int | None], *args: object, world_size: int, cwd: Path, timeout: float = 120.0
) -> list[int]:
    """A module-level function in each of `world_size` gloo ranks; returns what they return, as exit codes.

    What they print goes to `cwd/console-<rank>.txt`. A rank that raises exits with 1. As under a launcher, ranks that
    are still there some seconds after another one failed are killed, which shows as -9.
    """
    port = free_port()
    ranks = [
        _context.Process(target=_rank, args=(function, args, rank, world_size, port, str(cwd)))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + timeout
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        wait([process.sentinel for process in ranks if process.is_alive()], timeout=0.2)
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + CLOSING_SECONDS)
    timed_out = all(not process.exitcode for process in ranks)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not (late and timed_out), f"{len(late)} of {world_size} ranks did not end within {timeout} s"
    return [process.exitcode or 0 for process in ranks]


def console(cwd: Path, rank: int = 0) -> str:
    return (cwd / f"console-{rank}.txt").read_text()


def _main(arguments: list[str]) -> int:
    from trainlib.train import main

    return main(arguments)


def _rank(
    function: Callable[..., int | None], args: tuple[object, ...], rank: int, world_size: int, port: int, cwd: str
) -> None:
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
    try:
        code = function(*args) or 0
    except BaseException:  # noqa: BLE001 - the boundary of the process
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
