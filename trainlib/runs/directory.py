"""The directory of one run: its files, and which process may train into it, with which configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from trainlib.config import Config, differences, dump_config, harmful, is_free, read_resolved
from trainlib.errors import RunDirectoryError, not_written
from trainlib.runs import RUNS
from trainlib.runs.attempt.owner import OWNER_FILE, Owner, Ownership, is_handed_over, is_taken, read_owner
from trainlib.runs.attempt.pulse import PULSE_FILE, remove_pulse, write_pulse
from trainlib.runs.attempt.record import ATTEMPTS_FILE, has_open_attempt
from trainlib.runs.files import locks
from trainlib.runs.files.durable import part_appended, remove_temporary, sync_directory, write_atomically
from trainlib.runs.files.file_backup import FileBackup
from trainlib.runs.files.json_records import read_json, read_lines, to_json
from trainlib.runs.own_code.sources import NO_CODE, OwnCode, difference, write_copy

LOCK_PATIENCE = 1.0  # seconds: another start may be about to be refused


class RunDirectory:
    """The files of one run. The process that trains, rank 0, calls `open`, which makes it the owner until `close`.

    Until `begin`, or `claim`, nothing of the run changes: what is refused before leaves it as it was.
    """

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
        self.is_moved_aside = False  # by `claim`, as `fresh` said
        self._ownership: Ownership | None = None
        self._lock: TextIO | None = None
        self._made: list[Path] = []  # by `open`, innermost first
        self._left = FileBackup(())  # by a process that was killed
        self._is_claimed = False
        self.pulse: Callable[[], Mapping[str, Any]] | None = None  # gives what progress.json is to say
        self.on_begin: Callable[[], None] = lambda: None  # called at the end of `begin`
        self._code = NO_CODE

    @classmethod
    def open(
        cls,
        config: Config,
        *,
        fresh: bool = False,
        resume: str | None = None,
        code: OwnCode = NO_CODE,
        runs: Path = RUNS,
    ) -> RunDirectory:
        """Become the owner of runs/<name>, and check that this configuration may be trained in it.

        fresh   an earlier run of this name does not matter: `begin` moves it aside
        resume  not None: accept changes that leave the finished part of the run as it was (more epochs, tracking,
                slurm); not empty: a checkpoint is named, so that a finished run may be continued from it
        code    of one's own, of which `begin` writes a copy
        Raises RunDirectoryError: in use, finished, of a different configuration, not writable, or with links in it.
        """
        run = cls(runs / config.name)
        run._code = code
        try:
            run._refuse_links()
            run._take()
            run.is_moved_aside = fresh and run.config_file.exists()
            if not fresh:
                run._check_config(config, resume)
        except RunDirectoryError:
            run.close()  # a caller that keeps the error must not keep the lock
            raise
        except OSError as error:
            run.close()
            raise RunDirectoryError(not_written(run.path, error)) from error
        return run

    @classmethod
    @contextmanager
    def held(cls, path: Path, purpose: str) -> Iterator[None]:
        """Context manager: own a run for something else than training, so that no training begins meanwhile.

        purpose   the command that does it, `launch prune`
        Raises RunDirectoryError: in use, also by a process that only reads and holds the lock, or not writable.
        """
        run = cls(path)
        try:
            run._take(purpose=purpose)
            if run._lock is None:
                raise RunDirectoryError(f"{path} is in use by a process that reads it: try again")
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"{path}: cannot be written ({error.strerror or error}); mend its permissions, or the disk's room"
            ) from error
        finally:
            run.close()

    def close(self) -> None:
        """Give the run up. What `open` has made is removed if nothing began: a refused start leaves no trace."""
        if self._ownership is not None:
            if self.is_own():
                remove_pulse(self.path)
                with suppress(OSError):  # in place of this process's own: nobody else may have begun meanwhile
                    self._left.restore()
            self._ownership.release()
            self._ownership = None
        for path in self._made:
            if path.name == "lock" and self._lock is None:
                continue  # another start has it
            with suppress(OSError):  # something else is in the folder by now
                path.rmdir() if path.is_dir() else path.unlink()
        self._made = []
        if self._lock is not None:
            self._lock.close()  # the kernel releases the lock, as it does when the process is killed
            self._lock = None

    @property
    def owner(self) -> Owner | None:
        """Return how owner.json names this process; None where it is not the owner."""
        return self._ownership.owner if self._ownership else None

    @property
    def is_lost(self) -> bool:
        """Return True if another process was seen to own the path by now, or nobody: then the run was moved."""
        return self._ownership is not None and self._ownership.is_lost

    def is_own(self) -> bool:
        """Return False if the run was moved or taken over: the path leads to another owner's, or nowhere."""
        return self._ownership is None or self._ownership.holds()

    def may_be_written(self) -> bool:
        """Return True if training has begun, and the run was neither moved nor taken over."""
        return self._is_claimed and self.is_own()

    def require_own(self) -> None:
        """Raise RunDirectoryError where `is_own` is not true."""
        if not self.is_own():
            raise RunDirectoryError(
                f"{self.path} is not this run's directory any more: it was moved or removed, or another process has "
                "begun to train into it. Training ends here and writes no more; a run that was moved goes on from its "
                f"last checkpoint when its directory is called {self.path.name} again"
            )

    def claim(self) -> None:
        """Make the directory ready to be written into, and its entry safe: what was to be refused has been."""
        if self._is_claimed:
            return
        if self._ownership is not None and not self._ownership.holds_for_good():
            self.require_own()
        if self.is_moved_aside:
            self._move_aside()
        remove_temporary(self.path)
        part_appended(self.path)
        for folder in (self.logs, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path.parent, self.path.parent.parent):
            sync_directory(folder)  # or the run might be missing after a power cut, its checkpoints with it
        self._made, self._left = [], FileBackup(())
        self._is_claimed = True

    def begin(self, config: Config) -> None:
        """Remove the results of an earlier end, write the code and config.yaml: training is about to begin."""
        self.claim()
        for file in (self.summary_file, *self.path.glob("evaluation-*.json")):
            file.unlink(missing_ok=True)  # first: a longer configuration beside them would look complete
        write_copy(self._code, self.path)  # before the file that says what it must be
        write_atomically(self.config_file, dump_config(config))
        self.on_begin()

    def next_attempt(self) -> int:
        """Return the number of the attempt that is about to begin, from 1 on."""
        lines = read_lines(self.attempts_file, strict=True)
        return 1 + len([line for line in lines if line.get("event") == "start"])

    @property
    def is_finished(self) -> bool:
        """Return True if the run is complete, and all that follows its summary was done as well."""
        return self.summary().get("status") == "completed" and not has_open_attempt(self.path)

    def summary(self) -> dict[str, Any]:
        """Return summary.json as a dictionary; empty before the run has ended for the first time."""
        return read_json(self.summary_file, strict=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json. Raises RunDirectoryError where the path leads to another run by now."""
        self.require_own()
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

    def _take(self, owner: Owner | None = None, purpose: str | None = None) -> None:
        """Become the owner, under the identity given or a new one; a process that only holds the lock is none."""
        self._made = [path for path in (self.path / "lock", self.path, self.path.parent) if not path.exists()]
        try:
            self._lock = locks.acquire(self.path / "lock", seconds=LOCK_PATIENCE)
        except BlockingIOError:
            if read_owner(self.path) is None and has_open_attempt(self.path):  # a version before owner.json trains
                raise self._in_use() from None
        while self._ownership is None:
            if not is_handed_over(self.path) and is_taken(self.path):
                raise self._in_use()
            self._left = self._left or FileBackup([self.path / OWNER_FILE, self.path / PULSE_FILE])
            (self.path / OWNER_FILE).unlink(missing_ok=True)  # of a process that was killed
            with suppress(FileExistsError):  # another start was faster
                self._ownership = Ownership(self.path, owner, self._beat, purpose=purpose)

    def _beat(self) -> None:
        if self.pulse is not None:
            write_pulse(self.path, self.pulse())

    def _in_use(self) -> RunDirectoryError:
        owner = read_owner(self.path)
        who = f"process {owner.pid} on {owner.host}" if owner else "another process"
        if owner is not None and owner.purpose is not None:
            return RunDirectoryError(
                f"{self.path} is in use: {who} is at `{owner.purpose}`; try again once it has ended"
            )
        return RunDirectoryError(
            f"{self.path} is in use: {who} is training into it; wait for it, stop it with "
            f"`launch stop {self.path.name}`, or choose another name with `--name`"
        )

    def _move_aside(self) -> None:
        """Rename the earlier run out of the way, and own its place: nothing that a run made is ever deleted."""
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(old)
        earlier, self._ownership = self._ownership, None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        try:
            self._take(earlier.owner if earlier else None)
        finally:  # also where another start has taken the name meanwhile, which it keeps
            if earlier is not None:
                earlier.abandon()
                (old / OWNER_FILE).unlink(missing_ok=True)
                remove_pulse(old)
        with suppress(FileNotFoundError):
            (old / "STOP").rename(self.stop_file)  # asked while this start was under way
        self.is_moved_aside = False

    def _check_config(self, config: Config, resume: str | None) -> None:
        if not self.config_file.exists():
            return
        earlier = read_resolved(self.config_file)
        changes = [change for change in differences(earlier, config) if not is_free(change.key)]
        refused = harmful(earlier, config)
        if changes and (refused or resume is None):
            listed = "\n".join(f"  {change.key}: {change.old} there, {change.new} now" for change in changes)
            way_on = "`--fresh` to begin again (the old run is kept aside) or `--name` for another run"
            if not refused:
                way_on = f"`--resume` to continue with this change, {way_on}"
            if any(change.key.startswith("code") for change in changes):
                listed += "".join(f"\n  {line}" for line in difference(self.path, self._code).splitlines())
            raise RunDirectoryError(f"{self.path} holds a run of a different configuration:\n{listed}\nUse {way_on}.")
        is_longer = any(change.key in ("train.epochs", "train.steps") for change in changes)
        if self.is_finished and not (is_longer or resume):
            raise RunDirectoryError(
                f"{self.path} is finished; `--fresh` begins again (the old run is kept aside), `--name` makes "
                "another run, and `--resume` with more train.epochs continues it, unless it stopped early"
            )
