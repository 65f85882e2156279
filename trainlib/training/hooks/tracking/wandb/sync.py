"""Upload what W&B keeps of a run on disk: `python -m trainlib.training.hooks.tracking.wandb.sync RUN_DIRECTORY`.

Each attempt of a run has left a log of its own. Those of offline attempts are uploaded by `wandb sync`, in order, under
the run's one id, each appended to what the server has. Where an upload was cut off, or an online attempt did not get to
the end of its own, the server is asked how many rows it has, and gets those that it lacks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path

from trainlib.config import read_resolved
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.runs.files.durable import sync_directory
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import METRICS_FILE, scalars
from trainlib.runs.records.shapes import ROW
from trainlib.runs.terminal.printable import lines, print_error
from trainlib.training.hooks.tracking.wandb.follower import Follower, hold_lock
from trainlib.training.hooks.tracking.wandb.foreign import own_environment, require_own_contents, require_own_files
from trainlib.training.hooks.tracking.wandb.log import cut_to_records, key_of, logged_rows, says_its_run, segments
from trainlib.training.hooks.tracking.wandb.process import WandbJob
from trainlib.training.hooks.tracking.wandb.run import WandbRun, is_synced, make_marker, recorded_id, synced_marker
from trainlib.training.hooks.tracking.wandb.temporary import TemporaryFolder

LOGIN_SECONDS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `errors`)."""
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.hooks.tracking.wandb.sync")
    parser.add_argument("directory", type=Path)
    try:
        message = sync(parser.parse_args(arguments).directory.absolute())
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    print(lines(message))
    return EXIT_OK


def sync(run: Path) -> str:
    """Upload what the server lacks of the run in this directory; what was done, as a line for people.

    W&B's own records say what was tracked and what was sent. Where there are none, nothing is claimed.
    """
    folder = run / "wandb"
    require_own_files(folder)
    if (name := recorded_id(folder)) is None:
        raise UserError(f"{run}: W&B has nothing of this run: tracking was disabled, or wandb not installed")
    try:
        with hold_lock(folder), _private_folder():
            begun = [path for path in segments(folder, name) if says_its_run(path)]
            if not begun:
                raise UserError(
                    f"{run}: nothing of this run was tracked, so there is nothing to upload: W&B failed before its "
                    "first record (logs/rank-0.log says how); the rows are in metrics.jsonl"
                )
            waiting = [path for path in begun if not is_synced(path)]
            untracked = _untracked_rows(run, name)
            if not waiting and not untracked:
                return f"{run.name}: W&B has everything; its id is {name}"
            for path in begun:
                require_own_contents(path)
            _log_in()
            if untracked or any(is_online(path) or _was_sent_in_part(path) for path in waiting):
                _send_missing_rows(run)
            else:
                for path in waiting:
                    _upload(path, name)
    except BlockingIOError as error:
        raise UserError(f"{run}: another process is giving it to W&B; try again when that has ended") from error
    except OSError as error:
        raise UserError(f"{run}: cannot be uploaded ({error})") from error
    also = f", and {untracked} rows that were not tracked" if untracked else ""
    return f"{run.name}: uploaded {len(waiting)} attempt{'s' * (len(waiting) != 1)} to W&B{also}; its id is {name}"


def _untracked_rows(run: Path, name: str) -> int:
    """Return the number of rows of metrics.jsonl that none of W&B's logs holds."""
    logged = logged_rows(run / "wandb", name)
    rows = [(row["step"], scalars(row)) for row in RunFiles(run).lines(METRICS_FILE, ROW)]
    return sum(1 for step, values in rows if values and key_of(step, values) not in logged)


@contextmanager
def _private_folder() -> Iterator[None]:
    """Context manager: work in an empty folder, with the variables of this run alone.

    In the current folder, which may be the run's, W&B looks for settings, the server's address among them, and Python
    for modules.
    """
    variables, temporary = dict(os.environ), TemporaryFolder()
    try:
        with chdir(temporary.path):
            os.environ.clear()
            os.environ.update(own_environment(variables) | {"TMPDIR": str(temporary.path)})
            for variable in ("WANDB_MODE", "WANDB_DISABLED"):  # which say what is to be done while training
                os.environ.pop(variable, None)
            yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        temporary.remove()


def is_online(segment: Path) -> bool:
    """Whether an attempt uploaded its rows while it trained."""
    return not segment.parent.name.startswith("offline-")


def _was_sent_in_part(segment: Path) -> bool:
    """Return True if an upload of a log was cut off, or the log has grown since: the server must be asked for rows."""
    return begun_marker(segment).exists() or synced_marker(segment).exists()


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
    make_marker(begun_marker(segment))
    sync_directory(segment.parent)
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--id", name, str(segment.parent)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if result.returncode != 0 or not synced_marker(segment).exists():
        said = (result.stderr or result.stdout).strip()
        raise UserError(f"{segment.parent} was not uploaded; `wandb sync` said:\n{said}")
    begun_marker(segment).unlink()


def _send_missing_rows(run: Path) -> None:
    """Go on with the run on the server as an online attempt would that has nothing left to train."""
    config = read_resolved(run / "config.yaml")
    values = config.model_dump(mode="json") | {"environment": RunFiles(run).record("environment.json")}
    job = replace(WandbJob.of(run, config.tracking.wandb, values), mode="online")
    try:
        Follower(job, WandbRun(job)).finish()
    except Exception as error:  # whatever W&B's library raises
        raise TrainlaunchError(f"{run.name} was not uploaded to W&B: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
