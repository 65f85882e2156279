"""The folder in memory for snapshots of a run's state, which outlives the ranks: their launcher makes and removes it.

`trainlib.training.checkpoints.snapshots` writes what is in it, and reads it at the next start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from trainlib.runs.files.scratch import SHARED_MEMORY, make_scratch
from trainlib.runs.records.checkpoints import steps_in

SNAPSHOTS = "TRAINLAUNCH_SNAPSHOTS"  # the folder, set by the launcher


class SnapshotFolder:
    """A temporary folder in memory for the snapshots of one run; there is none where files cannot be kept in memory.

    Where this process is killed, the next start removes it, as all such folders.
    """

    def __init__(self) -> None:
        self._scratch = make_scratch()
        if self._scratch is not None and self._scratch.path.parent != SHARED_MEMORY:  # it would be on a disk
            self.remove()

    def variables(self) -> dict[str, str]:
        """Return what tells the ranks of a start about the folder."""
        return {SNAPSHOTS: str(self._scratch.path)} if self._scratch is not None else {}

    def newest(self) -> int | None:
        """Return the step of the newest snapshot; None where there is none."""
        return max(steps_in(self._scratch.path), default=None) if self._scratch is not None else None

    def drop_from(self, step: int) -> None:
        """Remove the snapshots of this step and of later ones.

        From a snapshot of the last step that a dead rank has finished, the next start could not show that it finishes
        that step and dies in the next one again.
        """
        for found, path in steps_in(self._scratch.path).items() if self._scratch is not None else ():
            if found >= step:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder with all snapshots."""
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


def snapshot_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that the launcher of this process has made for snapshots; None without one."""
    folder = environ.get(SNAPSHOTS)
    return Path(folder) if folder else None
