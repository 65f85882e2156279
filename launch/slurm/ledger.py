"""The record of a run's SLURM jobs, jobs.jsonl, and what is decided from it when a job ends.

One JSON object a line: `submitted` (by launch submit and launch sweep), `begin` and `end` (by the job itself, once for
each start). Deciding is pure: evidence and earlier lines in, cause and what happens next out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trainlib.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs.failure_record import FailureRecord

Record = dict[str, Any]
Cause = Literal["completed", "stopped", "preempted", "time_limit", "node_failure", "failure", "cancelled"]
QueueSays = Literal["running", "requeued", "cancelled", "time_limit", "unknown"]

JOBS_FILE = "jobs.jsonl"
END_TIME = "end time"  # trainlib's reason for stopping before the job's time is over
_NOT_ASKED = "the launcher died"  # trainlib's reason where nobody asked
_OTHER_RANK = "another rank was asked to stop"  # which only a signal does
_WARNING_SLACK = 75.0  # seconds: SLURM may send its warning up to a minute early


@dataclass(frozen=True)
class JobStart:
    """One start of a job: its id, the element of its array if it is one, and how often it was requeued before."""

    job_id: str
    array_task: int | None
    restart: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> JobStart:
        """From the variables that SLURM sets inside a job. The elements of an array share its id."""
        task = environment.get("SLURM_ARRAY_TASK_ID")
        job_id = environment.get("SLURM_ARRAY_JOB_ID") if task else environment.get("SLURM_JOB_ID")
        restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
        return cls(job_id or "", int(task) if task else None, restart)

    @property
    def queue_id(self) -> str:
        """As squeue and scontrol name it."""
        return self.job_id if self.array_task is None else f"{self.job_id}_{self.array_task}"

    @property
    def rendezvous_id(self) -> str:
        return f"job-{self.queue_id}-restart-{self.restart}"

    def of_same_job(self, record: Record) -> bool:
        """Whether a line is about this job, at any start."""
        return record.get("job_id") == self.job_id and record.get("array_task") == self.array_task

    def as_record(self, event: str) -> Record:
        return {"event": event, "job_id": self.job_id, "array_task": self.array_task, "restart": self.restart}


@dataclass(frozen=True)
class Refusal:
    """Why the ranks did not come to run, in one line, and the log that says so."""

    error: str
    log: str


@dataclass(frozen=True)
class Evidence:
    """What is known when a job's ranks have ended.

    exit_code      of srun: 0 also where the ranks stopped with a checkpoint
    status         of the attempt that this start made, as attempts.jsonl has it; None where it has none
    reason         why that attempt ended
    step           the last step that it finished; None where it finished none
    failure        the rank that ended it; None where none did, or none is known
    refusal        why there were no ranks that could fail, if that is known
    signal         the stop signal that the batch shell got, if any
    queue          what SLURM does with the job at this moment
    seconds_left   until the job's time is over; None where it is not known
    signal_seconds how long before that SLURM sends its warning
    lost_nodes     nodes of the job that went down, or lost the processes of the job
    """

    exit_code: int
    status: str | None = None
    reason: str | None = None
    step: int | None = None
    failure: FailureRecord | None = None
    refusal: Refusal | None = None
    signal: str | None = None
    queue: QueueSays = "running"
    seconds_left: float | None = None
    signal_seconds: int = 120
    lost_nodes: tuple[str, ...] = ()

    @property
    def stopped_by_signal(self) -> bool:
        return self.status == "stopped" and (self.reason == _OTHER_RANK or (self.reason or "").startswith("SIG"))

    @property
    def stopped_by_user(self) -> bool:
        own = self.reason in (END_TIME, _NOT_ASKED) or self.stopped_by_signal
        return self.status == "stopped" and not own

    @property
    def near_its_end(self) -> bool:
        return self.seconds_left is not None and self.seconds_left < self.signal_seconds + _WARNING_SLACK


@dataclass(frozen=True)
class Decision:
    """cause, whether the job goes back into the queue by our doing, why so, and what the batch job ends with."""

    cause: Cause
    requeue: bool
    why: str
    exit_code: int


def append(directory: Path, record: Record) -> None:
    """Add a line to the ledger of a run directory, with the time. Raises OSError."""
    line = json.dumps({"event": record["event"], "time": datetime.now(UTC).isoformat(timespec="milliseconds")} | record)
    with (directory / JOBS_FILE).open("ab") as file:
        file.write(line.encode() + b"\n")  # one write: lines of several processes do not mix
        file.flush()
        os.fsync(file.fileno())


def unfinished(lines: Sequence[Record]) -> list[Record]:
    """The begin lines without an end, oldest first: jobs that were killed before they could write it, or still run."""
    begun: dict[tuple[object, ...], Record] = {}
    for line in lines:
        key = (line.get("job_id"), line.get("array_task"), line.get("restart"))
        if line.get("event") == "begin":
            begun[key] = line
        elif line.get("event") == "end":
            begun.pop(key, None)
    return list(begun.values())


def find_cause(evidence: Evidence) -> Cause:
    """Why a start of a job ended."""
    if evidence.exit_code == 0 and evidence.status != "stopped":
        return "completed"
    if evidence.queue in ("cancelled", "time_limit"):
        return evidence.queue
    if evidence.stopped_by_user:
        return "stopped"
    if evidence.lost_nodes:
        return "node_failure"
    if evidence.status == "stopped" and evidence.reason == END_TIME:
        return "time_limit"
    killed_when_asked = evidence.signal is not None and evidence.exit_code > 128
    if evidence.stopped_by_signal or killed_when_asked:
        return "time_limit" if evidence.near_its_end else "preempted"
    return "preempted" if evidence.queue == "requeued" else "failure"


def decide(evidence: Evidence, earlier_ends: Sequence[Record], max_failures: int) -> Decision:
    """What happens to the job now.

    earlier_ends   the end lines of this job's earlier starts, oldest first
    max_failures   so many real failures end the job; 0 and 1 both mean the first one. Preemptions, time limits and node
                   failures are none
    """
    cause = find_cause(evidence)
    if cause == "completed":
        return Decision(cause, False, "the run is complete", 0)
    if cause == "stopped":
        return Decision(cause, False, f"asked to stop ({evidence.reason}); submit it again to continue", EXIT_STOPPED)
    code = _exit_code(evidence)
    if cause == "cancelled":
        return Decision(cause, False, "submit it again to continue", code)
    if evidence.queue == "requeued":
        return Decision(cause, False, "SLURM has put it back into the queue", code)
    refusal = _why_not_again(cause, evidence, earlier_ends, max_failures, code)
    return Decision(cause, refusal is None, refusal or "it goes back into the queue", code)


def _why_not_again(
    cause: Cause, evidence: Evidence, earlier_ends: Sequence[Record], max_failures: int, code: int
) -> str | None:
    """What speaks against another start; None where nothing does."""
    previous = earlier_ends[-1] if earlier_ends else {}
    if cause == "time_limit":
        stuck = evidence.step is None and previous.get("cause") == "time_limit" and previous.get("step") is None
        return "its time was over twice before it had finished a step: give it more with slurm.time" if stuck else None
    if cause != "failure":
        return None
    if code == EXIT_USER_ERROR:
        return "a mistake in what was asked, which another start does not mend"
    failures = 1 + sum(line.get("cause") == "failure" for line in earlier_ends)
    if failures >= max_failures:
        return f"{failures} failure{'s' * (failures > 1)}, and slurm.max_failures is {max_failures}"
    same = (previous.get("step"), previous.get("exit_code"), previous.get("error")) == (None, code, error_of(evidence))
    if evidence.step is None and previous.get("cause") == "failure" and same:
        return "it failed twice with the same error before it had finished a step"
    return None


def error_of(evidence: Evidence) -> str | None:
    """The last word of the rank that failed, or of what kept the ranks from running."""
    if evidence.failure is not None:
        return evidence.failure.error
    if evidence.status == "failed":
        return evidence.reason
    return evidence.refusal.error if evidence.refusal else None


def _exit_code(evidence: Evidence) -> int:
    """Of a job that did not complete: the failing rank's own where one failed."""
    if evidence.status == "stopped":
        return EXIT_STOPPED
    if evidence.failure is not None:
        return evidence.failure.exit_code
    return evidence.exit_code or EXIT_FAILURE
