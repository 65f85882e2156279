"""Removing runs, and refusing to where something goes on in them or would be lost for good."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from launch.slurm.follow import active_job
from launch.slurm.queue import QueueError
from trainlib.errors import UserError
from trainlib.runs.attempt.status import is_running
from trainlib.runs.directory import RunDirectory
from trainlib.runs.records.checkpoints import steps_in


def require_idle(directories: Sequence[Path]) -> None:
    """Raise UserError where a process trains into one of these, or a job of it waits or runs."""
    for directory in directories:
        name = directory.name
        if is_running(directory):
            raise UserError(f"{name} is running: launch stop {name} ends it; nothing was removed")
        try:
            job = active_job(directory)
        except QueueError as error:
            raise UserError(f"{name} has a job, and SLURM does not answer ({error}); nothing was removed") from error
        if job is not None:
            raise UserError(f"{name} has the job {job.job_id}: launch cancel {name} ends it; nothing was removed")


def remove_runs(directories: Sequence[Path], *, force: bool) -> None:
    """Remove these run directories.

    force   also those that hold checkpoints, of which there may be no other copy

    Raises UserError, before anything is removed, where one must stay.
    """
    require_idle(directories)
    for directory in directories:
        if directory.is_symlink():
            raise UserError(f"{directory} is a link: remove what it leads to, or the link itself; nothing was removed")
        if (steps := steps_in(directory / "checkpoints")) and not force:
            raise UserError(
                f"{directory.name} has {len(steps)} checkpoint{'s' * (len(steps) > 1)}, of which there may be no other "
                f"copy: launch rm --force {directory.name} removes them, launch prune {directory.name} all but two; "
                "nothing was removed"
            )
    with ExitStack() as held:
        for (
            directory
        ) in directories:  # all of them first: no training may begin in any, or stand in the way of the last
            held.enter_context(RunDirectory.held(directory, "launch rm"))
        for directory in directories:
            _remove(directory)


def _remove(directory: Path) -> None:
    """Rename a run and remove it: a kill half way leaves no half of a run under its name."""
    doomed = directory.with_name(f".removed-{directory.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed)
