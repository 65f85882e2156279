"""The directory of one run: its files, and which process may train into it, with which configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from trainlib.config import Config, differences, dump_config, is_free, is_harmless, read_resolved
from trainlib.errors import RunDirectoryError
from trainlib.runs import RUNS, locks
from trainlib.runs.attempts import ATTEMPTS_FILE
from trainlib.runs.files import read_json, remove_temporary, to_json, write_atomically

LOCK_PATIENCE = 1.0  # seconds: `launch list` takes every lock for a moment, to see whether the run is alive


class RunDirectory:
    """The files of one run. The process that trains, rank 0, calls `open` and holds the run's lock until `close`."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.attempts_file = path / ATTEMPTS_FILE
        self.summary_file = path / "summary.json"
        self.environment_file = path / "environment.json"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.stop_file = path / "STOP"
        self._lock: TextIO | None = None

    @classmethod
    def open(cls, config: Config, *, fresh: bool = False, resume: str | None = None, runs: Path = RUNS) -> RunDirectory:
        """Create or reopen runs/<name>, lock it, and check that this configuration may be trained in it.

        fresh   move an earlier run of this name aside and begin again
        resume  not None: accept changes that leave the finished part of the run as it was (more epochs, tracking,
                slurm); not empty: a checkpoint is named, so that a finished run may be continued from it
        Raises RunDirectoryError: in use, finished, of a different configuration, not writable, or with links in it.
        """
        run = cls(runs / config.name)
        try:
            run._refuse_links()
            run._acquire_lock()
            if fresh and run.config_file.exists():
                run._move_aside()
                run._acquire_lock()
            remove_temporary(run.path)
            run.logs.mkdir(exist_ok=True)
            run._check_config(config, resume)
            run.checkpoints.mkdir(exist_ok=True)
        except RunDirectoryError:
            run.close()  # a caller that keeps the error must not keep the lock
            raise
        except OSError as error:
            run.close()
            raise RunDirectoryError(
                f"{run.path}: cannot be written ({error.strerror}); change to a folder that you may write to, "
                "or mend its permissions"
            ) from error
        return run

    def close(self) -> None:
        """Release the run's lock."""
        if self._lock is not None:
            self._lock.close()  # the kernel releases the lock, as it does when the process is killed
            self._lock = None

    def begin(self, config: Config) -> None:
        """Write config.yaml and remove the results of an earlier end: training is about to begin."""
        write_atomically(self.config_file, dump_config(config))
        for file in (self.summary_file, *self.path.glob("evaluation-*.json")):
            file.unlink(missing_ok=True)  # of an earlier end, after which training now goes on

    def summary(self) -> dict[str, Any]:
        """Return summary.json as a dictionary; empty before the run has ended for the first time."""
        return read_json(self.summary_file, strict=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json."""
        write_atomically(self.summary_file, to_json(summary, indent=2) + "\n")

    def _refuse_links(self) -> None:
        """Raise RunDirectoryError for a link, pipe, device or socket in the directory.

        Links would lead the run to files that are not its own, and a pipe would make it wait for ever. The run
        directory itself may be a link. W&B makes links inside its own folder.
        """
        for folder in (self.path, self.logs, self.checkpoints):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.path) if folder.is_dir() else []
            for entry in entries:
                if entry.is_symlink():
                    what = f"a link to {os.readlink(entry)}"
                elif entry.is_file() or entry.is_dir():
                    continue
                else:
                    what = "neither a file nor a folder"
                raise RunDirectoryError(
                    f"{entry.path} is {what}; a run directory must hold its files itself: "
                    "remove it, or choose another name with `--name`"
                )

    def _acquire_lock(self) -> None:
        try:
            lock = locks.acquire(self.path / "lock", seconds=LOCK_PATIENCE)
        except BlockingIOError:
            raise RunDirectoryError(
                f"{self.path} is in use: another process is training into it; wait for it, stop it with "
                f"`launch stop {self.path.name}`, or choose another name with `--name`"
            ) from None
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
        changes = [change for change in differences(earlier, config) if not is_free(change.key)]
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
