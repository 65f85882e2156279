"""Follow a run and show it to a tracker of Accelerate's: `python -m trainlib.training.hooks.tracking.others.follower`.

Whatever happens to the tracker's library or server happens here, where training does not notice.

Standard input: one line of JSON, the `TrackerJob`; then `finish` when the training has ended.
Standard output: what went wrong, if anything did. Exit code 0, or 1 where the tracker does not work.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlib.errors import UserError
from trainlib.platform.regular_files import open_regular
from trainlib.runs.attempt.logs import redirect_output
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import parse_lines, read_json
from trainlib.runs.files.locks import acquire
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.rows import METRICS_FILE, Row, scalars
from trainlib.runs.records.shapes import ROW
from trainlib.runs.terminal.streams import read_line
from trainlib.training.hooks.tracking.others.process import TrackerJob

POLL_SECONDS = 0.5
PREDECESSOR_SECONDS = 20.0  # for the follower of a killed attempt to end
ORPHAN_SECONDS = 5.0  # to end, once the training process is gone
INSTALL = {"comet_ml": "comet-ml", "mlflow": "mlflow-skinny"}  # other names of packages


class Follower:
    """Logs to a tracker the rows of one run that are final, each once.

    A row is final once a checkpoint makes it so: a run that is resumed from before it makes it again. How many rows
    were logged is kept in the run directory, with the tracker's own name of the run: the next attempt goes on there.
    """

    def __init__(self, job: TrackerJob):
        self._job = job
        self._state_file = job.folder / f"{job.tracker}.json"
        state = read_json(self._state_file)
        self._logged = min(int(state.get("rows", 0)), job.num_rows)  # the others are made again
        self._tracker = opened(job, state.get("run"))
        self._run = run_name_of(job.tracker, self._tracker)
        if not self._logged:
            self._tracker.store_init_configuration(dict(flat(job.config)))
        self._save()

    def follow(self, *, ended: bool = False) -> None:
        """Log the new rows; all of them where the training has ended."""
        safe_step = max(steps_in(self._job.folder.parent / "checkpoints"), default=0)
        for row in self._rows()[self._logged :]:
            if not ended and (row.get("split") == "test" or row["step"] > safe_step):
                return
            self._tracker.log(scalars(row), step=row["step"])
            self._logged += 1
            self._save()

    def finish(self) -> None:
        """Close the tracker."""
        self._tracker.finish()

    def _rows(self) -> Sequence[Row]:
        with suppress(FileNotFoundError), os.fdopen(open_regular(self._job.folder.parent / METRICS_FILE), "rb") as file:
            text = file.read()
            return parse_lines(text[: text.rfind(b"\n") + 1], ROW).records
        return []

    def _save(self) -> None:
        write_atomically(self._state_file, json.dumps({"rows": self._logged, "run": self._run}) + "\n")


def opened(job: TrackerJob, run: str | None) -> Any:
    """Return Accelerate's tracker, started. `run` is the tracker's own name of this run; None for a new one."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)
    name = job.folder.parent.name
    tracker_class = LOGGER_TYPE_TO_CLASS[job.tracker]
    folder = [str(job.folder)] if tracker_class.requires_logging_directory else []
    title = name if job.tracker == "aim" else job.project  # Accelerate has it name Aim's run, the others' project
    tracker = tracker_class(title, *folder, **arguments(job, run))
    tracker.start()
    return tracker


def arguments(job: TrackerJob, run: str | None) -> dict[str, Any]:
    """Return what Accelerate's tracker is to pass on to its library: the run's name, and the run to go on with."""
    again, name = run is not None, job.folder.parent.name
    known: dict[str, dict[str, Any]] = {
        "mlflow": {"run_name": name} | ({"run_id": run} if again else {}),
        "trackio": {"name": name, "resume": "allow"},
        "aim": {"experiment": job.project} | ({"run_hash": run} if again else {}),
        "comet_ml": {"experiment_key": run} if again else {},
        "clearml": {"task_name": name} | ({"continue_last_task": run} if again else {}),
        "dvclive": {"resume": True} if again else {},
        "swanlab": {"experiment_name": name} | ({"id": run, "resume": "allow"} if again else {}),
    }
    return known.get(job.tracker, {})


def run_name_of(tracker: str, opened_tracker: Any) -> str | None:
    """Return the tracker's own name of a run, by which it goes on; None where it has none that is needed."""
    try:
        inner = opened_tracker.tracker
        found = {
            "mlflow": lambda: inner.info.run_id,
            "aim": lambda: inner.hash,
            "comet_ml": lambda: inner.get_key(),
            "clearml": lambda: inner.id,
            "swanlab": lambda: inner.id,
        }[tracker]()
    except (KeyError, AttributeError):
        return None
    return None if found is None else str(found)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with plain values: what is no number or truth value becomes text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def main() -> int:
    """Follow one training to its end; return the exit code."""
    training = os.getppid()
    threading.Thread(target=_end_soon_after, args=[training], daemon=True).start()
    job = TrackerJob(**json.loads(read_line()))
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    try:
        _require_own_folder(job.folder)
        redirect_output(job.folder / f"{job.tracker}.log")
        with acquire(job.folder / f"{job.tracker}.lock", seconds=PREDECESSOR_SECONDS):
            follower = Follower(job)
            while (word := _word(training)) is None:
                follower.follow()
            follower.follow(ended=word == "finish" and _is_over(job))
            follower.finish()
    except ModuleNotFoundError as error:
        said.write(f"the package is not installed (`pip install {INSTALL.get(job.tracker, error.name)}`)")
    except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises
        said.write(" ".join(f"{type(error).__name__}: {error}".split()))
    else:
        return 0
    said.flush()
    return 1


def _require_own_folder(folder: Path) -> None:
    """Make the folder of the run's trackers. Raises UserError where it, or a file in it, leads to another place."""
    folder.mkdir(exist_ok=True)
    for path in (folder, *folder.iterdir()):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise UserError(f"{path} is a link or no plain file, must be of the run itself: remove it")


def _is_over(job: TrackerJob) -> bool:
    """Return True if the run is complete: what was stopped goes on from a checkpoint, and so do its rows."""
    return read_json(job.folder.parent / "summary.json").get("status") == "completed"


def _end_soon_after(training: int) -> None:
    """Leave no process behind a training that was killed, whatever the tracker waits for."""
    while os.getppid() == training:
        time.sleep(POLL_SECONDS)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _word(training: int) -> str | None:
    """Return what the training process sends: `finish`, nothing ("") once it is gone, or None after some time."""
    if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        return read_line()
    return None if os.getppid() == training else ""


if __name__ == "__main__":
    code = main()
    os._exit(code)  # past what the library does on its way out
