"""Keeping the current folder out of the module search path: a user's `queue.py` there must not stand for Python's.

`python -m` puts the current folder first on the path. What this software starts itself is started without it; where the
user typed `python -m` (or torchrun did), it is taken out as soon as this package is imported. `python -P -m` never has
it, also for what Python itself imports before that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])  # the folder that holds the packages
_kept_root = False


def leave_current_folder() -> None:
    """Take the current folder off the module search path, if `python -m` has just put it there.

    Packages that are found nowhere else, as in a clone that was not installed, stay: last on the path.
    """
    global _kept_root
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path or not sys.path:  # argv is so only while -m looks for its module
        return
    folder = os.path.realpath(sys.path.pop(0))
    if folder == _ROOT and not _is_listed(sys.path):
        sys.path.append(_ROOT)
        _kept_root = True


def child_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a Python process imports these packages, and nothing from the current folder.

    environ   the variables that the process has otherwise
    An empty entry of PYTHONPATH, as a blank export in a shell leaves it, means the current folder: it is left out.
    """
    given = environ.get("PYTHONPATH", "")
    entries = [entry for entry in given.split(os.pathsep) if entry]
    if _kept_root or not (_is_listed(sys.path[1:]) or _is_listed(entries)):  # the first: a script's or current folder
        entries.append(_ROOT)
    path = os.pathsep.join(entries)
    return {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": path} if path != given else {})


def _is_listed(path: list[str]) -> bool:
    return any(os.path.realpath(entry) == _ROOT for entry in path)
