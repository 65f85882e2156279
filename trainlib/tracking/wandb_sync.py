"""Upload what W&B keeps of a run on disk: `python -m trainlib.tracking.wandb_sync RUN_DIRECTORY`.

Each attempt of a run has left a log of its own. Those of offline attempts are uploaded by `wandb sync`, in order, under
the run's one id, each appended to what the server has. Where an upload was cut off, or an online attempt did not get to
the end of its own, the server is asked how many rows it has, and gets those that it lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainlib.config import read_resolved
from trainlib.errors import TrainlaunchError, UserError
from trainlib.files import sync_directory
from trainlib.tracking.wandb_follower import Follower, hold_lock
from trainlib.tracking.wandb_log import segments
from trainlib.tracking.wandb_process import Job
from trainlib.tracking.wandb_run import WandbRun, run_id, synced_marker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainlib.tracking.wandb_sync")
    parser.add_argument("directory", type=Path)
    run = parser.parse_args(arguments).directory.absolute()
    folder = run / "wandb"
    if not (folder / "run-id").exists():
        raise UserError(f"{run}: W&B has nothing of this run; it was trained with tracking.wandb.mode: disabled")
    name = run_id(folder)
    with hold_lock(folder):
        waiting = [path for path in segments(folder, name) if not synced_marker(path).exists()]
        if not waiting:
            print(f"{run.name}: W&B has everything; its id is {name}")
            return 0
        if any(is_online(path) or begun_marker(path).exists() for path in waiting):
            _send_missing_rows(run)
        else:
            for path in waiting:
                _upload(path, name)
    print(f"{run.name}: uploaded {len(waiting)} attempt{'s' * (len(waiting) > 1)} to W&B; its id is {name}")
    return 0


def is_online(segment: Path) -> bool:
    """Whether an attempt uploaded its rows while it trained."""
    return not segment.parent.name.startswith("offline-")


def begun_marker(segment: Path) -> Path:
    """The file that says that an upload has begun, which may have been cut off if it is still there."""
    return segment.with_name(f"{segment.name}.begun")


def _upload(segment: Path, name: str) -> None:
    """Append one log to the run on the server. Raises UserError when that fails."""
    begun_marker(segment).touch()
    sync_directory(segment.parent)
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_DISABLED")}
    command = [sys.executable, "-m", "wandb", "sync", "--id", name, str(segment.parent)]
    beside = segment.parents[2]  # the run directory, in whose folder `wandb` that command then leaves its log
    result = subprocess.run(
        command, cwd=beside, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0 or not synced_marker(segment).exists():
        said = (result.stderr or result.stdout).strip()
        raise UserError(f"{segment.parent} was not uploaded; `wandb sync` said:\n{said}")
    begun_marker(segment).unlink()


def _send_missing_rows(run: Path) -> None:
    """Go on with the run on the server as an online attempt would that has nothing left to train."""
    config = read_resolved(run / "config.yaml")
    environment = json.loads((run / "environment.json").read_text())
    values = config.model_dump(mode="json") | {"environment": environment}
    job = replace(Job.of(run, config.tracking.wandb, values), mode="online")
    os.environ.pop("WANDB_MODE", None)
    try:
        Follower(job, WandbRun(job)).finish()
    except Exception as error:  # whatever W&B's library raises
        raise TrainlaunchError(f"{run.name} was not uploaded to W&B: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
