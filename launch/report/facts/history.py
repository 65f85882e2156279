"""The history of a run: its attempts, their ends and reasons, with what SLURM recorded. Pure: from lines to facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from trainlib.runs.attempt.status import time_of
from trainlib.runs.files.json_records import Record
from trainlib.runs.records.jobs import queue_id


@dataclass(frozen=True)
class JobStay:
    """One stay of a job on the cluster, from jobs.jsonl: its begin, and its end where there is one."""

    begin: Record
    end: Record

    @property
    def name(self) -> str:
        """The job's id, `123` or `123_4` for an element of an array, and the number of its restart."""
        return queue_id(self.begin) + (f", restart {self.begin['restart']}" if self.begin.get("restart") else "")

    @property
    def name_and_nodes(self) -> str:
        """The name, and the nodes where they are known: `123, on n0 n1`."""
        nodes = self.begin.get("nodes")
        return self.name + (f", on {' '.join(map(str, nodes))}" if isinstance(nodes, list) else "")


@dataclass(frozen=True)
class Attempt:
    """One start of a run and how it ended.

    number     from 1
    outcome    running | completed | stopped | failed | interrupted (no end was recorded: killed, say)
    reason     why it ended, as far as anything is known; may be empty
    from_step, end_step   end_step is None where the attempt could not tell
    """

    number: int
    outcome: str
    reason: str
    from_step: int
    end_step: int | None
    started: datetime | None
    ended: datetime | None
    ranks: int | None
    host: str
    job: JobStay | None

    @property
    def seconds(self) -> float | None:
        """Duration; None where the beginning or the end is not known."""
        return (self.ended - self.started).total_seconds() if self.ended and self.started else None

    @property
    def is_false_start(self) -> bool:
        """True for an attempt that failed before it made a step, such as one with a mistake in its configuration."""
        return self.outcome == "failed" and self.end_step is not None and self.end_step <= self.from_step

    @property
    def how_it_ended(self) -> str:
        """The end in words: `attempt 2 was stopped: SIGTERM`."""
        verb = "was " if self.outcome in ("stopped", "interrupted") else ""
        return f"attempt {self.number} {verb}{self.outcome}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Event:
    """An event that is marked on the curves: a resume, or the end of the last attempt of an incomplete run."""

    step: int
    sign: str
    text: str


def jobs_of(lines: Sequence[Record]) -> list[JobStay]:
    """Return the begins of jobs.jsonl in their order, each with the end that follows it."""
    jobs: list[JobStay] = []
    for line in lines:
        if line.get("event") == "begin":
            jobs.append(JobStay(line, {}))
        elif line.get("event") == "end" and jobs:
            jobs[-1] = JobStay(jobs[-1].begin, line)
    return jobs


def attempts_of(lines: Sequence[Record], jobs: Sequence[JobStay], *, running: bool) -> list[Attempt]:
    """Return the attempts of attempts.jsonl. A job's cause explains the last attempt that was made in it.

    Where a launcher started the run again by itself, the next start line tells of a fault of the machine.

    running   the last attempt is still going
    """
    starts = [line for line in lines if line.get("event") == "start"]
    ends = {line.get("attempt"): line for line in lines if line.get("event") == "end"}
    within = [_job_of(start, jobs) for start in starts]
    attempts = []
    for index, start in enumerate(starts):
        is_last = index == len(starts) - 1
        job = within[index]
        decided = job.end if job and (is_last or within[index + 1] is not job) else {}
        end = ends.get(start.get("attempt"), {})
        if not is_last and starts[index + 1].get("restart"):  # by the launcher, which saw how this one ended
            end = {**end, "reason": starts[index + 1].get("reason")}
        attempts.append(_attempt(start, end, decided, job, running and is_last))
    return attempts


def events_of(attempts: Sequence[Attempt], last_step: int) -> list[Event]:
    """Return each resume, at the step that it continues from, and the end of the last attempt of an incomplete run.

    last_step   how far the run is known to have come
    """
    events = []
    for before, after in pairwise(attempts):
        again = (before.end_step or 0) - after.from_step
        lost = f"; {again} steps were done again" if again > 0 else ""
        text = f"attempt {after.number} goes on from step {after.from_step}; {before.how_it_ended}"
        events.append(Event(after.from_step, f"↻{after.number}", text + lost))
    if attempts and (last := attempts[-1]).outcome not in ("completed", "running"):
        step = last.end_step if last.end_step is not None else last_step
        sign = "■" if last.outcome == "stopped" else "✕"
        events.append(Event(step, sign, last.how_it_ended))
    return events


def _job_of(start: Record, jobs: Sequence[JobStay]) -> JobStay | None:
    """Return the last job that began before this attempt; its id would not do, as elements of an array have two."""
    moment = time_of(start)
    if moment is None or not start.get("slurm_job_id"):
        return None
    never = datetime.max.replace(tzinfo=UTC)
    return next((job for job in reversed(jobs) if (time_of(job.begin) or never) <= moment), None)


def _attempt(start: Record, end: Record, decided: Record, job: JobStay | None, running: bool) -> Attempt:
    outcome = str(end.get("status", "failed")) if end else "running" if running else "interrupted"
    cause = str(decided.get("cause") or "").replace("_", " ") if outcome != "completed" else ""
    reasons = [end.get("reason"), cause, decided.get("error"), "requeued" if decided.get("requeued") else ""]
    different = dict.fromkeys(str(reason) for reason in reasons if reason and reason != outcome)
    if outcome == "interrupted" and not different:
        different["killed, or its machine was lost"] = None
    step = end.get("step", decided.get("step"))
    return Attempt(
        number=int(start.get("attempt") or 0),
        outcome=outcome,
        reason=", ".join(different),
        from_step=int(start.get("from_step") or 0),
        end_step=step if isinstance(step, int) else None,
        started=time_of(start),
        ended=time_of(end) or time_of(decided),
        ranks=start.get("world_size"),
        host=str(start.get("host") or ""),
        job=job,
    )
