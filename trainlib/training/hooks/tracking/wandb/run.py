"""One W&B run, as seen by the process that follows a training (see `follower`)."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from trainlib.errors import UserError
from trainlib.platform.regular_files import open_regular, read_regular
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.records.rows import Row
from trainlib.training.hooks.tracking.wandb.log import RowKey, ids_in, key_of, logged_rows, points_of, segments
from trainlib.training.hooks.tracking.wandb.process import WandbJob

ID_FILE = "run-id"
INIT_SECONDS = 10.0
WRITING_SECONDS = 8.0
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")  # with a - in front it would be an option

# Those that the installed version knows are set.
SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "allow_val_change": True,
    "init_timeout": INIT_SECONDS,
    "login_timeout": 5.0,
    "silent": True,
    "symlink": False,
    "x_save_requirements": False,
    "x_file_stream_transmit_interval": 5.0,  # seconds until people see a row
    "x_transaction_log_flush_interval": 1.0,  # seconds; what a kill of all processes may cost
}


def run_id(folder: Path) -> str:
    """Return W&B's id of this run, which is made once, before the first contact, and kept in the folder `wandb`."""
    if (found := recorded_id(folder)) is None:
        folder.mkdir(exist_ok=True)
        found = secrets.token_hex(6)
        write_atomically(folder / ID_FILE, f"{found}\n")
    return found


def recorded_id(folder: Path) -> str | None:
    """Return W&B's id of this run; where the file with it is lost, that of its logs. None where there is nothing."""
    path = folder / ID_FILE
    try:
        found = read_regular(path, 1000).decode(errors="replace").strip()
    except FileNotFoundError:
        ids = ids_in(folder)
        if len(ids) > 1:
            raise UserError(
                f"{path} is missing, and the logs beside it are of several runs ({', '.join(ids)}): write the id of "
                "this run into it"
            ) from None
        found = ids[0] if ids else ""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    else:
        ids = [found]
    if ids and not _ID.fullmatch(found):
        raise UserError(f"{path}: {found[:20]!r} is no id of a run; it has letters, digits, - and _")
    return found or None


def synced_marker(segment: Path) -> Path:
    """Return the file by which W&B knows that a segment is uploaded."""
    return segment.with_name(f"{segment.name}.synced")


def is_synced(segment: Path) -> bool:
    """Return True if W&B's marker says that a segment is uploaded, as it is now: it may have grown since."""
    with suppress(FileNotFoundError):
        return synced_marker(segment).stat().st_mtime_ns >= segment.stat().st_mtime_ns
    return False


def make_marker(path: Path) -> None:
    """Make an empty file, or one that is there as new as if it were made now."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
    os.utime(descriptor)
    os.close(descriptor)


class WandbRun:
    """Logs each row once, however often it is given one, in this attempt or a later one."""

    def __init__(self, job: WandbJob):
        import wandb

        self._folder = Path(job.directory) / "wandb"
        self._job = job
        self.id = run_id(self._folder)
        known = logged_rows(self._folder, self.id)
        numbers = {point.number for point in points_of(self._folder, self.id)}
        settings = SETTINGS | {"x_stats_pid": job.pid}
        self._run: Any = wandb.init(
            dir=job.directory,
            id=self.id,
            name=job.name,
            mode=job.mode,
            project=job.project,
            group=job.group,
            entity=job.entity,
            job_type="train",
            resume="allow",
            config=dict(job.config),
            settings=wandb.Settings(**{key: settings[key] for key in settings if key in wandb.Settings.model_fields}),
        )
        self._core = _core_process()
        if job.mode == "online":  # only the server knows what it has of what is on disk
            self._next = self._run.starting_step
            known = {key: number for key, number in known.items() if number < self._next}
        else:
            self._next = max(known.values(), default=-1) + 1
        self._logged: set[RowKey] = set(known)
        # Rows that W&B has counted and no log here holds, as the log of an earlier attempt was removed: that they are
        # not found here does not say that they were not sent. They are the oldest of those that are not found.
        self._num_elsewhere = len(set(range(self._next)) - numbers)
        self._elsewhere: set[RowKey] = set()
        # The axis of all charts: W&B's own step only numbers the rows, as it must never go backwards.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, row: Row, values: Mapping[str, Any]) -> None:
        """Log the numbers of a row, unless W&B has it already; pictures and tables in `values` go along."""
        key = key_of(row["step"], values)
        if key in self._logged or key in self._elsewhere:
            return
        if len(self._elsewhere) < self._num_elsewhere:
            self._elsewhere.add(key)
        else:
            self._run.log({"step": row["step"], "epoch": row["epoch"], **values}, step=self._next, commit=True)
            self._logged.add(key)
            self._next += 1

    def check(self) -> None:
        """Raise ConnectionError where W&B's own process, which writes and uploads, has died."""
        if self._core is not None and (not self._core.is_running() or self._core.status() == "zombie"):
            raise ConnectionError("its process wandb-core has died")

    def missing(self) -> int:
        """How many of the rows that were logged are not on disk, once the run is finished.

        W&B says that a run is finished a moment before the last of it is in the file: that moment is waited for.
        """
        deadline = time.monotonic() + WRITING_SECONDS
        while missing := self._logged - set(logged_rows(self._folder, self.id)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return len(missing)

    def finish(self, summary: Mapping[str, Any], checkpoint: Path | None) -> None:
        """End this attempt. `summary` as in summary.json, empty where the training ended without one."""
        if self._job.artifacts and checkpoint is not None:
            self._log_checkpoint(checkpoint)
        for name in ("status", "weights_sha256", "world_size", "images_per_second", "seconds", "best", "test"):
            if summary.get(name) is not None:
                self._run.summary[f"summary/{name}"] = summary[name]
        if summary.get("status") == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if summary.get("status") in ("completed", "stopped") else 1)
        if self._job.mode == "online":  # the server has all rows now, those of earlier attempts included
            for path in segments(self._folder, self.id):
                make_marker(synced_marker(path))

    def _log_checkpoint(self, checkpoint: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._job.name}-weights", type="model")
        artifact.add_dir(str(checkpoint), policy="immutable")
        self._run.log_artifact(artifact)


def _core_process() -> psutil.Process | None:
    children = psutil.Process().children()
    return next((child for child in children if child.name() == "wandb-core"), None)
