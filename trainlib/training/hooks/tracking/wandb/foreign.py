"""Checks of a W&B folder from an untrusted source: it may not run code, name other files, or say where it goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from trainlib.errors import UserError
from trainlib.training.hooks.tracking.wandb.log import record_kinds, wandb_records

# Settings that decide what a log is called, whether there is one, and who else writes into the run.
_PRIVATE = (
    *("X_FILES_DIR", "X_LABEL", "X_PRIMARY", "X_RUNQUEUE_ITEM_ID", "X_SERVICE_TRANSPORT", "X_SKIP_TRANSACTION_LOG"),
    *("X_START_TIME", "X_SYNC", "X_SYNC_DIR_SUFFIX", "X_UPDATE_FINISH_STATE"),
)
# Variables that say which run a process tracks, as `wandb agent` sets them for what it starts: this run has its own id.
# W&B takes each of its settings from WANDB_<SETTING>, those that begin with x_ also from WANDB__<the rest>.
_OF_ANOTHER_RUN = (
    *("WANDB_DIR", "WANDB_FORK_FROM", "WANDB_JOB_NAME", "WANDB_JOB_SOURCE", "WANDB_JOB_TYPE", "WANDB_LAUNCH"),
    *("WANDB_LAUNCH_CONFIG_PATH", "WANDB_NAME", "WANDB_PROJECT", "WANDB_REINIT", "WANDB_RESUME", "WANDB_RESUMED"),
    *("WANDB_RESUME_FROM", "WANDB_ROOT_DIR", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_RUN_JOB_TYPE"),
    *("WANDB_RUN_NAME", "WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "_WANDB_SERVICE"),
    *(f"WANDB_{name}" for name in _PRIVATE),
    *(f"WANDB_{name.removeprefix('X')}" for name in _PRIVATE),
)
# Records that say something about a run. Others make W&B read files elsewhere, send messages, or change other runs.
_PLAIN_KINDS = (
    *("history", "summary", "metric", "stats", "telemetry", "config", "environment", "files", "artifact"),
    *("output", "output_raw", "output_logger", "run", "exit", "final", "header", "footer", "preempting"),
)
_LINKS_OF_WANDB = ("latest-run", "offline-latest-run")
_MOST_ENTRIES = 100_000


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that name another run of W&B."""
    return {name: value for name, value in environ.items() if name not in _OF_ANOTHER_RUN}


def require_own_files(folder: Path) -> None:
    """Raise UserError where what is read or uploaded of a run's `wandb` folder is a link, a pipe, a device or a socket.

    W&B follows links, and uploads what they lead to. Those that it makes itself, to its own logs, are in the way of
    nobody.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, must be a folder of the run itself: remove it")
    logs = [path for path in folder.glob("*run-*") if path.name not in _LINKS_OF_WANDB]
    read = [folder / name for name in ("lock", "run-id", "follower.log") if os.path.lexists(folder / name)]
    read += [path for log in logs for path in (log, *([] if log.is_symlink() else log.glob("*")))]
    for log in logs:
        for parent, folders, files in os.walk(log / "files"):
            read += [Path(parent, name) for name in (*folders, *files)]
            if len(read) > _MOST_ENTRIES:
                raise UserError(f"{folder} holds more than {_MOST_ENTRIES} files, which no run of this software leaves")
    for path in read:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path} is a link, a pipe, a device or a socket, must be a file of the run itself: remove it"
            )


def require_own_contents(segment: Path) -> None:
    """Raise UserError where a log would make W&B upload files from outside the run, or do more than show the run."""
    own = segment.parents[2].resolve()
    for kind in record_kinds(segment):
        if kind not in _PLAIN_KINDS:
            raise UserError(f"{segment}: it asks W&B for {kind!r}, which no run of this software does; not uploaded")
    named = [item.path for record in wandb_records("files", segment) for item in record.files.files]
    for name in named:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise UserError(f"{segment}: it names the file {name!r}, outside of the run; not uploaded")
    for record in wandb_records("artifact", segment):
        manifest = record.artifact.manifest
        sources = [entry.local_path for entry in manifest.contents] + [manifest.manifest_file_path]
        for source in filter(None, sources):
            path = Path(source).resolve()
            is_staged = ("artifacts", "staging") in pairwise(path.parts)  # where W&B copies what it is to upload
            if not is_staged and not path.is_relative_to(own):
                raise UserError(f"{segment}: it names the file {source!r}, outside of the run; not uploaded")
