"""Carries out what was decided about a job that ends: in the queue, in jobs.jsonl and in the job's log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launch.slurm import queue
from launch.slurm.ending.evidence import PATIENCE, queue_says
from launch.slurm.ending.requeue import Evidence, RequeueDecision, error_of
from launch.slurm.queue import QueueError, insist
from trainlib.runs.files.json_records import Record
from trainlib.runs.records.jobs import JobStart


def is_dead(pid: int) -> bool:
    """Return True if a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def report_orphaned_job(job: JobStart, decision: RequeueDecision) -> None:
    """Tell the queue that this job is over: without its slurmstepd the job would hold its nodes until its time limit.

    A completed job is requeued and then ends at once: other jobs may depend on its success.
    """
    print(f"job {job.queue_id}: its slurmstepd was killed; SLURM is told that it is over", file=sys.stderr)
    try:
        insist(lambda: (queue.requeue if decision.cause == "completed" else queue.cancel)(job.queue_id), PATIENCE)
    except QueueError as error:
        print(f"error: {error}; scancel {job.queue_id} frees its nodes", file=sys.stderr)


def requeue(job: JobStart, lost_nodes: Sequence[str], fewest_nodes: int) -> tuple[bool, list[str]]:
    """Put this job back into the queue, from now on without the nodes that failed.

    Returns whether that worked, and which nodes were excluded. SLURM then ends this job's processes, which have its
    KillWait for what they still do.
    """
    try:
        insist(lambda: queue.requeue(job.queue_id), PATIENCE)
    except QueueError as error:
        if _is_back(job):  # what was asked first was done, and only the answer was lost
            return True, []
        print(f"error: the job was not put back into the queue: {error}; submit it again to continue", file=sys.stderr)
        return False, []
    if not lost_nodes:
        return True, []
    try:
        excluded = queue.exclude(job.queue_id, lost_nodes, fewest_nodes)  # only a job that waits takes that
    except QueueError as error:
        print(f"warning: {', '.join(lost_nodes)} could not be excluded: {error}", file=sys.stderr)
        return True, []
    return True, list(lost_nodes) if excluded else []


def put_on_hold(job: JobStart) -> bool:
    """Put this job back into the queue, to wait until it is released; return whether that worked."""
    try:
        insist(lambda: queue.hold(job.queue_id), PATIENCE)
    except QueueError as error:
        if not _is_back(job):
            print(f"error: the job was not put back into the queue: {error}; give the command again", file=sys.stderr)
            return False
    return True


def _is_back(job: JobStart) -> bool:
    """Return True if the queue says that this job was requeued."""
    with suppress(QueueError):
        return queue_says(queue.job_states([job.queue_id]).get(job.queue_id), job.restart) == "requeued"
    return False


def end_record(job: JobStart, evidence: Evidence, decision: RequeueDecision) -> Record:
    """Return the end line for jobs.jsonl, without `requeued` and `excluded`."""
    failure, refusal = evidence.failure, evidence.refusal if decision.cause == "failure" else None
    return job.as_record("end") | {
        "cause": decision.cause,
        "exit_code": decision.exit_code,
        "signal": failure.signal if failure else evidence.signal,
        "step": evidence.step,
        "rank": failure.rank if failure else None,
        "host": failure.host if failure else None,
        "log": failure.log if failure else refusal.log if refusal else None,
        "error": error_of(evidence),
    }


def closing_words(job: JobStart, evidence: Evidence, decision: RequeueDecision, excluded: Sequence[str]) -> str:
    """Return the last lines of the job's log: cause, decision, and the rank that failed."""
    words = [f"job {job.queue_id}, restart {job.restart}: {decision.cause.replace('_', ' ')}; {decision.why}"]
    failure = evidence.failure
    if failure is not None:
        words.append(f"rank {failure.rank} on {failure.host} ended with exit code {failure.exit_code}: {failure.error}")
        words.append(f"its log is {failure.log}")
    elif decision.cause == "failure" and evidence.refusal is not None:
        words.append(f"{evidence.refusal.error} ({evidence.refusal.log})")
    if excluded:
        words.append(f"from now on without {', '.join(excluded)}")
    return "\n".join(words)
