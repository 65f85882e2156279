"""Train in a single process that is watched from outside: it is forked from this one, before torch is imported."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from launch.local.console import last_lines
from launch.local.outcome.ending import Ending, ended_for_others, ending_of_rank, record_failure
from launch.local.outcome.failure import RankFailure
from launch.local.ranks.processes import FrozenProcesses, end_with_parent
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_INTERRUPTED
from trainlib.runs.attempt.step_file import STEP_FILES
from trainlib.runs.attempt.stop_request import STOP_SIGNALS, ignore_stop_signals
from trainlib.runs.files.scratch import make_scratch
from trainlib.runs.records import failure_record
from trainlib.runs.terminal.streams import leave

_POLL_SECONDS = 0.05


def can_fork() -> bool:
    """Return True if this process can be forked: not with torch, whose threads a fork would lose."""
    return hasattr(os, "fork") and "torch" not in sys.modules


def supervise_one(
    train: Callable[[dict[str, str]], int],
    directory: Path,
    stop: StopRequest,
    hang_seconds: float | None,
    on_poll: Callable[[], bool | None] = lambda: None,
) -> Ending:
    """Call `train` in a new process, which does not return from here, and wait for that process to end.

    train          trains into `directory` and returns an exit code, or replaces the process by one that does; gets
                   variables of the environment
    hang_seconds   for which it may be frozen; None: for ever
    on_poll        called often; where it returns True, the process is killed

    The process has a session of its own, so that a Ctrl-C in the terminal does not reach it twice: it gets the signals
    that come to this one.
    """
    scratch = make_scratch(in_memory=False)
    folder = scratch.path if scratch else None
    try:
        stop.new_start()
        pid = _fork(stop)
        if pid == 0:
            code = train({STEP_FILES: str(folder or "")})
            ignore_stop_signals()  # while the interpreter ends, they would change the exit code
            leave(code, at_once=code == EXIT_INTERRUPTED)
        ending = _wait(pid, directory, stop, hang_seconds, on_poll)
        return ending.after(folder, begun=stop.run_has_begun())
    finally:
        stop.child = None
        if scratch is not None:
            scratch.remove()


def _fork(stop: StopRequest) -> int:
    """Fork; return 0 in the child, where signals are handled as before `stop`, and the child's number in the parent."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # none is handled by the wrong one of the two
    try:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            stop.put_back_handlers()
            end_with_parent(parent)
        else:
            stop.child = pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _wait(
    pid: int, directory: Path, stop: StopRequest, hang_seconds: float | None, on_poll: Callable[[], bool | None]
) -> Ending:
    """Wait for the process to end; kill it where it is frozen for too long."""
    frozen = FrozenProcesses(pid, hang_seconds)
    cleared = False
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if not cleared and stop.run_has_begun():
            failure_record.clear(directory, 0)
            cleared = True
        frozen.look()
        if on_poll():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return ended_for_others()
        time.sleep(_POLL_SECONDS)
    code = os.waitstatus_to_exitcode(ended[1])
    if code == 0:
        return Ending(0)
    failure, log = RankFailure(0, code, pid), directory / "logs" / "rank-0.log"
    ending = ending_of_rank(
        failure, log if stop.run_has_begun() else None, [], is_frozen=pid in frozen.killed, is_alone=True
    )
    if ending.fault is not None and stop.run_has_begun():
        with suppress(OSError):
            record_failure(failure, directory, 0, log, last_lines(log))
    return ending
