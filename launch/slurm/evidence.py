"""Finding out why a job's ranks ended: from the run directory, the queue, and what srun said."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from launch.slurm import queue
from launch.slurm.ledger import Evidence, JobStart, QueueSays, Refusal
from launch.slurm.queue import JobState, QueueError, insist
from trainlib.errors import EXIT_CONNECTION_LOST
from trainlib.runs.failure_record import read_all, root_cause
from trainlib.runs.status import Record, json_lines, read_run

# seconds: a controller that is away gives the job's nodes to nobody else, so to wait for it costs nothing
PATIENCE = 3600.0
_REFUSED = re.compile(r"^(?:error|srun: (?:error|fatal)): (?!\S+: tasks? )(.+)|^srun: (.*option.*)", re.MULTILINE)


def gather(
    directory: Path,
    job: JobStart,
    lines: Sequence[Record],
    *,
    code: int,
    signal: str | None,
    srun_said: str,
    over: bool = False,
) -> Evidence:
    """All that can be known of a start of a job. `over`: of one that ended before, and the queue knows no more.

    What is complete is so whatever the queue says, which is not asked then. Else it is, until it answers: a job that
    was cancelled must not be put back.
    """
    begun = next((line for line in reversed(lines) if line.get("event") == "begin" and is_start(line, job)), {})
    attempt = attempt_since(directory, begun)
    state: JobState | None = None
    nodes: list[str] = begun.get("nodes") or []
    lost = lost_by(srun_said, nodes)
    if code or attempt.get("status") == "stopped":
        with suppress(QueueError):
            if not over:
                state = insist(lambda: queue.job_states([job.queue_id]), PATIENCE).get(job.queue_id)
            lost.update(queue.down_nodes(nodes))
    failure = root_cause(read_all(directory)) if code else None
    return Evidence(
        exit_code=code and exit_code_of(srun_said, code),
        status=attempt.get("status"),
        reason=attempt.get("reason"),
        step=attempt.get("step"),
        failure=failure,
        refusal=refusal(directory, job) if code and failure is None else None,
        signal=signal,
        queue="requeued" if over else queue_says(state, job.restart),
        seconds_left=_seconds_left(state, begun),
        lost_nodes=tuple(sorted(lost)),
    )


def is_start(line: Record, job: JobStart) -> bool:
    return job.of_same_job(line) and line.get("restart") == job.restart


def attempt_since(directory: Path, begun: Record) -> Record:
    """How the attempt ended that began after this: status, reason, step; the step None where it finished none.

    Empty where there was none. An attempt that was killed has no end: then the rows tell how far it came.
    """
    began = begun.get("time") or ""
    attempts = [line for line in json_lines(directory / "attempts.jsonl") if str(line.get("time")) >= began]
    start = next((line for line in attempts if line.get("event") == "start"), None)
    if start is None:
        return {}
    last = attempts[-1]
    ended = last if last.get("event") == "end" else {}
    step = ended.get("step") or read_run(directory).newest_metrics.get("step") or 0
    return {
        "status": ended.get("status"),
        "reason": ended.get("reason"),
        "step": step if step > (start.get("from_step") or 0) else None,
    }


def queue_says(state: JobState | None, restart: int) -> QueueSays:
    """What SLURM does with a job that is about to end, as its state and the number of its restarts tell."""
    if state is None:
        return "unknown"
    if state.restarts > restart or state.waiting:
        return "requeued"
    if state.state == "RUNNING":
        return "running"
    if state.state == "TIMEOUT" or state.reason == "TimeLimit":
        return "time_limit"
    return "cancelled"


def exit_code_of(srun_said: str, code: int) -> int:
    """The code of the task that failed: srun's own is the highest of all, those included that it killed for it."""
    codes = [int(found) for found in re.findall(r"Exited with exit code (\d+)", srun_said)]
    return next((found for found in codes if found != EXIT_CONNECTION_LOST), code)


def refusal(directory: Path, job: JobStart) -> Refusal | None:
    """Why there were no ranks that could fail: the last word of a node's `launch run`, or else the first of srun."""
    logs = directory / "logs"
    nodes = sorted(logs.glob(f"{job.rendezvous_id}-node-*.out"))
    for path, which in (*((node, -1) for node in nodes), (logs / f"{job.rendezvous_id}-srun.out", 0)):
        with suppress(OSError):
            found = [of_launch or of_srun for of_launch, of_srun in _REFUSED.findall(path.read_text(errors="replace"))]
            if found:
                return Refusal(found[which], str(path))
    return None


def lost_by(srun_said: str, nodes: Sequence[str]) -> set[str]:
    """Those of a job's nodes that srun lost, from its own messages: whole nodes, or the slurmstepd that served one.

    Without its slurmstepd, a node's task never ends for srun, which gives it up some time after the others (--wait).
    """
    numbers = re.findall(r"missing step on node (\d+)", srun_said)
    if "First task exited" in srun_said:
        numbers += re.findall(r"StepId=\S+ task (\d+): running", srun_said)  # one task a node: the numbers are the same
    named = re.findall(r"[Nn]ode failure on (\S+)", srun_said)
    return {nodes[int(number)] for number in numbers if int(number) < len(nodes)} | set(named) & set(nodes)


def _seconds_left(state: JobState | None, begun: Record) -> float | None:
    """Until the job's end, which may have been moved since it began."""
    if state is not None and state.state == "RUNNING" and state.end is not None:
        return state.end - time.time()
    end_time = begun.get("end_time")
    return datetime.fromisoformat(end_time).timestamp() - time.time() if end_time else None
