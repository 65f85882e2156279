"""Follow a run and show it to W&B, in an own process: `python -m trainlib.training.hooks.tracking.wandb.follower`.

It follows the files of the run directory and logs what W&B has not got yet. Whatever happens to W&B's library, its
processes or its server happens here, where training does not notice.

Standard input: one line of JSON, the `WandbJob`; then `finish` when the training has ended.
Standard output: a line for each thing to warn of. Exit code 0, or LOST: W&B no longer works, another follower may.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from trainlib.platform.regular_files import open_regular
from trainlib.runs.attempt.logs import redirect_output
from trainlib.runs.files.json_records import Fits, anything, parse_lines
from trainlib.runs.files.locks import acquire
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.checkpoints import name_of, steps_in
from trainlib.runs.records.rows import METRICS_FILE, Row, scalars
from trainlib.runs.records.shapes import ROW, SUMMARY
from trainlib.runs.terminal.streams import read_line
from trainlib.training.hooks.tracking.wandb.foreign import require_own_files
from trainlib.training.hooks.tracking.wandb.media import evaluation_media, health_values
from trainlib.training.hooks.tracking.wandb.process import WandbJob
from trainlib.training.hooks.tracking.wandb.run import WandbRun

LOST = 3
POLL_SECONDS = 0.5
PREDECESSOR_SECONDS = 20.0  # for the follower of a killed attempt to end
ORPHAN_SECONDS = 5.0  # to end, once the training process is gone


class Rows:
    """The rows that come into a file of JSON lines."""

    def __init__(self, path: Path, values: Callable[[Row], dict[str, Any]], fits: Fits = anything):
        self._path = path
        self._fits = fits
        self._values = values
        self._offset = 0

    def new(self) -> list[tuple[Row, dict[str, Any]]]:
        """Those that have become complete since the last call, with what W&B is to show of them."""
        with suppress(FileNotFoundError), os.fdopen(open_regular(self._path), "rb") as file:
            file.seek(self._offset)
            text = file.read()
            complete = text[: text.rfind(b"\n") + 1]
            self._offset += len(complete)
            return [(row, self._values(row)) for row in parse_lines(complete, self._fits).records]
        return []


class Follower:
    """Logs to one W&B run what comes into the files of one run directory."""

    def __init__(self, job: WandbJob, run: WandbRun):
        self._directory = Path(job.directory)
        self._run = run
        self._holds = job.mode == "offline"
        self._files = [
            Rows(self._directory / METRICS_FILE, scalars, ROW),
            Rows(self._directory / "health.jsonl", health_values),
        ]
        self._held: list[tuple[Row, dict[str, Any]]] = []

    def follow(self) -> None:
        """Log the new rows.

        Offline, where nobody watches, a row waits until a checkpoint makes it final: a run that is resumed from before
        it makes it again, with another time and speed. The test's waits for the pictures that go with it.
        """
        rows = self._held + [row for file in self._files for row in file.new()]
        safe_step = newest_checkpoint(self._directory) if self._holds else None
        self._held = []
        for row, values in rows:
            if row.get("split") == "test" or (safe_step is not None and row["step"] > safe_step):
                self._held.append((row, values))
            else:
                self._run.log(row, values)

    def finish(self) -> None:
        """Log the rest, with pictures and summary: the training has ended."""
        self.follow()
        files = RunFiles(self._directory)
        summary, evaluation = files.record("summary.json", SUMMARY), files.record("evaluation-test.json")
        for row, values in self._held:
            media = evaluation_media(evaluation) if row.get("split") == "test" and evaluation else {}
            self._run.log(row, values | media)
        self._run.finish(summary, best_checkpoint(self._directory, summary))


def newest_checkpoint(directory: Path) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max(steps_in(directory / "checkpoints"), default=0)


def best_checkpoint(directory: Path, summary: dict[str, Any]) -> Path | None:
    """Return the checkpoint of the best evaluation, or the last one; None where it is missing."""
    step = (summary.get("best") or {}).get("step", summary.get("step"))
    path = directory / "checkpoints" / name_of(step or 0)
    return path if path.is_dir() else None


def main() -> int:
    """Follow one training to its end; the exit code."""
    training = os.getppid()
    threading.Thread(target=_end_soon_after, args=[training], daemon=True).start()
    job = WandbJob(**json.loads(read_line()))
    folder = Path(job.directory) / "wandb"
    warnings = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    try:
        folder.mkdir(exist_ok=True)
        require_own_files(folder)
        redirect_output(folder / "follower.log")  # what W&B's library prints
        with hold_lock(folder):
            _follow(job, training, warnings)
    except Exception as error:  # noqa: BLE001 - whatever W&B's library raises
        warnings.write(" ".join(f"{error or type(error).__name__}".split()) + "\n")
        return LOST
    return 0


def _follow(job: WandbJob, training: int, warnings: TextIO) -> None:
    run = WandbRun(job)
    follower = Follower(job, run)
    while (word := _word_from(training)) is None:
        follower.follow()
        run.check()
    if word == "finish":
        follower.finish()
        if missing := run.missing():
            warnings.write(f"{missing} rows could not be written below {job.directory}/wandb\n")
    else:  # the training was killed, and goes on from its newest checkpoint when it is started again
        follower.follow()
        run.finish({}, None)


def _end_soon_after(training: int) -> None:
    """Leave no process behind a training that was killed, whatever W&B waits for."""
    while os.getppid() == training:
        time.sleep(POLL_SECONDS)
    time.sleep(ORPHAN_SECONDS)
    os._exit(LOST)


def _word_from(training: int) -> str | None:
    """Return what the training process sends: `finish`, nothing ("") once it is gone, or None after some time."""
    if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        return read_line()
    return None if os.getppid() == training else ""


def hold_lock(folder: Path) -> TextIO:
    """Lock a run's `wandb` folder until the file that is returned is closed.

    The follower of an earlier attempt may still be writing what this process is about to read. Raises BlockingIOError
    where that one does not end within PREDECESSOR_SECONDS.
    """
    return acquire(folder / "lock", seconds=PREDECESSOR_SECONDS)


if __name__ == "__main__":
    code = main()
    os._exit(code)  # past W&B's own way out, which fails, or waits, where its process is gone or its server dead
