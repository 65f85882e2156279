"""A run directory: who may train into it, what it holds, and how each attempt began and ended. Free of torch."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from trainlib.config import Config, differences, dump_config, is_harmless, read_resolved
from trainlib.errors import RunDirectoryError, StoppedError, TrainlaunchError
from trainlib.runs.files import append_line, read_json, read_lines, timestamp, to_json, write_atomically
from trainlib.runs.logs import slurm_job

logger = logging.getLogger("trainlib.runs.directory")

RUNS = Path("runs")
LOCK_PATIENCE = 1.0  # seconds: `launch list` takes every lock for a moment, to see whether the run is alive


@dataclass
class Attempt:
    """How an attempt is ending, filled in as it goes."""

    step: int
    number: int = 1  # of the run's attempts
    status: Literal["completed", "stopped", "failed"] = "failed"
    reason: str | None = None


class RunDirectory:
    """The files of one run. `open` is for the process that trains (rank 0); it holds the lock until `close`."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.attempts_file = path / "attempts.jsonl"
        self.summary_file = path / "summary.json"
        self.environment_file = path / "environment.json"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.stop_file = path / "STOP"
        self._lock: TextIO | None = None

    @classmethod
    def open(cls, config: Config, *, fresh: bool = False, resume: str | None = None, runs: Path = RUNS) -> RunDirectory:
        """Create or reopen runs/<name>, lock it and check that this configuration may go on in it.

        fresh   move an earlier run of this name aside and begin again
        resume  not None: accept changes that leave the finished part of the run as it was (more epochs, tracking,
                slurm); not empty: a checkpoint is named, so that a finished run may be continued from it
        Raises RunDirectoryError: in use, finished, of a different configuration, not writable, or with links in it.
        """
        run = cls(runs / config.name)
        try:
            run._refuse_links()
            run.logs.mkdir(parents=True, exist_ok=True)
            run._acquire_lock()
            if fresh and run.config_file.exists():
                run._move_aside()
                run.logs.mkdir(parents=True)
                run._acquire_lock()
            run._check_config(config, resume)
            run.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{run.path}: cannot be written ({error.strerror}); change to a folder that you may write to, "
                "or mend its permissions"
            ) from error
        return run

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()  # the kernel releases the lock, as it does when the process is killed
            self._lock = None

    def begin(self, config: Config) -> None:
        """Training is about to begin with this configuration, all of which could be built: it is now the run's."""
        write_atomically(self.config_file, dump_config(config))
        for file in (self.summary_file, *self.path.glob("evaluation-*.json")):
            file.unlink(missing_ok=True)  # of an earlier end, which this one goes beyond

    def summary(self) -> dict[str, Any]:
        """summary.json as a dictionary; empty before the run's first end."""
        return read_json(self.summary_file)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.summary_file, to_json(summary, indent=2) + "\n")

    def next_attempt(self) -> int:
        """The number of the attempt that is about to begin, from 1 on."""
        return 1 + len([line for line in read_lines(self.attempts_file) if line.get("event") == "start"])

    @contextmanager
    def attempt(self, *, world_size: int, from_step: int) -> Iterator[Attempt]:
        """Record that an attempt begins and, whatever happens inside, how it ended: failed unless it says otherwise.

        A file that cannot be read or written inside, as on a full disk, ends it with a TrainlaunchError.
        """
        number = self.next_attempt()
        start = {
            "event": "start",
            "attempt": number,
            "time": timestamp(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": world_size,
            "from_step": from_step,
            "slurm_job_id": slurm_job(os.environ),
            "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT"),
        }
        attempt = Attempt(step=from_step, number=number)
        try:
            append_line(self.attempts_file, start)
            yield attempt
        except BaseException as error:
            attempt.reason = attempt.reason or f"{type(error).__name__}: {error}"
            if isinstance(error, StoppedError):
                attempt.status = "stopped"
            if isinstance(error, OSError):
                raise TrainlaunchError(
                    f"{error}; the run ends here, and goes on from its last checkpoint when it is started again"
                ) from error
            raise
        finally:
            end = {"event": "end", "attempt": number, "time": timestamp(), "status": attempt.status}
            try:
                append_line(self.attempts_file, end | {"step": attempt.step, "reason": attempt.reason})
            except OSError as error:  # must not hide how the attempt ended
                logger.warning("%s lacks the end of attempt %d (%s)", self.attempts_file, number, error)

    def _refuse_links(self) -> None:
        """What a run writes, reads or removes must be its own: a link would lead it somewhere else.

        The run directory itself may be one. W&B makes links inside its own folder.
        """
        for folder in (self.path, self.logs, self.checkpoints):
            links = sorted(entry.path for entry in os.scandir(folder) if entry.is_symlink()) if folder.is_dir() else []
            if links:
                raise RunDirectoryError(
                    f"{links[0]} is a link to {os.readlink(links[0])}; a run directory must hold its files itself: "
                    "remove the link, or choose another name with `--name`"
                )

    def _acquire_lock(self) -> None:
        path = self.path / "lock"
        lock = path.open("a+")
        deadline = time.monotonic() + LOCK_PATIENCE
        while not (_try_lock(lock) and _is_same_file(lock, path)):  # another process may have moved the run aside
            if time.monotonic() > deadline:
                lock.close()
                raise RunDirectoryError(
                    f"{self.path} is in use: another process is training into it; wait for it, stop it with "
                    f"`launch stop {self.path.name}`, or choose another name with `--name`"
                )
            time.sleep(0.05)
            lock.close()
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
        self.close()
        self._lock = lock

    def _move_aside(self) -> None:
        """Rename this run out of the way: nothing that a run made is ever deleted."""
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(old)

    def _check_config(self, config: Config, resume: str | None) -> None:
        if not self.config_file.exists():
            return
        earlier = read_resolved(self.config_file)
        changes = differences(earlier, config)
        harmful = [change for change in changes if not is_harmless(change.key)]
        if changes and (harmful or resume is None):
            listed = "\n".join(f"  {change.key}: {change.old} there, {change.new} now" for change in changes)
            way_on = "`--fresh` to begin again (the old run is kept aside) or `--name` for another run"
            if not harmful:
                way_on = f"`--resume` to continue with this change, {way_on}"
            raise RunDirectoryError(f"{self.path} holds a run of a different configuration:\n{listed}\nUse {way_on}.")
        is_longer = any(change.key in ("train.epochs", "train.steps") for change in changes)
        if self.summary().get("status") == "completed" and not (is_longer or resume):
            raise RunDirectoryError(
                f"{self.path} is finished; `--fresh` begins again (the old run is kept aside), `--name` makes "
                "another run, and `--resume` with more train.epochs continues it, unless it stopped early"
            )


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same_file(file: TextIO, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
