"""The state of a run, read from the files in its directory. Nothing there is changed, and no lock is held."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from trainlib.errors import UserError
from trainlib.runs import RUNS
from trainlib.runs.attempt.owner import OWNER_FILE, Owner, read_owner, was_renewed_lately
from trainlib.runs.attempt.pulse import read_pulse
from trainlib.runs.attempt.record import ATTEMPTS_FILE, has_open_attempt, last_event
from trainlib.runs.files import locks
from trainlib.runs.files.json_records import Record, parse_record
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.jobs import JOBS_FILE
from trainlib.runs.records.rows import METRICS_FILE, lost_rows, miscounted_rows
from trainlib.runs.records.shapes import ATTEMPT, JOB, MANIFEST, ROW, SUMMARY, whole_number

_FILES = frozenset((ATTEMPTS_FILE, "config.yaml", JOBS_FILE, OWNER_FILE))  # of a run, of which each has at least one
_TAILS = (1 << 12, 1 << 18, 1 << 24)  # bytes of metrics.jsonl that a list of runs looks at
_OF_A_STEP = b'"scope": "step"'


@dataclass(frozen=True)
class Run:
    """One run, as its files tell it.

    status      running | completed | stopped | failed | interrupted (killed: no end is recorded) | new (never started)
    attempts    the lines of attempts.jsonl
    jobs        the lines of jobs.jsonl: submissions to SLURM, and how each start of a job went
    last        the newest line of metrics.jsonl for each (split, scope); the scope of val and test lines is None
    summary     summary.json, empty where there is none
    problems    a sentence for each file that is damaged or no file of the run's own: what it held is missing above
    """

    directory: Path
    status: str
    attempts: list[Record]
    jobs: list[Record]
    last: dict[tuple[str, str | None], Record]
    summary: Record
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the run's name, which is its folder's."""
        return self.directory.name

    @cached_property
    def last_start(self) -> Record | None:
        """Return the line with which the newest attempt began."""
        return last_event(self.attempts, "start")

    @property
    def owner(self) -> Owner | None:
        """Return the process that trains, where the run is running, or holds the run for something else."""
        owner = read_owner(self.directory)
        return owner if owner is not None and _lives(self.directory, owner) else None

    @cached_property
    def started(self) -> datetime | None:
        """Return when the newest attempt began."""
        return time_of(self.last_start)

    @cached_property
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
        """Return the numbers `steps` and `epochs` of the run's configuration; empty where they are missing."""
        train = RunFiles(self.directory).config().get("train")
        values = train if isinstance(train, dict) else {}
        return {name: values[name] for name in ("steps", "epochs") if whole_number(values.get(name))}

    @cached_property
    def pulse(self) -> Record:
        """Return how far a run that is running has come within the last seconds (see `read_pulse`); else empty."""
        return read_pulse(self.directory) if self.status == "running" else {}

    @property
    def step(self) -> int | None:
        """Return the step that the run has come to; None before it has any."""
        ended = self.attempts[-1:] if self.status in ("stopped", "failed") else []
        records = (self.newest_metrics, self.pulse, *ended)
        return max((record["step"] for record in records if whole_number(record.get("step"))), default=None)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints from which the run may be resumed, by their step, ascending."""
        return steps_in(self.directory / "checkpoints")


def read_run(directory: Path, *, whole: bool = True, names: frozenset[str] | None = None) -> Run:
    """Return the state of the run in a directory; what is missing or damaged there is left out, and told.

    whole   read all of metrics.jsonl and say what is damaged or lost in it, not only its end
    names   what is in the directory, where the caller knows
    """
    files = RunFiles(directory, _names_in(directory) if names is None else names)
    attempts, jobs = files.lines(ATTEMPTS_FILE, ATTEMPT), files.lines(JOBS_FILE, JOB)
    summary = files.record("summary.json", SUMMARY)
    step, num_rows = _rows_at_checkpoint(files) if whole else (0, None)  # first: rows come before their checkpoint
    rows = files.lines(METRICS_FILE, ROW) if whole else _newest_rows(files)
    if whole and (lost := lost_rows(rows) or miscounted_rows(rows, step, num_rows) or _lost_end(rows, summary)):
        files.problems.append(f"{METRICS_FILE}: {lost}")
    last = {(row["split"], row.get("scope")): row for row in rows}
    return Run(directory, _status(directory, attempts, summary), attempts, jobs, last, summary, tuple(files.problems))


def all_runs(root: Path = RUNS) -> list[Run]:
    """Return every run under `root`, the one that was started last at the end."""
    runs = list[Run]()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root) as entries:
        folders = sorted(entry.path for entry in entries if entry.name[0] != "." and entry.is_dir())
        there = {folder: _names_in(folder) for folder in folders}
        runs = [_read_any(Path(folder), names) for folder, names in there.items() if not _FILES.isdisjoint(names)]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(runs, key=lambda run: max(run.started or never, run.submitted or never))


def _names_in(directory: str | Path) -> frozenset[str]:
    """Return the names in a folder; none where it is none, or may not be read."""
    with suppress(OSError):
        return frozenset(os.listdir(directory))
    return frozenset()


def _read_any(directory: Path, names: frozenset[str]) -> Run:
    """Return the state of a run; of one that cannot be read, that: it must not hide the others."""
    try:
        return read_run(directory, whole=False, names=names)
    except Exception as error:  # noqa: BLE001 - in a list of many runs
        return Run(directory, "unreadable", [], [], {}, {}, (f"{type(error).__name__}: {error}",))


def find_run(name: str, root: Path = RUNS) -> Path:
    """Return the directory of a run, given as a name under `root` or as a path; raise UserError where there is none."""
    for directory in (root / name, Path(name)):
        if any(os.path.exists(directory / file) for file in (ATTEMPTS_FILE, "config.yaml", JOBS_FILE, "lock")):
            return directory
    known = [run.name for run in all_runs(root)]
    if not known:
        raise UserError(f"no run {name!r}: there are no runs in {root.resolve()}; start one with launch run CONFIG")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]}?" if close else "launch list shows the runs that there are"
    raise UserError(f"no run {name!r} in {root.resolve()}: {advice}")


def is_running(directory: Path, attempts: Sequence[Record] | None = None) -> bool:
    """Return True if a process trains into this directory now, or is about to, here or on a machine that shares it.

    A process that only holds the lock, such as a backup, or the run, such as `launch prune`, does not.

    attempts   the lines of attempts.jsonl, where the caller has read them
    """
    owner = read_owner(directory)
    if owner is None:  # a version before owner.json may train
        is_open = has_open_attempt(directory) if attempts is None else [a["event"] for a in attempts[-1:]] == ["start"]
        return is_open and locks.is_locked(directory / "lock")
    return owner.purpose is None and _lives(directory, owner)


def _lives(directory: Path, owner: Owner) -> bool:
    if owner.is_on_this_machine:
        return owner.lives_here
    return was_renewed_lately(directory) or locks.is_locked(directory / "lock")


def time_of(record: Record | None) -> datetime | None:
    """Return when a line was written, from its `time`; a time without a zone is taken for this machine's."""
    if record is None:
        return None
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        moment = datetime.fromisoformat(record["time"]).astimezone(UTC)
        return moment if 1970 <= moment.year <= 9000 else None  # others overflow in some time zone
    return None


def _status(directory: Path, attempts: list[Record], summary: Record) -> str:
    if is_running(directory, attempts):
        return "running"
    if not attempts:
        return "new"
    if attempts[-1].get("event") == "start":
        return "completed" if summary.get("status") == "completed" else "interrupted"  # killed after its summary
    status = str(attempts[-1].get("status", "failed"))
    if status == "completed" and _is_to_go_on(directory):
        return "interrupted"
    return status


def _is_to_go_on(directory: Path) -> bool:
    """Return True where the results of a run were removed, as a start that makes it longer does before it begins."""
    return not os.path.lexists(directory / "summary.json") and os.path.lexists(directory / "config.yaml")


def _rows_at_checkpoint(files: RunFiles) -> tuple[int, int | None]:
    """Return the newest checkpoint's step, and how many rows it came after; None where that is not known."""
    for path in reversed(steps_in(files.directory / "checkpoints").values()):
        manifest = files.record(f"checkpoints/{path.name}/manifest.json", MANIFEST)
        return manifest.get("step", 0), manifest.get("num_rows")
    return 0, None


def _lost_end(rows: list[Record], summary: Record) -> str | None:
    """Return a sentence where a complete run has no row of its last step; None otherwise."""
    newest, last = max((row["step"] for row in rows), default=0), summary.get("step", 0)
    if summary.get("status") != "completed" or newest >= last:
        return None
    return f"rows are lost at its end: the newest is of step {newest}, and the run completed step {last}"


def _newest_rows(files: RunFiles) -> list[Record]:
    """Return the rows at the end of metrics.jsonl back to that of an epoch, if there is one; of steps, the newest.

    An epoch ends with its training row, and that of the validation where there is one.
    """
    rows: list[Record] = []
    for limit in _TAILS:
        content, left_out = files.end(METRICS_FILE, limit)
        rows = _rows_of_the_end(content)
        if not left_out or any(row.get("scope") == "epoch" for row in rows[:-1]):
            break
    return rows


def _rows_of_the_end(content: bytes) -> list[Record]:
    rows, has_step = list[Record](), False
    for line in reversed(content.split(b"\n")):
        if has_step and _OF_A_STEP in line:  # to parse all of a thousand takes longer than the rest of a list
            continue
        with suppress(ValueError):
            rows.append(parse_record(line, ROW))
            has_step = has_step or rows[-1].get("scope") == "step"
            if len(rows) > 1 and rows[-1].get("scope") == "epoch":
                break
    return rows[::-1]
