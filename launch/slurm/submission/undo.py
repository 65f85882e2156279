"""Puts a run directory back as it was where a submission fails after the directory was prepared for the job."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.slurm.submission.snapshot import NAME as CODE
from launch.slurm.submission.snapshot import REPLACED
from trainlib.runs import RUNS
from trainlib.runs.attempt.status import is_running
from trainlib.runs.files.file_backup import FileBackup
from trainlib.runs.records.jobs import JOBS_FILE

_SMALL_FILES = ("*.yaml", "*.json", JOBS_FILE, "STOP")


@contextmanager
def undone_on_failure(directory: Path) -> Iterator[None]:
    """Context manager: undo all changes in a run directory where the block fails.

    They are files made, moved aside, set aside or rewritten. What a run made is moved and never deleted, so what was
    there before is found again by its inode.
    """
    folders = {path.stat().st_ino: path for path in (directory, *directory.glob("checkpoints/*")) if path.exists()}
    names = frozenset(directory.glob("*"))
    shutil.rmtree(directory / REPLACED, ignore_errors=True)  # left by a kill
    files = FileBackup(path for pattern in _SMALL_FILES for path in directory.glob(pattern))
    try:
        yield
    except BaseException:
        if not is_running(directory):  # else another process has begun to train into it
            _undo(directory, folders, names)
            files.restore()
            if directory.parent == RUNS:
                with suppress(OSError):  # other runs are in it
                    RUNS.rmdir()
        raise
    shutil.rmtree(directory / REPLACED, ignore_errors=True)


def _undo(directory: Path, folders: Mapping[int, Path], names: Collection[Path]) -> None:
    """Move folders back to where they were, by their inodes, and remove what was not there."""
    if directory.exists() and directory.stat().st_ino not in folders:
        shutil.rmtree(directory)
    for path in (*directory.parent.glob(f"{directory.name}.old-*"), *directory.glob("checkpoints/*")):
        if (origin := folders.get(path.stat().st_ino, path)) != path:
            path.rename(origin)
    code = directory / CODE
    if (directory / REPLACED).exists():
        shutil.rmtree(code, ignore_errors=True)
        (directory / REPLACED).rename(code)
    for made in frozenset(directory.glob("*")) - frozenset(names):
        if made == code:
            shutil.rmtree(made)
        else:
            with suppress(OSError):  # a folder that is not empty
                made.rmdir() if made.is_dir() else made.unlink()
