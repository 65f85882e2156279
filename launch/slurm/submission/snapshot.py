"""Copies the code into a run directory, so that editing it after a submission changes nothing in the job."""

from __future__ import annotations

import shutil
from pathlib import Path

import launch
from launch.slurm.submission.sites import shipped_files
from trainlib import errors
from trainlib.runs.machine.environment import COMMIT_FILE, git_commit

NAME = "code"
REPLACED = f".{NAME}.old"  # the copy before, until the job is queued
SCRIPT = Path("slurm", "train.sbatch")


def take_snapshot(directory: Path) -> Path:
    """Copy this software to directory/code, with its commit in a file COMMIT; an earlier copy is moved to REPLACED."""
    code, new = directory / NAME, directory / f".{NAME}.new"
    shutil.rmtree(new, ignore_errors=True)
    for module in (launch, errors):
        source = Path(str(module.__file__)).parent
        shutil.copytree(source, new / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped_files(), new / SCRIPT.parent)
    commit = git_commit()
    if commit is not None:
        (new / COMMIT_FILE).write_text(f"{commit}\n")
    shutil.rmtree(directory / REPLACED, ignore_errors=True)
    if code.exists():
        code.rename(directory / REPLACED)
    new.rename(code)
    return code
