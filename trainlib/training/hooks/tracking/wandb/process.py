"""The training's side of W&B: starts the process that follows the run, passes on its warning, and ends it in time."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import util
from pathlib import Path
from typing import IO, Any, Literal

from trainlib.config import WandbConfig
from trainlib.platform.isolation import child_variables
from trainlib.runs.records.rows import Row
from trainlib.training.hooks.tracking.wandb.foreign import own_environment
from trainlib.training.hooks.tracking.wandb.temporary import TemporaryFolder

logger = logging.getLogger("trainlib.training.hooks.tracking")

PROGRAM = "trainlib.training.hooks.tracking.wandb.follower"
CLOSING_SECONDS = 15.0  # for what is left to be written or uploaded when the training is over
ARTIFACT_SECONDS = 300.0  # more of them, for a checkpoint that goes to a server

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class WandbJob:
    """What is to be tracked, and how.

    directory   of the run
    pid         of the process that trains: its memory and load are what W&B's system metrics show
    config      the resolved configuration, and the environment, as plain values
    """

    directory: str
    name: str
    mode: Mode
    project: str
    group: str | None
    entity: str | None
    artifacts: bool
    pid: int
    config: Mapping[str, Any]

    @classmethod
    def of(cls, run: Path, config: WandbConfig, values: Mapping[str, Any]) -> WandbJob:
        """Return the job that follows the training of this process."""
        mode = effective_mode(config.mode, os.environ)
        own = config.model_dump(exclude={"mode"})
        return cls(directory=str(run.absolute()), name=run.name, mode=mode, pid=os.getpid(), config=values, **own)


def effective_mode(mode: Mode, environ: Mapping[str, str]) -> Mode:
    """Return the configured mode, or a stricter one that W&B's own variables ask for."""
    asked = environ.get("WANDB_MODE", "").lower()
    if mode == "disabled" or asked == "disabled" or environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    return "offline" if asked in ("offline", "dryrun") else mode


class WandbProcess:
    """Shows a run to W&B from a process beside the training, which reads the rows in metrics.jsonl.

    Nothing that W&B does, waits for or breaks touches the training: it starts a process, and waits for it at the end,
    for CLOSING_SECONDS at most. Where W&B stops working, it warns once, and another process tracks the rest offline.
    """

    def __init__(self, job: WandbJob):
        self._job = job
        self._closing = self._given_up = self._warned = False
        self._lock = threading.Lock()
        if util.find_spec("wandb") is None:
            logger.warning("W&B: the package is not installed (`pip install wandb`); training goes on without it")
            self._supervisor = None
            return
        self._temporary = TemporaryFolder()
        self._process = _start(job, self._temporary)
        self._supervisor = threading.Thread(target=self._supervise, name="W&B", daemon=True)
        self._supervisor.start()

    def log(self, row: Row) -> None:
        """Nothing: the row is in metrics.jsonl."""

    def flush(self) -> None:
        """Nothing: the row is in metrics.jsonl."""

    def close(self) -> None:
        """Tell the follower that training has ended, and wait for it, for a limited time."""
        if self._supervisor is None:
            return
        online = self._job.mode == "online"
        deadline = time.monotonic() + CLOSING_SECONDS + (ARTIFACT_SECONDS if online and self._job.artifacts else 0.0)
        with self._lock:
            self._closing = True
            _tell_to_finish(self._process)
        self._supervisor.join(deadline - time.monotonic())
        if self._supervisor.is_alive():
            self._warn(f"not everything was written or uploaded within {CLOSING_SECONDS:.0f} s")
            with self._lock:
                self._given_up = True
                _kill(self._process)
        self._temporary.remove()

    def _supervise(self) -> None:
        """Pass on what the process warns of. When W&B is lost, begin another one, offline."""
        if self._relay() == 0:
            return
        with self._lock:
            if self._given_up:
                return
            self._process = _start(replace(self._job, mode="offline"), self._temporary)
            if self._closing:
                _tell_to_finish(self._process)
        if self._relay() != 0:
            logger.info("W&B: nothing more of this attempt is tracked; all of its rows are in metrics.jsonl")

    def _relay(self) -> int:
        """Until the process ends; its exit code."""
        process = self._process
        for line in _lines(process.stdout):
            self._warn(line)
        code = process.wait()
        if code:
            self._warn("its process has died")
        return code

    def _warn(self, problem: str) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(
            level,
            "W&B: %s; training goes on; `launch wandb-sync %s` uploads what was tracked, if anything was",
            *(problem, self._job.name),
        )


def _start(job: WandbJob, temporary: TemporaryFolder) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM],
        env=own_environment(os.environ) | child_variables(os.environ) | {"TMPDIR": str(temporary.path)},
        pass_fds=[temporary.lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the training, which then tells this process to finish
    )
    _write(process, json.dumps(asdict(job)))
    return process


def _tell_to_finish(process: subprocess.Popen[bytes]) -> None:
    _write(process, "finish")


def _write(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it has died, which its exit code says
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def _lines(stream: IO[bytes] | None) -> Iterator[str]:
    assert stream is not None
    return (line.decode(errors="replace").strip() for line in stream)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started, which is in the process's own session."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
