"""The training's side of a mirror: brings the run back before a start, and starts and ends what copies it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from trainlib.errors import EXIT_OK, EXIT_USER_ERROR, RunDirectoryError
from trainlib.platform.isolation import child_variables
from trainlib.runs.directory import RunDirectory
from trainlib.runs.mirror.program import MirrorTask
from trainlib.runs.mirror.store import require_usable

logger = logging.getLogger("trainlib.runs")

PROGRAM = "trainlib.runs.mirror.program"
CLOSING_SECONDS = 300.0  # for what is still to be copied when the training has ended as it should
FAILED_SECONDS = 5.0  # the same after an error: others wait for the exit code
_END_SECONDS = 5.0  # for a process that is killed to be gone


def restore_from_mirror(address: str | None, run: Path, *, fresh: bool) -> None:
    """Bring a run back from its mirror where its directory has no checkpoint; otherwise see that the two fit together.

    fresh   the run begins again: what is at the mirror is moved aside there
    Raises UserError where nothing can be copied to such an address, and RunDirectoryError where another machine trains
    into the mirror or the two went different ways. A mirror that does not answer is a warning.
    """
    if address is None:
        return
    require_usable(address, run)
    process = _start("restore", MirrorTask(str(run.absolute()), address, fresh=fresh))
    assert process.stdin is not None
    process.stdin.close()
    error = "its process has died"
    for level, text in _told(process.stdout):
        if level == "error":
            error = text
        else:
            logger.log(logging.getLevelNamesMapping()[level.upper()], "mirror: %s", text)
    code = process.wait()
    if code == EXIT_USER_ERROR:
        raise RunDirectoryError(error)
    if code != EXIT_OK:
        begins = "" if any((run / "checkpoints").glob("step-*")) else " from the beginning"
        logger.warning(
            "mirror: %s cannot be reached (%s); training goes on%s, and nothing there is lost", address, error, begins
        )


@contextmanager
def mirrored(address: str | None, run: RunDirectory, from_step: int) -> Iterator[None]:
    """Context manager: copy the run to its mirror from when training begins until the block ends, and then the rest.

    address   None: nothing is copied
    """
    if address is None:
        yield
        return
    mirror = MirrorProcess(address, run, from_step)
    run.on_begin = mirror.start
    try:
        yield
    except BaseException:
        mirror.close(FAILED_SECONDS)
        raise
    mirror.close(CLOSING_SECONDS)


class MirrorProcess:
    """The process that copies a run to its mirror. Nothing that happens to it ends the training."""

    def __init__(self, address: str, run: RunDirectory, from_step: int):
        self._address, self._run, self._from_step = address, run, from_step
        self._process: subprocess.Popen[bytes] | None = None
        self._is_given_up = False

    def start(self) -> None:
        """Begin to copy."""
        assert self._run.owner is not None
        job = MirrorTask(str(self._run.path.absolute()), self._address, self._from_step, owner=asdict(self._run.owner))
        self._process = _start("follow", job)
        self._relay = threading.Thread(target=self._pass_on, args=[self._process], name="mirror", daemon=True)
        self._relay.start()

    def close(self, seconds: float) -> None:
        """Have the rest copied, and wait for that, but not for longer than so many seconds."""
        if self._process is None:
            return
        self._tell(f"finish {seconds}")
        self._relay.join(seconds)
        if self._relay.is_alive():
            logger.warning(
                "mirror: within %.0f s not everything was copied to %s; all of it is in %s",
                *(seconds, self._address, self._run.path),
            )
            self._is_given_up = True
            self._process.kill()
            self._relay.join(_END_SECONDS)

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        for level, text in _told(process.stdout):
            logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
        if process.wait() != 0 and not self._is_given_up:
            logger.warning("mirror: its process has died; training goes on, and nothing more is copied")

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died, which its exit code says
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()


def _start(verb: str, job: MirrorTask) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM, verb],
        env=os.environ | child_variables(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the training, which then has the rest copied
    )
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        process.stdin.flush()
    return process


def _told(stream: IO[bytes] | None) -> Iterator[tuple[str, str]]:
    assert stream is not None
    for line in stream:
        level, text = json.loads(line)
        yield level, text
