"""What can be done to a run from outside: follow its log, ask it to stop, kill it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from launch.runs import is_running, last_start
from trainlib.errors import UserError

_POLL_SECONDS = 0.2
_CHUNK_CHARACTERS = 1 << 20
_KILL_SECONDS = 10


def log_chunks(directory: Path, rank: int, *, follow: bool) -> Iterator[str]:
    """The text of a rank's log; with `follow`, also what comes to it until the run is over."""
    path = directory / "logs" / f"rank-{rank}.log"
    try:
        file = path.open(encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        ranks = sorted(int(log.stem[5:]) for log in path.parent.glob("rank-*.log") if log.stem[5:].isdecimal())
        have = f"there are logs of ranks {', '.join(map(str, ranks))}" if ranks else "this run has no logs yet"
        raise UserError(f"cannot read {path}: {error.strerror}; {have}") from error
    with file:
        while True:
            over = not (follow and is_running(directory))  # asked before reading: what comes last is not missed
            while chunk := file.read(_CHUNK_CHARACTERS):
                yield chunk
            if over:
                return
            time.sleep(_POLL_SECONDS)


def ask_to_stop(directory: Path) -> str:
    """Put the STOP file into the directory of a running run; what happens next."""
    _require_running(directory)
    (directory / "STOP").touch()
    return (
        f"asked {directory.name} to stop: it writes a checkpoint at its next step and ends with exit code 75; "
        "start it again to continue"
    )


def kill_run(directory: Path) -> str:
    """End a running run on this machine by killing its rank 0; the others end when they lose it.

    Only a process that is certainly the run's is killed: the run's lock is held, its newest attempt was started on this
    machine, and the process with its number runs the training program.
    """
    import psutil

    _require_running(directory)
    start = last_start(directory) or {}
    host, pid = start.get("host"), start.get("pid")
    if host != socket.gethostname():
        raise UserError(
            f"{directory.name} runs on {host}, not on this machine, {socket.gethostname()}: cancel it there"
        )
    try:
        process = psutil.Process(pid)
        command_line = process.cmdline()
        if not _is_training(command_line):
            raise UserError(f"process {pid} is not a training but {' '.join(command_line)!r}: nothing was killed")
        process.kill()
    except psutil.Error as error:
        raise UserError(f"cannot end {directory.name}: {error}; launch stop {directory.name} asks it to end") from error
    deadline = time.monotonic() + _KILL_SECONDS
    while is_running(directory) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return f"killed {directory.name} (process {pid}): start it again to continue from its last checkpoint"


def _is_training(command_line: list[str]) -> bool:
    """Whether a process runs the training program, by itself or inside `launch run`."""
    names = {os.path.basename(word) for word in command_line}
    return (
        "trainlib.train" in names or "train.py" in names or ("run" in names and bool(names & {"launch", "__main__.py"}))
    )


def _require_running(directory: Path) -> None:
    if not is_running(directory):
        raise UserError(f"{directory.name} is not running; launch status {directory.name} tells how it ended")
