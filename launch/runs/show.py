"""The text that `launch list` and `launch status` show of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

from launch.slurm.follow import state_text
from launch.slurm.queue import JobState
from trainlib.runs.attempt.status import Run, time_of
from trainlib.runs.files.json_records import Record
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.failure_record import read_all, root_cause
from trainlib.runs.records.jobs import open_jobs, queue_id
from trainlib.runs.terminal.tables import STATUS_STYLES, Column, Table, hang

_UNITS = (("decoded", "pictures"), ("step", "total"), ("epoch", "epochs"))
_LONGEST = 1e9  # seconds that are shown
_LAST_LINES = 5  # of the log of a job that ended before Python began
Jobs = Mapping[str, JobState] | None  # the jobs that the queue knows, by id; None where it was not asked


def runs_table(runs: Sequence[Run], now: datetime, jobs: Jobs = None) -> Table:
    """Return a row for each run; its accuracy is that of the test, or of the newest validation before the test.

    Of runs that are running there is a column with the time that is left; where the files of any are damaged, a last
    column says what is. A narrow terminal goes without seconds, epoch, time of the start and step, in this order.
    """
    left = Column("LEFT", [_left(run.pulse) for run in runs], on_right=True)
    problems = Column("PROBLEM", [run.problems[0] if run.problems else "" for run in runs])
    return Table(
        [
            Column("NAME", [run.name for run in runs]),
            Column("STATUS", [status_word(run, jobs) for run in runs], styles=STATUS_STYLES),
            Column("STEP", ["" if run.step is None else str(run.step) for run in runs], on_right=True, gives_way=1),
            Column("EPOCH", [str(run.newest_metrics.get("epoch", "")) for run in runs], on_right=True, gives_way=3),
            Column("ACCURACY", [_accuracy(run) for run in runs]),
            Column("STARTED", [local_time(run.started) for run in runs], gives_way=2),
            Column("SECONDS", [_seconds(run, now) for run in runs], on_right=True, gives_way=4),
            *([left] if any(left.cells) else []),
            *([problems] if any(problems.cells) else []),
        ]
    )


def run_details(run: Run, now: datetime, jobs: Jobs = None, *, width: int | None = None) -> str:
    """Return everything that the files of a run and the queue tell about it, in several lines.

    width   characters a line, of a terminal; None leaves every fact in one line
    """
    job = job_of(run, jobs)
    facts = {
        "run": run.name,
        "status": _explain(run, jobs),
        "job": f"{job.job_id}, {state_text(job)}{_why_held(job, run)}" if job else "",
        "progress": _progress(run.newest_metrics, run.planned),
        "now": now_text(run.pulse),
        "in use": _in_use(run),
        "slow": str(run.pulse.get("slow") or (run.last.get(("train", "step")) or {}).get("slow") or ""),
        "train": _metrics(run.last.get(("train", "epoch")) or run.last.get(("train", "step"))),
        "val": _metrics(run.last.get(("val", None))),
        "test": _metrics(run.last.get(("test", None)) or run.summary.get("test")),
        "last error": last_error(run, jobs),
        "problem": "; ".join(run.problems),
        "checkpoints": ", ".join(path.name for path in run.checkpoints.values()),
        "seconds": _seconds(run, now),
        "directory": str(run.directory),
    }
    lines = [hang(f"{label + ':':<13}", value, width) for label, value in facts.items() if value]
    for heading, records, in_words in (("attempts:", run.attempts, _attempt), ("jobs:", run.jobs, _job)):
        lines += [*([heading] if records else []), *(hang(*in_words(record), width) for record in records)]
    return "\n".join(lines)


def _in_use(run: Run) -> str:
    owner = run.owner
    return f"{owner.purpose}, process {owner.pid} on {owner.host}" if owner is not None and owner.purpose else ""


def job_of(run: Run, jobs: Jobs) -> JobState | None:
    """Return the newest job of a run that waits or runs."""
    found = [jobs[job_id] for job_id in reversed(open_jobs(run.jobs)) if job_id in jobs] if jobs else []
    return next((job for job in found if job.active), None)


def _why_held(job: JobState, run: Run) -> str:
    """Return what can be done about a job that SLURM holds as its node could not start it; empty for another."""
    if not (job.waiting and "launch failed" in job.reason):
        return ""
    return (
        ": its node could not start it (a prolog that fails, a folder that the node does not have): "
        f"scontrol release {job.job_id} tries again, launch cancel {run.name} takes it out"
    )


def now_text(pulse: Record) -> str:
    """Return what a run does at the moment, in words: its step, time left, and loss and speed of the last minute."""
    parts = [str(pulse.get("phase", ""))]
    parts += [f"{unit} {pulse[unit]} of {pulse[all_]}" for unit, all_ in _UNITS if {unit, all_} <= pulse.keys()]
    parts += [f"loss {pulse['loss']:.4f} over the last minute"] if "loss" in pulse else []
    parts += [f"{pulse['images_per_second']:,.0f} images/s"] if "images_per_second" in pulse else []
    parts += [f"{_left(pulse)} left"] if "seconds_left" in pulse else []
    parts += map(_gpu, pulse.get("gpus") or [])
    return ", ".join(filter(None, parts))


def _gpu(load: Record) -> str:
    """Return how busy a GPU is: `GPU 0 97 % busy with 35.2 of 143.8 GB`."""
    busy = f" {load['percent']:.0f} % busy" if "percent" in load else ""
    memory = [load[name] / 1e9 for name in ("memory_used", "memory_total") if name in load]
    return f"GPU {load['index']}{busy}" + (f" with {memory[0]:.1f} of {memory[1]:.1f} GB" if len(memory) == 2 else "")


def _left(pulse: Record) -> str:
    return str(timedelta(seconds=round(min(pulse["seconds_left"], _LONGEST)))) if "seconds_left" in pulse else ""


def status_word(run: Run, jobs: Jobs) -> str:
    """Return the state of a run in one word, from the queue where it has a job there, and what a job waits for."""
    job = job_of(run, jobs)
    if job is None and run.status == "new" and open_jobs(run.jobs):
        return "submitted" if jobs is None else "failed" if log_before_python(run) or _failed_job(run, jobs) else "new"
    if job is None:
        return run.status
    if not job.waiting:
        return job.state.lower()
    state = "requeued" if job.restarts else "pending"
    return f"{state} ({job.reason})" if job.reason else state


def _accuracy(run: Run) -> str:
    tested = run.last.get(("test", None)) or run.summary.get("test")
    for split, record in (("test", tested), ("val", run.last.get(("val", None)))):
        if record and isinstance(record.get("accuracy"), int | float):
            return f"{split} {record['accuracy']:.4f}"
    return ""


def _explain(run: Run, jobs: Jobs) -> str:
    status = status_word(run, jobs)
    what_next = {
        "stopped": "; start it again to continue",
        "interrupted": ": the process was killed or the machine went down (no reason was recorded); "
        "start it again to continue",
        "running": f", process {run.owner.pid} on {run.owner.host}" if run.owner else "",
    }
    return status + (what_next.get(status, "") if status == run.status else "")


def _progress(newest: Record, planned: Record) -> str:
    """Return how far a run is; of its step and epoch, the one in which its length is configured has a total."""
    if not newest:
        return ""
    totals = {unit: f" of {planned[f'{unit}s']}" if planned.get(f"{unit}s") else "" for unit in ("step", "epoch")}
    return ", ".join(f"{unit} {newest.get(unit, '?')}{total}" for unit, total in totals.items())


def _metrics(record: Record | None) -> str:
    """Return loss and accuracy of one line of metrics.jsonl."""
    if not record:
        return ""
    texts = [f"{key} {_number(record[key])}" for key in ("loss", "accuracy") if record.get(key) is not None]
    if "step" in record:
        texts.append(f"at step {record['step']}")
    if record.get("count") is not None:
        texts.append(f"over {record['count']} samples")
    return ", ".join(texts)


def last_error(run: Run, jobs: Jobs = None) -> str:
    """Return how the newest failure of a run came about; empty where nothing failed."""
    left = root_cause(read_all(run.directory))
    if left is None and run.status == "new" and jobs is not None and open_jobs(run.jobs) and job_of(run, jobs) is None:
        return _before_python(run, jobs)
    if left is not None:
        return _failure(asdict(left))
    failures = [record for record in run.jobs if record.get("cause") == "failure"]
    reasons = [record["reason"] for record in run.attempts if record.get("status") == "failed" and record.get("reason")]
    return _failure(failures[-1]) if failures else str(reasons[-1]) if reasons else ""


def _before_python(run: Run, jobs: Mapping[str, JobState]) -> str:
    """Return what is known of a run's newest job, which has left the queue, and of which Python never began."""
    name = open_jobs(run.jobs)[-1]
    if (log := log_before_python(run)) is not None:
        lines = RunFiles(log.parent).end_of_text(log.name).splitlines()[-_LAST_LINES:]
        said = f"; the last lines of {log}: {' | '.join(lines)}" if lines else f" ({log} is empty)"
        return f"job {name} ended before the training began{said}"
    if (job := _failed_job(run, jobs)) is not None:
        return (
            f"job {name} ended before the training began, without a log: {state_text(job)}, and SLURM says {job.reason}"
        )
    return (
        f"job {name} left the queue before the training began, without a log: it was cancelled while it waited, or its "
        f"node could not start it (a prolog that fails); sacct -j {name} tells, where SLURM keeps accounts"
    )


def _failed_job(run: Run, jobs: Mapping[str, JobState]) -> JobState | None:
    """Return the newest job of a run where the queue still knows that it failed."""
    job = jobs.get(open_jobs(run.jobs)[-1])
    return job if job is not None and not job.active and job.state not in ("COMPLETED", "CANCELLED") else None


def log_before_python(run: Run) -> Path | None:
    """Return the log of the newest job of a run that has not begun; None for a job that was cancelled in the queue.

    It is in the run's folder, or in that of the sweep of which the job is an element.
    """
    jobs = open_jobs(run.jobs)
    if not jobs:
        return None
    name = f"logs/slurm-{jobs[-1]}.out"
    places = [run.directory / name, *run.directory.parent.glob(f"*/submission-*/{name}")]
    return next((path for path in places if path.is_file()), None)


def _failure(record: Record) -> str:
    """Return which rank failed, where and how, its log, and the last line of that log."""
    ended = f"was killed by {record['signal']}" if record.get("signal") else f"exit code {record.get('exit_code')}"
    if record.get("rank") is not None:
        ended = f"rank {record['rank']} on {record.get('host')}: {ended}"
    log = f" (log: {record['log']})" if record.get("log") else ""
    return f"{ended}{log}" + (f": {record['error']}" if record.get("error") else "")


def _job(record: Record) -> tuple[str, str]:
    """Return one line of jobs.jsonl: its job and time, and what happened."""
    head = f"  {queue_id(record)}  {local_time(time_of(record))}  "
    if record.get("event") == "submitted":
        return head, "submitted"
    if record.get("event") == "begin":
        again = f", restart {record['restart']}" if record.get("restart") else ""
        return head, f"begun on {' '.join(record.get('nodes') or [])}{again}"
    cause = str(record.get("cause")).replace("_", " ")
    signal = f" ({record['signal']})" if record.get("signal") and cause != "failure" else ""
    step = f" at step {record['step']}" if record.get("step") is not None else ""
    failure = f": {_failure(record)}" if record.get("cause") == "failure" else ""
    requeued = "; requeued" if record.get("requeued") else ""
    excluded = f" without {' '.join(record['excluded'])}" if record.get("excluded") else ""
    return head, f"{cause}{signal}{step}{failure}{requeued}{excluded}"


def _attempt(record: Record) -> tuple[str, str]:
    """Return one line of attempts.jsonl: its attempt and time, and what happened."""
    head = f"  {record.get('attempt')}  {local_time(time_of(record))}  "
    if record.get("event") == "start":
        job = record.get("slurm_job_id")
        place = (
            f"{record.get('host')}, SLURM job {job}" if job else f"{record.get('host')}, process {record.get('pid')}"
        )
        ranks = record.get("world_size")
        again = f" again by itself, as {record.get('reason')}" if record.get("restart") else ""
        return head, f"started{again} at step {record.get('from_step')}, {ranks} rank{'s' * (ranks != 1)}, {place}"
    reason = f": {record['reason']}" if record.get("reason") else ""
    return head, f"{record.get('status')} at step {record.get('step')}{reason}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else str(value)


def _seconds(run: Run, now: datetime) -> str:
    seconds = run.seconds(now)
    return "" if seconds is None else f"{seconds:.0f}"


def local_time(moment: datetime | None) -> str:
    """Return a time in this machine's time zone; empty for None."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
