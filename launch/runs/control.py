"""What can be done to a run from outside: follow its log, ask it to stop, end it."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from launch.slurm import queue
from launch.slurm.follow import active_job, state_text
from trainlib.errors import UserError
from trainlib.runs import jobs
from trainlib.runs.attempts import last_start
from trainlib.runs.jobs import JobStart, job_lines, open_jobs
from trainlib.runs.status import is_running
from trainlib.runs.stop_request import write_stop_file

_POLL_SECONDS = 0.2
_QUEUE_SECONDS = 5.0  # between two questions to SLURM's controller
_CHUNK_CHARACTERS = 1 << 20
_KILL_SECONDS = 10


_ATTEMPT = re.compile(r"=== attempt (\d+)\b")


def log_chunks(directory: Path, rank: int, *, follow: bool, attempt: int | None = None) -> Iterator[str]:
    """The text of a rank's log; with `follow`, also what comes to it until the run is over.

    A run that SLURM is to continue is not over: its log is followed into the next job.
    attempt   only what this one printed
    """
    path = directory / "logs" / f"rank-{rank}.log"
    chunks = _chunks(path, _Progress(directory) if follow else None)
    return chunks if attempt is None else _of_attempt(chunks, attempt, path)


class _Progress:
    """Whether a run goes on: a process holds its lock, or a job of it waits or runs."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._asked = float("-inf")
        self._queued = False

    def goes_on(self) -> bool:
        if is_running(self._directory):
            return True
        if not open_jobs(job_lines(self._directory)):
            return False
        if time.monotonic() - self._asked > _QUEUE_SECONDS:
            try:
                self._queued = active_job(self._directory) is not None
            except queue.QueueError:
                self._queued = True  # a controller that is away for a while ends no job
            self._asked = time.monotonic()
        return self._queued


def _chunks(path: Path, progress: _Progress | None) -> Iterator[str]:
    while progress and not path.exists() and progress.goes_on():
        time.sleep(_POLL_SECONDS)
    try:
        file = path.open(encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        logs = ", ".join(sorted(log.name for log in path.parent.glob("*")))
        have = f"there are {logs}" if logs else "this run has no logs yet"
        raise UserError(f"cannot read {path}: {error.strerror}; {have}") from error
    with file:
        while True:
            over = not (progress and progress.goes_on())  # asked before reading: what comes last is not missed
            while chunk := file.read(_CHUNK_CHARACTERS):
                yield chunk
            if over:
                return
            time.sleep(_POLL_SECONDS)


def _of_attempt(chunks: Iterator[str], attempt: int, path: Path) -> Iterator[str]:
    """The lines from one attempt's heading to the next one's; UserError where it has none in this log."""
    numbers: list[int] = []
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if heading := _ATTEMPT.match(line):
                numbers.append(int(heading[1]))
            if numbers[-1:] == [attempt]:
                yield line + "\n"
    if numbers[-1:] == [attempt]:
        yield rest
    if attempt not in numbers:
        have = f"it holds attempts {', '.join(map(str, numbers))}" if numbers else "it holds none"
        raise UserError(f"no attempt {attempt} in {path}: {have}")


def ask_to_stop(directory: Path) -> str:
    """Put the STOP file into the directory of a run that runs, here or on a cluster; what happens next."""
    job = None if is_running(directory) else active_job(directory)
    if job is not None and job.waiting:
        raise UserError(
            f"{directory.name} does not run, so there is nothing to checkpoint: job {job.job_id} is {state_text(job)}; "
            f"launch cancel {directory.name} takes it out of the queue"
        )
    if job is None:
        _require_running(directory)
    write_stop_file(directory, "launch stop")
    return (
        f"asked {directory.name} to stop: it writes a checkpoint at its next step and ends with exit code 75; "
        "start it again to continue"
    )


def end_run(directory: Path) -> str:
    """End a run now: cancel its job, waiting or running, or else kill its process on this machine."""
    job = active_job(directory)
    if job is None:
        return kill_run(directory)
    queue.cancel(job.job_id)
    if job.waiting:  # a job that runs writes its own end
        job_id, _, element = job.job_id.partition("_")
        start = JobStart(job_id, int(element) if element else None, job.restarts)
        jobs.append(directory, start.as_record("end") | {"cause": "cancelled", "requeued": False})
    return (
        f"cancelled job {job.job_id} of {directory.name}, which was {job.state.lower()}: submit it again to continue "
        "from its last checkpoint"
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
