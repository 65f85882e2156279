"""Why one attempt of a SLURM job ended, and whether the job goes back into the queue: decided from evidence alone.

Deciding is pure: evidence and the earlier lines of jobs.jsonl in, cause and decision out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainlib.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs.files.json_records import Record
from trainlib.runs.records.failure_record import FailureRecord
from trainlib.runs.records.reasons import EndCode

Cause = Literal["completed", "stopped", "preempted", "time_limit", "node_failure", "failure", "cancelled"]
QueueSays = Literal["running", "requeued", "cancelled", "time_limit", "unknown"]

_WARNING_SLACK = 75.0  # seconds: SLURM may send its warning up to a minute early


@dataclass(frozen=True)
class Refusal:
    """Why no rank of a job was started, in one line, and the log that says so."""

    error: str
    log: str


@dataclass(frozen=True)
class Evidence:
    """The facts that are known when the ranks of a job have ended.

    exit_code      srun's: 0, or with a range of nodes 75, where the ranks stopped with a checkpoint
    code           why the attempt of this start ended, as attempts.jsonl has it; None where it has no end
    reason         the sentence that goes with the code
    step           the last step that the attempt finished; None where it finished none
    failure        the rank whose failure ended the attempt; None where none is known
    refusal        why no rank was started, where that is known
    signal         the stop signal that the batch shell got; None where it got none
    queue          what SLURM is doing with the job at this moment
    seconds_left   seconds until the job's time is over; None where that is not known
    signal_seconds seconds before that end at which SLURM sends its warning
    lost_nodes     nodes of the job that went down, or lost the processes of the job
    """

    exit_code: int
    code: EndCode | None = None
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
    def stopped(self) -> bool:
        """Return True if the attempt ended because it was asked to."""
        return self.code is not None and self.code.status == "stopped"

    @property
    def near_its_end(self) -> bool:
        """Return True if the job's time is so nearly over that SLURM has warned of its end."""
        return self.seconds_left is not None and self.seconds_left < self.signal_seconds + _WARNING_SLACK


@dataclass(frozen=True)
class RequeueDecision:
    """The cause of an end, whether this software requeues the job, why, and the exit code of the batch job."""

    cause: Cause
    requeue: bool
    why: str
    exit_code: int


def find_end_cause(evidence: Evidence) -> Cause:
    """Return why a start of a job ended."""
    if evidence.code is EndCode.COMPLETED or (evidence.exit_code == 0 and not evidence.stopped):
        return "completed"
    if evidence.queue in ("cancelled", "time_limit"):
        return evidence.queue
    if evidence.code in (EndCode.STOP_FILE, EndCode.RUNG):
        return "stopped"
    if evidence.lost_nodes:
        return "node_failure"
    if evidence.code is EndCode.END_TIME:
        return "time_limit"
    killed_when_asked = evidence.signal is not None and evidence.exit_code > 128
    stopped_between_starts = evidence.exit_code == EXIT_STOPPED and not evidence.stopped
    was_asked = evidence.code in (EndCode.SIGNAL, EndCode.OTHER_RANK, EndCode.REGROUP)
    if was_asked or killed_when_asked or stopped_between_starts:
        return "time_limit" if evidence.near_its_end else "preempted"
    return "preempted" if evidence.queue == "requeued" else "failure"


def decide_requeue(evidence: Evidence, earlier_ends: Sequence[Record], max_failures: int) -> RequeueDecision:
    """Return what happens to the job now.

    earlier_ends   the end lines of this job's earlier starts, oldest first
    max_failures   the number of real failures that ends the job; 0 and 1 both mean the first one. Preemptions, time
                   limits and node failures do not count
    """
    cause = find_end_cause(evidence)
    if cause == "completed":
        return RequeueDecision(cause, False, "the run is complete", 0)
    if cause == "stopped":
        return RequeueDecision(
            cause, False, f"asked to stop ({evidence.reason}); submit it again to continue", EXIT_STOPPED
        )
    code = _exit_code(evidence)
    if cause == "cancelled":
        return RequeueDecision(cause, False, "submit it again to continue", code)
    if evidence.queue == "requeued":
        return RequeueDecision(cause, False, "SLURM has put it back into the queue", code)
    refusal = _why_not_again(cause, evidence, earlier_ends, max_failures, code)
    return RequeueDecision(cause, refusal is None, refusal or "it goes back into the queue", code)


def _why_not_again(
    cause: Cause, evidence: Evidence, earlier_ends: Sequence[Record], max_failures: int, code: int
) -> str | None:
    """Return why the job must not be started again; None where it may be."""
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
    """Return the error that ended a start: the failed rank's last line, or what kept the ranks from being started."""
    if evidence.failure is not None:
        return evidence.failure.error
    if evidence.code is not None and evidence.code.status == "failed":
        return evidence.reason
    return evidence.refusal.error if evidence.refusal else None


def _exit_code(evidence: Evidence) -> int:
    """Return the exit code of a job that did not complete: the failing rank's own where one failed."""
    if evidence.stopped:
        return EXIT_STOPPED
    if evidence.failure is not None:
        return evidence.failure.exit_code
    return evidence.exit_code or EXIT_FAILURE
