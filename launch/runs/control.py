"""Controls a run from outside: follows its log, asks it to stop, or ends it at once."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from launch.runs.show import log_before_python
from launch.slurm import queue
from launch.slurm.follow import active_job
from trainlib.errors import UserError
from trainlib.platform.regular_files import open_regular
from trainlib.runs.attempt.owner import Owner, read_owner
from trainlib.runs.attempt.record import last_start
from trainlib.runs.attempt.status import is_running, read_run
from trainlib.runs.attempt.stop_request import write_stop_file
from trainlib.runs.records import jobs
from trainlib.runs.records.jobs import JobStart, job_lines, open_jobs

_POLL_SECONDS = 0.2
_QUEUE_SECONDS = 5.0  # between two questions to SLURM's controller
_CHUNK_CHARACTERS = 1 << 20
_LONGEST_LINE = 1 << 20  # characters
_SHOWN_BYTES = 1 << 24  # of a log
_KILL_SECONDS = 10


_ATTEMPT = re.compile(r"=== attempt (\d+)\b")


def log_chunks(
    directory: Path, rank: int, *, follow: bool, attempt: int | None = None, lines: int | None = None
) -> Iterator[str]:
    """Return the text of a rank's log, in pieces.

    follow    go on with what is appended until the run is over. A run whose SLURM job is to start again is not over
    attempt   only what this attempt printed
    lines     only so many of the lines that are there, the last ones
    """
    path = directory / "logs" / f"rank-{rank}.log"
    if not path.exists() and not follow and (job_log := log_before_python(read_run(directory))) is not None:
        job = job_log.stem.removeprefix("slurm-")
        print(f"note: no rank has begun; this is what job {job} printed", file=sys.stderr)
        path, attempt = job_log, None
    chunks = _chunks(path, _Progress(directory) if follow else None, lines if attempt is None else None)
    if attempt is None:
        return chunks
    chunks = _of_attempt(chunks, attempt, path)
    return chunks if lines is None or follow else iter(deque(chunks, lines))  # each of these is a line


class _Progress:
    """Watches if a run goes on: a process holds its lock, or a job of the run waits or runs."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._asked = float("-inf")
        self._queued = False

    def goes_on(self) -> bool:
        """Return True if the run is not over. The queue is asked every few seconds at most."""
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


def _chunks(path: Path, progress: _Progress | None, lines: int | None = None) -> Iterator[str]:
    while progress and not path.exists() and progress.goes_on():
        time.sleep(_POLL_SECONDS)
    try:
        descriptor = open_regular(path, within=path.parents[1])
    except OSError as error:
        logs = ", ".join(sorted(log.name for log in path.parent.glob("*")))
        have = f"there are {logs}" if logs else "this run has no logs yet"
        raise UserError(f"cannot read {path}: {error.strerror}; {have}") from error
    with os.fdopen(descriptor, encoding="utf-8", errors="replace", newline="") as file:
        if (size := os.fstat(descriptor).st_size) > _SHOWN_BYTES:
            print(f"note: only the last {_SHOWN_BYTES >> 20} of {size >> 20} MB of {path} are shown", file=sys.stderr)
            file.seek(size - _SHOWN_BYTES)
        if lines is not None:
            yield "".join(deque(file, lines))
        while True:
            over = not (progress and progress.goes_on())  # asked before reading: what comes last is not missed
            while chunk := file.read(_CHUNK_CHARACTERS):
                yield chunk
            if over:
                return
            time.sleep(_POLL_SECONDS)


def _of_attempt(chunks: Iterator[str], attempt: int, path: Path) -> Iterator[str]:
    """Yield the lines from one attempt's heading to the next one's; raise UserError where the log has none."""
    numbers: list[int] = []
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        if len(rest) > _LONGEST_LINE:  # no line, and to carry it on would take ever longer
            lines, rest = [*lines, rest], ""
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
    """Ask a run that trains, here or on a cluster, to stop; return a sentence on what happens next.

    A job that waits, for its first start or after one, has nothing to write, and is taken out of the queue.
    """
    job = None if is_running(directory) else active_job(directory)
    if job is not None and job.waiting:
        return end_run(directory)
    if job is None:
        _require_running(directory)
    owner = read_owner(directory)
    write_stop_file(directory, "launch stop", owner.stop_token if owner else None)
    return (
        f"asked {directory.name} to stop: it writes a checkpoint at its next step and ends with exit code 75, unless "
        "that was its last; start it again to continue"
    )


def end_run(directory: Path) -> str:
    """End a run now: cancel its job, or else kill its process on this machine. Return a sentence for the user."""
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
    """Kill rank 0 of a run on this machine; the other ranks end when they lose it. Return a sentence for the user.

    Only a process that is certainly the run's is killed: it owns the run, is on this machine, and runs the training
    program.
    """
    import psutil

    _require_running(directory)
    owner = read_owner(directory) or last_start(directory) or {}
    host, pid = (owner.host, owner.pid) if isinstance(owner, Owner) else (owner.get("host"), owner.get("pid"))
    if host != socket.gethostname():
        raise UserError(
            f"{directory.name} runs on {host}, not on this machine, {socket.gethostname()}: cancel it there"
        )
    try:
        process = psutil.Process(pid)
        command_line = process.cmdline()
        if not _is_training(command_line):
            raise UserError(f"process {pid} is not a training but {' '.join(command_line)!r}: nothing was killed")
        if isinstance(owner, Owner):  # or its launcher would take the death for an accident, and start it again
            write_stop_file(directory, "launch cancel", owner.stop_token)
        process.kill()
    except psutil.Error as error:
        raise UserError(f"cannot end {directory.name}: {error}; launch stop {directory.name} asks it to end") from error
    deadline = time.monotonic() + _KILL_SECONDS
    while is_running(directory) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if read_run(directory).status == "completed":
        return f"killed {directory.name} (process {pid}), which was complete already"
    return f"killed {directory.name} (process {pid}): start it again to continue from its last checkpoint"


def _is_training(command_line: list[str]) -> bool:
    """Return True if a process runs the training program, by itself or inside `launch run`."""
    names = {os.path.basename(word) for word in command_line}
    return (
        "trainlib.train" in names or "train.py" in names or ("run" in names and bool(names & {"launch", "__main__.py"}))
    )


def _require_running(directory: Path) -> None:
    if not is_running(directory):
        raise UserError(f"{directory.name} is not running; launch status {directory.name} tells how it ended")
