"""Gathers the evidence for why a job's ranks ended: from the run directory, the queue and the output of srun."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from launch.slurm import queue
from launch.slurm.ending.requeue import Evidence, QueueSays, Refusal
from launch.slurm.queue import JobState, QueueError, insist
from trainlib.errors import EXIT_CONNECTION_LOST, EXIT_OK, EXIT_STOPPED
from trainlib.runs.attempt.owner import stop_token_of
from trainlib.runs.attempt.record import read_attempts
from trainlib.runs.attempt.status import read_run
from trainlib.runs.attempt.stop_request import is_meant_for, read_stop_file
from trainlib.runs.files.json_records import Record, read_json
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.failure_record import read_all, root_cause
from trainlib.runs.records.jobs import JobStart
from trainlib.runs.records.reasons import EndCode, code_of_end

# seconds to wait for a controller that does not answer, which costs nothing: it gives the nodes to no other job
PATIENCE = 3600.0
_REFUSED = re.compile(r"^(?:error|srun: (?:error|fatal)): (?!\S+: tasks? )(.+)|^srun: (.*option.*)", re.MULTILINE)


def gather(
    directory: Path,
    job: JobStart,
    lines: Sequence[Record],
    *,
    exit_code: int,
    signal: str | None,
    srun_said: str,
    over: bool = False,
) -> Evidence:
    """Return all that can be found out about the end of a start of a job.

    lines       of the run's jobs.jsonl
    exit_code   srun's
    signal      the stop signal that the batch shell got
    srun_said   what srun itself printed
    over        the start is an earlier one, which the queue no longer knows
    The queue is not asked about a run that is complete. Otherwise it is asked until it answers: a job that was
    cancelled must not be requeued.
    """
    begun = next((line for line in reversed(lines) if line.get("event") == "begin" and is_start(line, job)), {})
    attempt = attempt_since(directory, begun)
    state: JobState | None = None
    nodes: list[str] = begun.get("nodes") or []
    lost = lost_by(srun_said, nodes)
    code: EndCode | None = attempt.get("code")
    if exit_code == EXIT_OK and code is None:
        exit_code = EXIT_STOPPED  # of which a node makes 0 (see train.sbatch): stopped before its first attempt
    if exit_code or (code is not None and code.status == "stopped"):
        with suppress(QueueError):
            if not over:
                state = insist(lambda: queue.job_states([job.queue_id]), PATIENCE).get(job.queue_id)
            lost.update(queue.down_nodes(nodes))
    asked = None if over else stop_asked_by_a_person(directory, job)
    if asked is not None and (code is None or code.status == "stopped"):
        code, attempt["reason"] = EndCode.STOP_FILE, asked  # after the attempt's end, or before its beginning
    has_failed = exit_code not in (EXIT_OK, EXIT_STOPPED)
    failure = root_cause(read_all(directory)) if has_failed else None
    return Evidence(
        exit_code=exit_code and exit_code_of(srun_said, exit_code),
        code=code,
        reason=attempt.get("reason"),
        step=attempt.get("step"),
        failure=failure,
        refusal=refusal(directory, job) if has_failed and failure is None else None,
        signal=signal,
        queue="requeued" if over else queue_says(state, job.restart),
        seconds_left=_seconds_left(state, begun),
        lost_nodes=tuple(sorted(lost)),
    )


def stop_asked_by_a_person(directory: Path, job: JobStart) -> str | None:
    """Return what a person used to ask this job to stop, where the run has not come to it; None where nobody asked."""
    stop_file = directory / "STOP"
    found = read_stop_file(stop_file)
    asked = is_meant_for(stop_file, stop_token_of(job.queue_id)) and found.code is EndCode.STOP_FILE
    return found.sentence if asked else None


def is_start(line: Record, job: JobStart) -> bool:
    """Return True if a line of jobs.jsonl is about this very start of a job."""
    return job.of_same_job(line) and line.get("restart") == job.restart


def attempt_since(directory: Path, begun: Record) -> Record:
    """Return how the attempt ended that began after a `begin` line of jobs.jsonl; empty where there was none.

    The keys are `code` and `reason`, None for an attempt that was killed, and `step`, the last one that it finished,
    None where it finished none. How far a killed attempt came is read from metrics.jsonl.
    """
    began = begun.get("time") or ""
    attempts = [line for line in read_attempts(directory) if str(line.get("time")) >= began]
    start = next((line for line in attempts if line.get("event") == "start"), None)
    if start is None:
        return {}
    last = attempts[-1]
    ended = last if last.get("event") == "end" else {}
    step = ended.get("step") or read_run(directory).newest_metrics.get("step") or 0
    code = code_of_end(ended)
    if not ended and read_json(directory / "summary.json").get("status") == "completed":
        code = EndCode.COMPLETED  # killed after its summary, which the beginning of an attempt removes
    return {
        "code": code,
        "reason": ended.get("reason"),
        "step": step if step > (start.get("from_step") or 0) else None,
    }


def queue_says(state: JobState | None, restart: int) -> QueueSays:
    """Return what SLURM is doing with a job that is about to end.

    state     the job in the queue; None where the queue does not know it
    restart   how often the job had been requeued when this start of it began
    """
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
    """Return the exit code of the task that failed; srun's own is the highest of all tasks, killed ones included."""
    codes = [int(found) for found in re.findall(r"Exited with exit code (\d+)", srun_said)]
    return next((found for found in codes if found != EXIT_CONNECTION_LOST), code)


def refusal(directory: Path, job: JobStart) -> Refusal | None:
    """Return why no rank was started: the last error of a node's `launch run`, or else the first one of srun."""
    files = RunFiles(directory)
    nodes = files.names(f"logs/{job.rendezvous_id}-node-*.out")
    for name, which in (*((node, -1) for node in nodes), (f"logs/{job.rendezvous_id}-srun.out", 0)):
        found = [of_launch or of_srun for of_launch, of_srun in _REFUSED.findall(files.end_of_text(name))]
        if found:
            return Refusal(found[which], str(directory / name))
    return None


def lost_by(srun_said: str, nodes: Sequence[str]) -> set[str]:
    """Return the nodes of a job that srun lost, by its own messages: the node went down, or its slurmstepd died.

    Without a slurmstepd, a node's task never ends for srun, which gives it up some time after the others (--wait).
    """
    numbers = re.findall(r"missing step on node (\d+)", srun_said)
    if "First task exited" in srun_said:
        numbers += re.findall(r"StepId=\S+ task (\d+): running", srun_said)  # one task a node: the numbers are the same
    named = re.findall(r"[Nn]ode failure on (\S+)", srun_said)
    return {nodes[int(number)] for number in numbers if int(number) < len(nodes)} | set(named) & set(nodes)


def _seconds_left(state: JobState | None, begun: Record) -> float | None:
    """Return the seconds until the job's time is over, a limit that may have been moved since the job began."""
    if state is not None and state.state == "RUNNING" and state.end is not None:
        return state.end - time.time()
    end_time = begun.get("end_time")
    return datetime.fromisoformat(end_time).timestamp() - time.time() if end_time else None
