"""The state of a run, read from the files in its directory. Nothing there is changed, and no lock is held."""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainlib.errors import UserError
from trainlib.runs import RUNS, locks
from trainlib.runs.attempts import ATTEMPTS_FILE, last_event, read_attempts
from trainlib.runs.checkpoints import steps_in
from trainlib.runs.files import Record, read_json, read_lines, read_yaml
from trainlib.runs.jobs import JOBS_FILE, job_lines


@dataclass(frozen=True)
class Run:
    """One run, as its files tell it.

    status      running | completed | stopped | failed | interrupted (killed: no end is recorded) | new (never started)
    attempts    the lines of attempts.jsonl
    jobs        the lines of jobs.jsonl: submissions to SLURM, and how each start of a job went
    last        the newest line of metrics.jsonl for each (split, scope); the scope of val and test lines is None
    summary     summary.json, empty where there is none
    """

    directory: Path
    status: str
    attempts: list[Record]
    jobs: list[Record]
    last: dict[tuple[str, str | None], Record]
    summary: Record

    @property
    def name(self) -> str:
        """Return the run's name, which is its folder's."""
        return self.directory.name

    @property
    def last_start(self) -> Record | None:
        """Return the line with which the newest attempt began."""
        return last_event(self.attempts, "start")

    @property
    def started(self) -> datetime | None:
        """Return when the newest attempt began."""
        return time_of(self.last_start)

    @property
    def newest_metrics(self) -> Record:
        """Return the line of metrics.jsonl with the highest step; empty where there is none."""
        return max(self.last.values(), key=lambda record: record.get("step", 0), default={})

    @property
    def submitted(self) -> datetime | None:
        """Return when the newest job of the run was submitted, began or ended."""
        return time_of(self.jobs[-1]) if self.jobs else None

    def seconds(self, now: datetime) -> float | None:
        """Return how long the newest attempt took, or has taken by now; None where that is not known."""
        if self.started is None:
            return None
        if self.status == "running":
            return (now - self.started).total_seconds()
        ended = time_of(last_event(self.attempts, "end"))
        return (ended - self.started).total_seconds() if ended and ended >= self.started else None

    @property
    def planned(self) -> Record:
        """Return the section `train` of the run's configuration; empty where it is missing."""
        train = read_yaml(self.directory / "config.yaml").get("train")
        return train if isinstance(train, dict) else {}

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints from which the run may be resumed, by their step, ascending."""
        return steps_in(self.directory / "checkpoints")


def read_run(directory: Path) -> Run:
    """Return the state of the run in a directory; what is missing or damaged there is left out."""
    attempts = read_attempts(directory)
    summary = read_json(directory / "summary.json")
    status = _status(directory, attempts)
    return Run(directory, status, attempts, job_lines(directory), _last_metrics(directory), summary)


def all_runs(root: Path = RUNS) -> list[Run]:
    """Return every run under `root`, the one that was started last at the end."""
    patterns = (f"*/{ATTEMPTS_FILE}", "*/config.yaml", f"*/{JOBS_FILE}")
    directories = [path.parent for pattern in patterns for path in root.glob(pattern)]
    runs = [read_run(directory) for directory in sorted(set(directories))]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(runs, key=lambda run: max(run.started or never, run.submitted or never))


def find_run(name: str, root: Path = RUNS) -> Path:
    """Return the directory of a run, given as a name under `root` or as a path; raise UserError where there is none."""
    for directory in (root / name, Path(name)):
        if any((directory / file).exists() for file in (ATTEMPTS_FILE, "config.yaml", JOBS_FILE, "lock")):
            return directory
    known = [run.name for run in all_runs(root)]
    if not known:
        raise UserError(f"no run {name!r}: there are no runs in {root.resolve()}; start one with launch run CONFIG")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]}?" if close else "launch list shows the runs that there are"
    raise UserError(f"no run {name!r} in {root.resolve()}: {advice}")


def is_running(directory: Path) -> bool:
    """Return True if a process trains into this directory now, on this machine or one that shares the folder."""
    return locks.is_locked(directory / "lock")


def time_of(record: Record | None) -> datetime | None:
    """Return when a line was written, from its `time`; a time without a zone is taken for this machine's."""
    if record is None:
        return None
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(record["time"]).astimezone(UTC)
    return None


def _status(directory: Path, attempts: list[Record]) -> str:
    if is_running(directory):
        return "running"
    if not attempts:
        return "new"
    if attempts[-1].get("event") == "start":
        return "interrupted"
    return str(attempts[-1].get("status", "failed"))


def _last_metrics(directory: Path) -> dict[tuple[str, str | None], Record]:
    last = {}
    for record in read_lines(directory / "metrics.jsonl"):
        if isinstance(record.get("step"), int):
            last[(record.get("split", ""), record.get("scope"))] = record
    return last
