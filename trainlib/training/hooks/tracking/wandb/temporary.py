"""The folder for W&B's temporary files: removed when a run ends, or when the next one starts after a kill.

W&B leaves several folders behind where its process is ended from outside, as a run must be able to do.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from trainlib.platform.regular_files import open_regular
from trainlib.runs.files.scratch import lock_is_free

PREFIX = "trainlaunch-wandb-"
_MAKING_SECONDS = 60.0  # in which a new folder has no lock yet


class TemporaryFolder:
    """A private folder, in use as long as a process holds the descriptor `lock`. Making one removes those left over."""

    def __init__(self) -> None:
        remove_leftovers(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.lock = open_regular(self.path / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def remove_leftovers(parent: Path) -> None:
    """Remove this user's folders that no process uses any more, as after a kill."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.geteuid() and not folder.is_symlink() and _is_left(folder, status.st_mtime):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, made: float) -> bool:
    try:
        return lock_is_free(str(folder / "lock"))
    except OSError:
        return time.time() - made > _MAKING_SECONDS
