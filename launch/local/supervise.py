"""Run a training of several ranks as a child process: pass signals on, show what ranks print, tell how they ended."""

from __future__ import annotations

import ctypes
import io
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psutil

from launch.local.agent import Agent
from launch.local.command import STOP_SECONDS, Command
from launch.local.failure import RankFailure, describe, find_cause, judge_aborted, killed_by, port_is_taken
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_INTERRUPTED, EXIT_PORT_TAKEN, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.regular_files import open_regular, read_tail
from trainlib.runs.attempt.record import was_stopped
from trainlib.runs.attempt.stop_request import STOP_SIGNALS
from trainlib.runs.files.scratch import make_scratch
from trainlib.runs.machine import launch_variables
from trainlib.runs.records import failure_record
from trainlib.runs.records.failure_record import FailureRecord

_POLL_SECONDS = 0.1
_CLOSING_SECONDS = 6.0  # for ranks to end, once another one failed
_REFUSED_SECONDS = 3.0  # the same before the run has begun, when there is nothing that they could still save
_LOG_TAIL_LINES, _LOG_TAIL_BYTES = 15, 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_ranks(command: Command, directory: Path, node_rank: int = 0) -> int:
    """Run the command, which trains into `directory`, and return the exit code of the rank that ended the run.

    The ranks are in sessions of their own, so a Ctrl-C in the terminal reaches only this process. It asks the run to
    stop through the STOP file, which the ranks agree on; a second Ctrl-C kills them all. The agent, the parent of the
    ranks, ignores signals, as it would give the ranks a few seconds only: SLURM sends them to every process of a job.
    """
    scratch = make_scratch(in_memory=False)
    try:
        return _run_ranks(command, directory, node_rank, scratch.path if scratch else None)
    finally:
        if scratch is not None:
            scratch.remove()


def _run_ranks(command: Command, directory: Path, node_rank: int, start_logs: Path | None) -> int:
    """Run the command as `run_ranks` does; `start_logs` is a folder for what ranks print before the attempt begins."""
    stop = StopRequest(directory)
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # ranks whose agent is killed become children of this process
    log = directory / "logs" / "launcher.log"
    cleared = False
    with stop.catching_signals():
        agent = Agent(
            command,
            environment={
                "PET_SIGNALS_TO_HANDLE": "SIGHUP",  # torchrun's --signals-to-handle
                launch_variables.START_LOGS: str(start_logs or ""),
                launch_variables.EARLIER_STOP_FILE: stop.earlier,
                "TRAINLAUNCH_RUN_DIRECTORY": str(directory),  # whose secret several machines must know
            },
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_prepare_agent,
        )
        child = agent.process
        assert child.stderr is not None
        # newline="": a progress bar ends its lines in \r, which must reach the terminal at once and as they are
        stderr = _StderrRelay(io.TextIOWrapper(child.stderr, encoding="utf-8", errors="replace", newline=""))
        running, given_up = True, False
        while running and not stop.now and not given_up:
            running = agent.wait(_POLL_SECONDS) is None
            given_up = running and stop.asked and agent.report.waiting
            stop.deliver()
            if stop.run_has_begun():
                if not cleared:
                    failure_record.clear(directory, node_rank)
                    cleared = True
                _append(log, stderr.take_lines())
            _kill_ranks(child, agent.overdue_ranks(_CLOSING_SECONDS if stop.run_has_begun() else _REFUSED_SECONDS))
        if stop.now or given_up:
            _kill_tree(child)
        elif child.returncode < 0:
            _end_orphans()
        stderr.finish()
        agent.wait(0)
        stop.withdraw()
    if stop.run_has_begun():
        _append(log, [*stderr.take_lines(), *agent.report.log])
    if given_up:
        print("stopped while waiting for other machines, before training began; run it again", file=sys.stderr)
        return EXIT_STOPPED
    if stop.now:
        print("killed: the run continues from its last checkpoint when it is started again", file=sys.stderr)
        return EXIT_INTERRUPTED
    return _report(agent, directory, node_rank, directory / "logs" if stop.run_has_begun() else start_logs)


def _report(agent: Agent, directory: Path, node_rank: int, logs: Path | None) -> int:
    """Tell and record how the ranks ended by themselves; return the exit code to end with.

    logs   where the ranks have printed: the run's own logs if this attempt at the run has begun
    """
    child = agent.process
    if child.returncode == 0:
        return 0
    if agent.report.error:
        print(f"error: {agent.report.error}", file=sys.stderr)
        return child.returncode
    failure = find_cause(agent.report.failures, agent.report.closing)
    if failure is None:
        return _report_no_rank(agent.report.log, directory, child.returncode)
    tail = _last_lines(_log_of(failure, logs)) if logs else []
    failure = judge_aborted(failure, tail)
    begun = logs == directory / "logs"
    if begun and failure.shell_code != EXIT_STOPPED:
        _record_failure(failure, directory, node_rank, tail)
    return _report_rank(failure, _log_of(failure, logs) if begun and logs else None, tail)


def _record_failure(failure: RankFailure, directory: Path, node_rank: int, tail: Sequence[str]) -> None:
    """Write to the run directory which rank failed on this machine, and the last line of its log."""
    record = FailureRecord(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        rank=failure.rank,
        host=_host(),
        exit_code=failure.shell_code,
        signal=signal.Signals(-failure.exit_code).name if failure.exit_code < 0 else None,
        log=str(_log_of(failure, directory / "logs")),
        error=next((line for line in reversed(tail) if line.strip()), ""),
    )
    failure_record.save(directory, node_rank, record)


def _log_of(failure: RankFailure, logs: Path) -> Path:
    return logs / f"rank-{failure.rank}.log"


def _report_rank(failure: RankFailure, log: Path | None, tail: Sequence[str]) -> int:
    """Print which rank failed, where rank 0 has not said so itself; return the exit code to end with.

    log    of that rank, in the run directory; None where the attempt had not begun
    tail   the last lines that the rank has printed
    """
    told_by_rank_0 = failure.shell_code == EXIT_STOPPED or (failure.shell_code == EXIT_USER_ERROR and not failure.rank)
    if not told_by_rank_0:
        # What rank 0 said is on the console already.
        print(f"error: {describe(failure, _host(), log, tail if failure.rank else [])}", file=sys.stderr)
    return failure.shell_code


def _report_no_rank(agent_log: Sequence[str], directory: Path, agent_code: int) -> int:
    """Print why the agent ended although it named no rank that failed; return the exit code to end with."""
    if agent_code > 0 and was_stopped(directory):  # the agent was asked to end itself
        return EXIT_STOPPED
    if agent_code < 0:
        ended = f"accelerate launch was {killed_by(-agent_code)}"
        print(f"error: {ended}; run the same command to continue from the last checkpoint", file=sys.stderr)
        return 128 - agent_code
    if port_is_taken("".join(agent_log)):
        print(
            "error: another program listens at the port of --head: give another port, on all machines", file=sys.stderr
        )
        return EXIT_PORT_TAKEN
    # The ranks did not come to run, or something ended Accelerate itself.
    last_lines = "".join(agent_log).splitlines()[-_LOG_TAIL_LINES:]
    print("\n".join([*last_lines, f"error: accelerate launch ended with exit code {agent_code}"]), file=sys.stderr)
    return agent_code


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _append(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a log file; a log that cannot be written is not worth an error."""
    if lines:
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with os.fdopen(open_regular(path, flags, within=path.parents[1]), "a", encoding="utf-8") as file:
                file.writelines(lines)


class _StderrRelay:
    """Shows each line of the child's standard error at once, read on a thread, and keeps it for the log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last lines; not for long, as a process that outlives the ranks may hold the pipe."""
        self._thread.join(timeout=5)

    def take_lines(self) -> list[str]:
        """Return the lines that have come since the last call."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line)
            with suppress(OSError):  # reading must go on where the terminal is gone, or the ranks would block
                sys.stderr.write(line)
                sys.stderr.flush()


def _prepare_agent() -> None:
    """In the child: ignore every signal but the one that the kernel sends when the launcher dies, however it does.

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
        content, _ = read_tail(path, _LOG_TAIL_BYTES, within=path.parents[1])
    except OSError:
        return []
    return content.decode("utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
