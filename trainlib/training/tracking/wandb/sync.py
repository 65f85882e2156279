"""Upload what W&B keeps of a run on disk: `python -m trainlib.training.tracking.wandb.sync RUN_DIRECTORY`.

Each attempt of a run has left a log of its own. Those of offline attempts are uploaded by `wandb sync`, in order, under
the run's one id, each appended to what the server has. Where an upload was cut off, or an online attempt did not get to
the end of its own, the server is asked how many rows it has, and gets those that it lacks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainlib.config import read_resolved
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.runs.files import read_json, sync_directory
from trainlib.training.tracking.wandb.follower import Follower, hold_lock
from trainlib.training.tracking.wandb.log import cut_to_records, says_its_run, segments
from trainlib.training.tracking.wandb.process import Job
from trainlib.training.tracking.wandb.run import WandbRun, run_id, synced_marker

LOGIN_SECONDS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `errors`)."""
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.tracking.wandb.sync")
    parser.add_argument("directory", type=Path)
    try:
        message = sync(parser.parse_args(arguments).directory.absolute())
    except TrainlaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(message)
    return EXIT_OK


def sync(run: Path) -> str:
    """Upload what the server lacks of the run in this directory; what was done, as a line for people."""
    folder = run / "wandb"
    if not (folder / "run-id").exists():
        raise UserError(f"{run}: W&B has nothing of this run: tracking was disabled, or wandb not installed")
    name = run_id(folder)
    try:
        with hold_lock(folder):
            begun = filter(says_its_run, segments(folder, name))
            waiting = [path for path in begun if not synced_marker(path).exists()]
            if not waiting:
                return f"{run.name}: W&B has everything; its id is {name}"
            for variable in ("WANDB_MODE", "WANDB_DISABLED"):  # which say what is to be done while training
                os.environ.pop(variable, None)
            _log_in()
            if any(is_online(path) or begun_marker(path).exists() for path in waiting):
                _send_missing_rows(run)
            else:
                for path in waiting:
                    _upload(path, name)
    except BlockingIOError as error:
        raise UserError(f"{run}: another process is giving it to W&B; try again when that has ended") from error
    return f"{run.name}: uploaded {len(waiting)} attempt{'s' * (len(waiting) > 1)} to W&B; its id is {name}"


def is_online(segment: Path) -> bool:
    """Whether an attempt uploaded its rows while it trained."""
    return not segment.parent.name.startswith("offline-")


def begun_marker(segment: Path) -> Path:
    """Return the file that exists while an upload is under way, or after one that was cut off."""
    return segment.with_name(f"{segment.name}.begun")


def _log_in() -> None:
    """Raise UserError unless the server is there and knows the key: `wandb sync` would wait for it without a word."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"W&B: its package cannot be used ({error}): pip install wandb") from error
    try:
        wandb.login(verify=True, timeout=LOGIN_SECONDS)
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B: {' '.join(str(error).split())} (set WANDB_API_KEY, or call `wandb login`; WANDB_BASE_URL is another "
            "server's address); nothing was uploaded"
        ) from error


def _upload(segment: Path, name: str) -> None:
    """Append one log to the run on the server. Raises UserError when that fails."""
    cut_to_records(segment)
    begun_marker(segment).touch()
    sync_directory(segment.parent)
    command = [sys.executable, "-m", "wandb", "sync", "--id", name, str(segment.parent)]
    beside = segment.parents[2]  # the run directory, in whose folder `wandb` that command then leaves its log
    result = subprocess.run(command, cwd=beside, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0 or not synced_marker(segment).exists():
        said = (result.stderr or result.stdout).strip()
        raise UserError(f"{segment.parent} was not uploaded; `wandb sync` said:\n{said}")
    begun_marker(segment).unlink()


def _send_missing_rows(run: Path) -> None:
    """Go on with the run on the server as an online attempt would that has nothing left to train."""
    config = read_resolved(run / "config.yaml")
    values = config.model_dump(mode="json") | {"environment": read_json(run / "environment.json")}
    job = replace(Job.of(run, config.tracking.wandb, values), mode="online")
    try:
        Follower(job, WandbRun(job)).finish()
    except Exception as error:  # whatever W&B's library raises
        raise TrainlaunchError(f"{run.name} was not uploaded to W&B: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
