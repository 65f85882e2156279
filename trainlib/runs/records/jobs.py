"""jobs.jsonl: the record of a run's SLURM jobs.

One JSON object a line, with an `event`: `submitted` (written by launch submit and launch sweep), `begin` and `end`
(written by the job itself, once for each of its starts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainlib.runs.files.json_records import Record, append_line, read_lines, timestamp
from trainlib.runs.records.shapes import JOB

JOBS_FILE = "jobs.jsonl"


@dataclass(frozen=True)
class JobStart:
    """One start of a SLURM job: the job's id, its element in an array, and how often it was requeued before."""

    job_id: str
    array_task: int | None
    restart: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> JobStart:
        """Return the start of the job in which this runs, from the variables that SLURM sets; id "" outside a job.

        The elements of an array share its id.
        """
        task = environment.get("SLURM_ARRAY_TASK_ID")
        job_id = environment.get("SLURM_ARRAY_JOB_ID") if task else environment.get("SLURM_JOB_ID")
        restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
        return cls(job_id or "", int(task) if task else None, restart)

    @property
    def queue_id(self) -> str:
        """Return the job's id as squeue and scontrol write it: `123`, or `123_4` for element 4 of an array."""
        return self.job_id if self.array_task is None else f"{self.job_id}_{self.array_task}"

    @property
    def rendezvous_id(self) -> str:
        """Return a text that no other start of any job of this cluster has."""
        return f"job-{self.queue_id}-restart-{self.restart}"

    def of_same_job(self, record: Record) -> bool:
        """Return True if a line of jobs.jsonl is about this job, at any of its starts."""
        return record.get("job_id") == self.job_id and record.get("array_task") == self.array_task

    def as_record(self, event: str) -> Record:
        """Return the beginning of a line of jobs.jsonl about this start."""
        return {"event": event, "job_id": self.job_id, "array_task": self.array_task, "restart": self.restart}


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """Return the id, as the queue writes it, of the SLURM job in which this runs; None outside a job."""
    if task := environment.get("SLURM_ARRAY_TASK_ID"):
        return f"{environment.get('SLURM_ARRAY_JOB_ID')}_{task}"
    return environment.get("SLURM_JOB_ID")


def append(directory: Path, record: Record) -> None:
    """Add a line to the jobs.jsonl of a run directory, with the time. Raises OSError."""
    append_line(directory / JOBS_FILE, {"event": record["event"], "time": timestamp()} | record)


def job_lines(directory: Path) -> list[Record]:
    """Return the lines of a run's jobs.jsonl that name their job, oldest first."""
    return read_lines(directory / JOBS_FILE, fits=JOB)


def queue_id(record: Record) -> str:
    """Return the id of the job that a line is about, as the queue writes it: `123`, or `123_4` in an array."""
    return JobStart(str(record["job_id"]), record.get("array_task"), 0).queue_id


def open_jobs(lines: Sequence[Record]) -> list[str]:
    """Return the ids of the jobs whose end these lines do not tell, newest last; they may have ended since."""
    is_open: dict[str, bool] = {}
    for line in lines:
        is_open.pop(queue_id(line), None)  # newest last
        is_open[queue_id(line)] = line.get("event") != "end" or bool(line.get("requeued"))
    return [name for name, still in is_open.items() if still]


def unfinished(lines: Sequence[Record]) -> list[Record]:
    """Return the begin lines without an end, oldest first: of jobs that still run, or were killed too suddenly."""
    begun: dict[tuple[object, ...], Record] = {}
    for line in lines:
        key = (line.get("job_id"), line.get("array_task"), line.get("restart"))
        if line.get("event") == "begin":
            begun[key] = line
        elif line.get("event") == "end":
            begun.pop(key, None)
    return list(begun.values())
