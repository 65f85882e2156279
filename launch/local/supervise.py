"""Runs several ranks as a child process: passes signals on, shows what the ranks say, and tells how they ended."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psutil

from launch.local.command import STOP_SECONDS, Command
from launch.local.failure import (
    RankFailure,
    StderrFilter,
    closing_pid,
    describe,
    find_failure,
    killed_by,
    port_is_taken,
)
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_INTERRUPTED, EXIT_PORT_TAKEN, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs import failure_record
from trainlib.runs.attempts import was_stopped
from trainlib.runs.failure_record import FailureRecord
from trainlib.runs.stop_request import STOP_SIGNALS

_POLL_SECONDS = 0.1
_CLOSING_SECONDS = 6.0  # for ranks to end, once another one failed
_REFUSED_SECONDS = 3.0  # the same before the run has begun, when there is nothing that they could still save
_LOG_TAIL_LINES = 15
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_ranks(command: Command, directory: Path, node_rank: int = 0) -> int:
    """Run the command, which trains into `directory`; the exit code is that of the rank that ended it.

    The ranks are in sessions of their own, so a Ctrl-C in the terminal reaches only this process. It asks the run to
    stop through the STOP file, which the ranks agree on; a second one kills them all. Signals to the agent are not
    heeded, as it would give the ranks a few seconds only: SLURM sends them to every process of a job.
    """
    stop = StopRequest(directory)
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # ranks whose agent is killed become children of this process
    cleared = False
    with stop.catching_signals():
        child = subprocess.Popen(
            command.words,
            env=command.variables(os.environ) | {"PET_SIGNALS_TO_HANDLE": "SIGHUP"},  # torchrun's --signals-to-handle
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_prepare_agent,
        )
        assert child.stderr is not None
        # newline="": a progress bar ends its lines in \r, which must reach the terminal at once and as they are
        stderr = _StderrRelay(io.TextIOWrapper(child.stderr, encoding="utf-8", errors="replace", newline=""))
        while child.poll() is None and not stop.now:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
            if stop.run_has_started():
                if not cleared:
                    failure_record.clear(directory, node_rank)
                    cleared = True
                stop.deliver()
                stderr.write_log(directory / "logs" / "launcher.log")
            _kill_ranks(child, stderr.overdue_pids(_CLOSING_SECONDS if stop.run_has_started() else _REFUSED_SECONDS))
        if stop.now:
            _kill_tree(child)
        elif child.returncode < 0:
            _end_orphans()
        stderr.finish()
        stop.withdraw()
    if stop.run_has_started():
        stderr.write_log(directory / "logs" / "launcher.log")
    if stop.now:
        print("killed: the run continues from its last checkpoint when it is started again", file=sys.stderr)
        return EXIT_INTERRUPTED
    if child.returncode == 0:
        return 0
    failure = find_failure(stderr.text)
    if failure is not None:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # which the agent may know as localhost
        failure = replace(failure, host=host)
        if stop.run_has_started() and failure.shell_code != EXIT_STOPPED:
            _record_failure(failure, directory, node_rank)
    return _report_failure(failure, stderr.text, directory, child.returncode)


def _record_failure(failure: RankFailure, directory: Path, node_rank: int) -> None:
    """Leave in the run directory which rank failed here, and its last word."""
    log = _log_of(failure, directory)
    record = FailureRecord(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        rank=failure.rank,
        host=failure.host,
        exit_code=failure.shell_code,
        signal=signal.Signals(-failure.exit_code).name if failure.exit_code < 0 else None,
        log=str(log),
        error=next((line for line in reversed(_last_lines(log)) if line.strip()), ""),
    )
    failure_record.save(directory, node_rank, record)


def _log_of(failure: RankFailure, directory: Path) -> Path:
    return directory / "logs" / f"rank-{failure.rank}.log"


def _report_failure(failure: RankFailure | None, stderr_text: str, directory: Path, launcher_code: int) -> int:
    """Say which rank failed, where rank 0 has not said so itself; return the exit code to end with."""
    if failure is None and launcher_code > 0 and was_stopped(directory):  # the agent was asked to end itself
        return EXIT_STOPPED
    if failure is None and launcher_code < 0:
        ended = f"accelerate launch was {killed_by(-launcher_code)}"
        print(f"error: {ended}; run the same command to continue from the last checkpoint", file=sys.stderr)
        return 128 - launcher_code
    if failure is None and port_is_taken(stderr_text):
        print(
            "error: another program listens at the port of --head: give another port, on all machines", file=sys.stderr
        )
        return EXIT_PORT_TAKEN
    if failure is None:  # the ranks did not come to run, or something ended Accelerate itself
        last_lines = "\n".join(stderr_text.splitlines()[-_LOG_TAIL_LINES:])
        print(f"{last_lines}\nerror: accelerate launch ended with exit code {launcher_code}", file=sys.stderr)
        return launcher_code
    told_by_rank_0 = failure.shell_code == EXIT_STOPPED or (failure.shell_code == EXIT_USER_ERROR and not failure.rank)
    if not told_by_rank_0:
        log = _log_of(failure, directory)
        # What rank 0 said is on the console already.
        tail = _last_lines(log) if failure.rank else []
        print(f"error: {describe(failure, log, tail)}", file=sys.stderr)
    return failure.shell_code


class _StderrRelay:
    """Reads the child's standard error on a thread: the ranks' own lines are shown at once, all of it is kept."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._written = 0
        self._closing: dict[int, float] = {}  # pid: when the agent asked it to end
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def finish(self) -> None:
        """Wait for the last lines; not for long, as a process that outlives the ranks may hold the pipe."""
        self._thread.join(timeout=5)

    def overdue_pids(self, seconds: float) -> list[int]:
        """The ranks that had this long to end, after another one failed.

        A rank that waits for the others, or is stopped, does not see the agent's SIGTERM, and the agent waits 30 s.
        """
        now = time.monotonic()
        return [pid for pid, asked in list(self._closing.items()) if now - asked > seconds]

    def write_log(self, path: Path) -> None:
        """Append what has come since the last call to the file; a log that cannot be written is not worth an error."""
        new = self._lines[self._written :]
        if not new:
            return
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(new)
        self._written += len(new)

    def _read(self) -> None:
        stderr_filter = StderrFilter()
        for line in self._stream:
            self._lines.append(line)
            if (pid := closing_pid(line)) is not None:
                self._closing[pid] = time.monotonic()
            self._show(stderr_filter.feed(line))
        self._show(stderr_filter.close())

    def _show(self, lines: list[str]) -> None:
        if lines:
            with suppress(OSError):  # reading must go on where the terminal is gone, or the ranks would block
                sys.stderr.write("".join(lines))
                sys.stderr.flush()


def _prepare_agent() -> None:
    """In the child: heed no signal but the one that the kernel sends when the launcher dies, however it does.

    The agent passes that on to its ranks, wherever they are in starting or training, and kills those that do not stop.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.SIG_IGN)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_orphans() -> None:
    """End the ranks whose agent was killed as it would have done: ask, wait for their checkpoint, kill."""
    ranks = psutil.Process().children()
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()
    _, deaf = psutil.wait_procs(ranks, timeout=STOP_SECONDS)
    _kill(deaf)


def _kill_tree(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all below it; each rank is in a session of its own, so no process group holds them all."""
    ranks = _descendants(child)
    child.kill()
    _kill(ranks)
    child.wait()


def _kill_ranks(child: subprocess.Popen[bytes], pids: Collection[int]) -> None:
    """Kill these processes, as far as they are still ranks of ours."""
    if pids:
        _kill([rank for rank in _descendants(child) if rank.pid in pids])


def _descendants(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # psutil knows a number that another process has taken over
            process.kill()


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=_LOG_TAIL_LINES)]
    except OSError:
        return []
