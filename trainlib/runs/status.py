"""What a run directory says about its run: read from its files, without touching anything in it."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainlib.errors import UserError

RUNS = Path("runs")

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run, as its files tell it.

    status      running | completed | stopped | failed | interrupted (it ended without a word) | new (nothing ran yet)
    attempts    the lines of attempts.jsonl
    jobs        the lines of jobs.jsonl: what was submitted to SLURM, and how each start of a job went
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
        return self.directory.name

    @property
    def last_start(self) -> Record | None:
        return _last_event(self.attempts, "start")

    @property
    def started(self) -> datetime | None:
        """When the newest attempt began."""
        return time_of(self.last_start)

    @property
    def newest_metrics(self) -> Record:
        """The newest line that says how far the training is; empty where there is none."""
        return max(self.last.values(), key=lambda record: record.get("step", 0), default={})

    @property
    def submitted(self) -> datetime | None:
        """When its newest job was submitted, or began or ended."""
        return time_of(self.jobs[-1]) if self.jobs else None

    def seconds(self, now: datetime) -> float | None:
        """How long the newest attempt took, or takes by now."""
        if self.started is None:
            return None
        if self.status == "running":
            return (now - self.started).total_seconds()
        ended = time_of(_last_event(self.attempts, "end"))
        return (ended - self.started).total_seconds() if ended and ended >= self.started else None

    @property
    def planned(self) -> Record:
        """How long the run is to be, as its configuration says: `epochs` or `steps`; empty where that is unknown."""
        train = yaml_file(self.directory / "config.yaml").get("train")
        return train if isinstance(train, dict) else {}

    @property
    def checkpoints(self) -> list[Path]:
        """Those that a run resumes from: not the ones that were set aside, and not one that is being written."""
        paths = (self.directory / "checkpoints").glob("step-*")
        return sorted(path for path in paths if path.name.removeprefix("step-").isdecimal())


def read_run(directory: Path) -> Run:
    attempts = list(json_lines(directory / "attempts.jsonl"))
    summary = json_file(directory / "summary.json")
    status = _status(directory, attempts)
    return Run(directory, status, attempts, job_lines(directory), _last_metrics(directory), summary)


def all_runs(root: Path = RUNS) -> list[Run]:
    """Every run under `root`, the one that was started last at the end."""
    patterns = ("*/attempts.jsonl", "*/config.yaml", "*/jobs.jsonl")
    directories = [path.parent for pattern in patterns for path in root.glob(pattern)]
    runs = [read_run(directory) for directory in sorted(set(directories))]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(runs, key=lambda run: max(run.started or never, run.submitted or never))


def find_run(name: str, root: Path = RUNS) -> Path:
    """The directory of a run, given as a name under `root` or as a path; UserError where there is none."""
    for directory in (root / name, Path(name)):
        if any((directory / file).exists() for file in ("attempts.jsonl", "config.yaml", "jobs.jsonl", "lock")):
            return directory
    known = [run.name for run in all_runs(root)]
    if not known:
        raise UserError(f"no run {name!r}: there are no runs in {root.resolve()}; start one with launch run CONFIG")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]}?" if close else "launch list shows the runs that there are"
    raise UserError(f"no run {name!r} in {root.resolve()}: {advice}")


def is_running(directory: Path) -> bool:
    """Whether a process trains into this directory now: it holds the lock."""
    import fcntl  # not on Windows, where `launch --help` should still come up

    try:
        file = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, where nothing trains either
        return False
    finally:
        os.close(file)
    return False


def last_start(directory: Path) -> Record | None:
    """The newest start line of attempts.jsonl."""
    return _last_event(list(json_lines(directory / "attempts.jsonl")), "start")


def was_stopped(directory: Path) -> bool:
    """Whether the newest attempt has ended, asked to stop, with a checkpoint."""
    start, end = (_last_event(list(json_lines(directory / "attempts.jsonl")), event) for event in ("start", "end"))
    return bool(start and end and start["attempt"] == end["attempt"] and end.get("status") == "stopped")


def job_lines(directory: Path) -> list[Record]:
    """The lines of jobs.jsonl that name their job."""
    return [record for record in json_lines(directory / "jobs.jsonl") if isinstance(record.get("job_id"), str)]


def queue_id(record: Record) -> str:
    """The job of a line of jobs.jsonl as the queue names it: `123`, or `123_4` for an element of an array."""
    element = record.get("array_task")
    return str(record["job_id"]) if element is None else f"{record['job_id']}_{element}"


def open_jobs(jobs: list[Record]) -> list[str]:
    """The jobs that these lines do not say to have ended for good, newest last. The queue may say that they have."""
    is_open: dict[str, bool] = {}
    for record in jobs:
        is_open.pop(queue_id(record), None)  # newest last
        is_open[queue_id(record)] = record.get("event") != "end" or bool(record.get("requeued"))
    return [name for name, still in is_open.items() if still]


def time_of(record: Record | None) -> datetime | None:
    """When a line was written; a time without a zone is this machine's."""
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
    for record in json_lines(directory / "metrics.jsonl"):
        if isinstance(record.get("step"), int):
            last[(record.get("split", ""), record.get("scope"))] = record
    return last


def _last_event(attempts: list[Record], event: str) -> Record | None:
    return next((record for record in reversed(attempts) if record.get("event") == event), None)


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a file of JSON lines; a last line that is still being written, or was cut, is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def json_file(path: Path) -> Record:
    """The object in a JSON file; empty where there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def yaml_file(path: Path) -> Record:
    """The mapping in a YAML file; empty where there is none, or it is damaged."""
    import yaml

    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
