"""Describes jobs in SLURM's queue in words, and follows one to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from launch.slurm.queue import JobState, QueueError, job_states
from trainlib.errors import EXIT_FAILURE
from trainlib.runs.files.json_records import Record
from trainlib.runs.records.jobs import job_lines, open_jobs, queue_id

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 20.0  # between two questions to the controller


def state_text(job: JobState) -> str:
    """Return the state of a job in words: `pending (Priority), expected to start at 2030-01-02 03:04:05`.

    Times are in this machine's time zone.
    """
    reason = f" ({job.reason})" if job.waiting and job.reason else ""
    nodes = f" on {job.nodes}" if job.nodes else ""
    start = ""
    if job.waiting and job.start is not None and "held" not in job.reason.lower():
        start = f", expected to start at {datetime.fromtimestamp(job.start):%Y-%m-%d %H:%M:%S}"
    requeued = f", requeued {job.restarts} time{'s' * (job.restarts > 1)}" if job.restarts else ""
    return f"{job.state.lower()}{reason}{nodes}{start}{requeued}"


def active_job(directory: Path) -> JobState | None:
    """Return the newest job of a run that waits or runs; None where there is none. Raises QueueError."""
    states = job_states(open_jobs(job_lines(directory)))
    return next((job for job in reversed(states.values()) if job.active), None)


def known_jobs(jobs: Sequence[Sequence[Record]]) -> dict[str, JobState]:
    """Return the jobs of several runs that the queue knows, by id, with one call of squeue. Raises QueueError.

    jobs   the lines of jobs.jsonl of each run
    """
    return job_states([job_id for lines in jobs for job_id in open_jobs(list(lines))])


def wait_for(job_id: str, directory: Path, tell: Callable[[str], None]) -> int:
    """Follow a job, across its requeues, until it has ended; return its exit code.

    tell   called with each new state of the job, in words
    """
    told, pause = "", _FIRST_SECONDS
    job: JobState | None = None
    while True:
        try:
            states = job_states([job_id])
        except QueueError as error:
            text = f"{error}; asking again"
        else:
            job = states.get(job_id, job)
            if job_id not in states or not states[job_id].active:
                return _exit_code(job, job_id, job_lines(directory))
            text = f"job {job_id}: {state_text(states[job_id])}"
        if text != told:
            tell(text)
            told, pause = text, _FIRST_SECONDS
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_SECONDS)


def _exit_code(job: JobState | None, job_id: str, lines: Sequence[Record]) -> int:
    """Return the exit code of a job's last end line, or the queue's where the batch script was killed before it."""
    ends = [line for line in lines if line.get("event") == "end" and queue_id(line) == job_id]
    if ends and not ends[-1].get("requeued") and isinstance(ends[-1].get("exit_code"), int):
        return int(ends[-1]["exit_code"])
    if job is not None and job.state == "COMPLETED":
        return job.exit_code
    return (job.exit_code if job else 0) or EXIT_FAILURE
