"""The training's side of one of Accelerate's trackers: starts the process that follows the run, and ends it in time."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainlib.platform.isolation import child_variables
from trainlib.runs.records.rows import Row

logger = logging.getLogger("trainlib.training.hooks.tracking")

PROGRAM = "trainlib.training.hooks.tracking.others.follower"
CLOSING_SECONDS = 15.0  # for what is left to be logged when the training is over
_OF_A_RANK = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET|ACCELERATE)_.*")


@dataclass(frozen=True)
class TrackerJob:
    """What is to be tracked, and by which tracker.

    directory   of the run
    config      the resolved configuration, as plain values
    num_rows    of metrics.jsonl when the attempt begins: those that a resumed run makes again are not among them
    """

    tracker: str
    directory: str
    project: str
    config: Mapping[str, Any]
    num_rows: int = 0

    @property
    def folder(self) -> Path:
        """The folder of the run that keeps how far the tracker is, and what its library prints."""
        return Path(self.directory) / "trackers"


class TrackerProcess:
    """Shows a run to a tracker from a process beside the training, which reads the rows in metrics.jsonl.

    Nothing that the tracker does, waits for or breaks touches the training: it starts a process, and waits for it at
    the end, for CLOSING_SECONDS at most. Where it stops working, a warning tells so, once.
    """

    def __init__(self, job: TrackerJob):
        self._job = job
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM],
            env=_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the training, which then tells this process to finish
        )
        self._has_warned = False
        self._write(json.dumps(asdict(job)))
        self._listener = threading.Thread(target=self._listen, name=job.tracker, daemon=True)
        self._listener.start()

    def log(self, row: Row) -> None:
        """Nothing: the row is in metrics.jsonl."""

    def flush(self) -> None:
        """Nothing: the row is in metrics.jsonl."""

    def close(self) -> None:
        """Tell the process that training has ended, and wait for it, for a limited time."""
        deadline = time.monotonic() + CLOSING_SECONDS
        self._write("finish")
        self._listener.join(deadline - time.monotonic())
        if self._listener.is_alive():
            self._warn(f"not everything was logged within {CLOSING_SECONDS:.0f} s")
            with suppress(OSError):
                os.killpg(self._process.pid, 9)  # with all that the tracker's library has started

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died, which its exit code says
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        """Pass on what the process says is wrong, until it ends."""
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").strip()
        if code := self._process.wait():
            self._warn(said or f"its process ended with exit code {code}")

    def _warn(self, problem: str) -> None:
        if self._has_warned:  # of one that is ended because it is late
            return
        self._has_warned = True
        logger.warning(
            "%s: %s; training goes on without it, and all rows are in metrics.jsonl", self._job.tracker, problem
        )


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process that is no rank, and takes no GPU."""
    kept = {name: value for name, value in environ.items() if not _OF_A_RANK.fullmatch(name)}
    return kept | child_variables(environ) | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
