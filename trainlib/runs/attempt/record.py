"""attempts.jsonl: a line when an attempt at a run begins, and a line that says how it ended."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainlib.errors import StoppedError, TrainlaunchError, UserError, not_permitted
from trainlib.runs.attempt.logs import LogFile, attempt_header
from trainlib.runs.files.json_records import Record, append_line, read_lines, timestamp
from trainlib.runs.records.jobs import slurm_job
from trainlib.runs.records.reasons import COMPLETED, OTHER_RANK, EndCode, EndReason, code_of_end, machine_fault
from trainlib.runs.records.shapes import ATTEMPT

logger = logging.getLogger("trainlib.runs")

ATTEMPTS_FILE = "attempts.jsonl"
RESTART = "TRAINLAUNCH_RESTART"  # set by a launcher that starts a run again by itself; see `restart_of`


@dataclass
class Attempt:
    """How far an attempt came and why it ended, filled in while it goes on.

    directory   the run's
    log         of rank 0, kept in memory until the attempt begins; None where there is none
    number      which of the run's attempts this is, from 1
    reason      None until the attempt has trained to its end or was asked to stop
    """

    directory: Path
    world_size: int
    step: int
    log: LogFile | None = None
    number: int = 1
    reason: EndReason | None = None
    has_begun: bool = False

    def begin(self, number: int) -> None:
        """Record that the attempt begins: until here it may have been refused, and then leaves no trace."""
        self.number = number
        if self.log is not None:
            self.log.begin(self.directory / "logs/rank-0.log", attempt_header(self.number, os.environ))
        start = {
            "event": "start",
            "attempt": self.number,
            "time": timestamp(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": self.world_size,
            "from_step": self.step,
            "slurm_job_id": slurm_job(os.environ),
            "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT"),
            **restart_of(os.environ),
        }
        self.has_begun = True
        append_line(self.directory / ATTEMPTS_FILE, start)

    def end(self) -> None:
        """Record how the attempt ended."""
        reason = self.reason or EndReason(EndCode.ERROR)
        end = {"event": "end", "attempt": self.number, "time": timestamp(), "status": reason.code.status}
        file = self.directory / ATTEMPTS_FILE
        try:
            append_line(file, end | {"step": self.step, "code": reason.code, "reason": reason.sentence})
        except OSError as error:  # must not hide how the attempt ended
            logger.warning("%s lacks the end of attempt %d (%s)", file, self.number, error)


@contextmanager
def recorded_attempt(attempt: Attempt, is_lost: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Context manager: record how an attempt that begins in the block ends, whatever happens there.

    is_lost   asked at the end: True if the path of the run directory leads to another run by now

    An OSError, as from a full disk, becomes a TrainlaunchError; one about permissions a UserError. Of an attempt that
    does not begin, nothing is recorded.
    """
    try:
        yield
    except BaseException as error:
        if attempt.reason in (None, COMPLETED):
            attempt.reason = EndReason(_code_of(error), f"{type(error).__name__}: {error}")
        if isinstance(error, PermissionError):
            raise UserError(not_permitted(error)) from error
        if isinstance(error, OSError) and attempt.has_begun:
            raise TrainlaunchError(
                f"{error}; the run ends here, and goes on from its last checkpoint when it is started again"
            ) from error
        raise
    finally:
        if attempt.has_begun and not is_lost():
            attempt.end()


def restart_of(environ: Mapping[str, str]) -> Record:
    """Return what the start line says of a restart that the launcher made by itself; empty for any other start.

    restart   how often it has done so since the run last came further
    cause     the code of the fault of the machine that ended the start before
    reason    the same in words
    """
    with suppress(ValueError):
        found = json.loads(environ.get(RESTART, ""))
        return found if isinstance(found, dict) and ATTEMPT({"event": "start", **found}) is None else {}
    return {}


def _code_of(error: BaseException) -> EndCode:
    """Return why an attempt ended that this exception ended."""
    if isinstance(error, StoppedError):  # rank 0 raises it without having been asked itself where another rank was
        return OTHER_RANK.code
    fault = machine_fault(error.exit_code) if isinstance(error, TrainlaunchError) else None
    return fault or EndCode.ERROR


def read_attempts(directory: Path) -> list[Record]:
    """Return the start and end lines of all attempts at a run, oldest first."""
    return read_lines(directory / ATTEMPTS_FILE, fits=ATTEMPT)


def last_event(attempts: Sequence[Record], event: str) -> Record | None:
    """Return the newest line of one kind, `start` or `end`; None where there is none."""
    return next((line for line in reversed(attempts) if line.get("event") == event), None)


def last_start(directory: Path) -> Record | None:
    """Return the line with which the newest attempt at a run began."""
    return last_event(read_attempts(directory), "start")


def count_failures(attempts: Sequence[Record]) -> int:
    """Return how many attempts before the newest one were killed, or ended by a fault of the machine."""
    starts = [line.get("attempt") for line in attempts if line.get("event") == "start"]
    ends = {line.get("attempt"): code_of_end(line) for line in attempts if line.get("event") == "end"}
    codes = [ends.get(start, EndCode.KILLED) for start in starts[:-1]]
    return sum(code is not None and code.is_fault_of_machine for code in codes)


def was_stopped(directory: Path) -> bool:
    """Return True if the newest attempt at a run has ended because it was asked to, with a checkpoint."""
    attempts = read_attempts(directory)
    start, end = last_event(attempts, "start"), last_event(attempts, "end")
    return bool(start and end and start.get("attempt") == end.get("attempt") and end.get("status") == "stopped")


def has_open_attempt(directory: Path) -> bool:
    """Return True if the newest attempt at a run has no end: it goes on, or was killed."""
    return [line.get("event") for line in read_attempts(directory)[-1:]] == ["start"]
