"""A temporary folder that the ranks of one start on this machine share, where no launcher of ours has made one.

torchrun and `accelerate launch` start all ranks of a machine from one process, their agent, which is what the folder is
named after.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from trainlib.runs.machine.launch_variables import local_world_size

_RUN_ID, _RESTARTS, _LOCAL_RANK = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "LOCAL_RANK"


def make_agent_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder, which the first rank that comes makes; None for a single rank, or one without an agent.

    None also where somebody else could write to it: what ranks leave there for each other is trusted.
    """
    if local_world_size(environ) == 1 or not environ.get(_RUN_ID):
        return None
    agent = os.getppid()
    start = f"{os.getuid()}-{agent}-{_began(agent)}-{environ.get(_RESTARTS) or 0}"
    folder = Path(tempfile.gettempdir()) / f"trainlaunch-start-{start}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if is_ours else None


def remove_agent_folder(folder: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Remove the folder, in the first rank of the machine, once all ranks have read what they need."""
    if folder is not None and environ.get(_LOCAL_RANK) == "0":
        shutil.rmtree(folder, ignore_errors=True)


def _began(process: int) -> str:
    """Return when a process began, by the kernel's clock, which tells it from others that had its number."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
