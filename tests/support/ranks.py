"""Run the training program, or any function, as one or several real ranks, without each importing torch anew."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from patience import HANG, wait_until
from rank_server import Process, rank_server

CLOSING_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """Ranks under way: to be signalled and waited for."""

    def __init__(self, processes: list[Process]):
        self._processes = processes

    @property
    def running(self) -> bool:
        """Whether all of them still run."""
        return all(process.is_alive() for process in self._processes)

    def wait_for_handlers(self) -> None:
        """Wait until each rank handles the signals that ask a training to stop, or has ended."""
        wait_until(lambda: all(not process.is_alive() or _handles_stop(process) for process in self._processes))

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it still runs."""
        process = self._processes[rank]
        if process.is_alive():
            os.kill(process.pid, number)

    def wait(self, timeout: float = HANG, closing: float = CLOSING_SECONDS) -> list[int]:
        """Their exit codes. As under a launcher, ranks that are still there `closing` seconds after another one failed
        are killed, which shows as -9."""
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in self._processes) and time.monotonic() < deadline:
            wait([process.report.fileno() for process in self._processes if process.is_alive()], timeout=0.2)
            if any(process.exitcode for process in self._processes):
                deadline = min(deadline, time.monotonic() + closing)
                closing = timeout  # the deadline is set
        timed_out = all(not process.exitcode for process in self._processes)
        late = [process for process in self._processes if process.is_alive()]
        for process in late:
            process.kill()
        assert not (late and timed_out), f"{len(late)} of {len(self._processes)} ranks did not end in {timeout} s"
        return [process.exitcode or 0 for process in self._processes]


def _handles_stop(process: Process) -> bool:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True  # it has just ended
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)


def start(function: Callable[..., int | None], *args: object, world_size: int, cwd: Path) -> Ranks:
    """Begin to run a module-level function in each of `world_size` gloo ranks; what it returns is the exit code.

    What they print goes to `cwd/console-<rank>.txt`. A rank that raises exits with 1.
    """
    port = free_port()
    processes = [
        rank_server().start(_rank, function, args, rank, world_size, port, str(cwd)) for rank in range(world_size)
    ]
    return Ranks(processes)


def run(
    function: Callable[..., int | None], *args: object, world_size: int, cwd: Path, timeout: float = HANG
) -> list[int]:
    """Run a function as ranks (see `start`) to their end; returns their exit codes."""
    return start(function, *args, world_size=world_size, cwd=cwd).wait(timeout)


def train(arguments: Sequence[str], *, world_size: int = 1, cwd: Path, timeout: float = HANG) -> list[int]:
    """`trainlib.train.main(arguments)` in each of `world_size` gloo ranks; returns their exit codes."""
    return run(main, list(arguments), world_size=world_size, cwd=cwd, timeout=timeout)


def main(arguments: list[str]) -> int:
    """The training program, inside a rank."""
    from trainlib.train import main

    return main(arguments)


def replace(owner: object, name: str, value: object) -> None:
    """Replace an attribute of a module or class, inside a rank: for good, as its process ends with the training."""
    assert hasattr(owner, name), name
    setattr(owner, name, value)


def console(cwd: Path, rank: int = 0) -> str:
    return (cwd / f"console-{rank}.txt").read_text()


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
