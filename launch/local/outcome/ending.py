"""How one start of a run has ended: its exit code, what to tell of it, and whether the machine was at fault."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from launch.local.console import TAIL_LINES, last_lines
from launch.local.outcome.failure import (
    AgentReport,
    RankFailure,
    describe,
    find_failed_rank,
    judge_aborted,
    killed_by,
    port_is_taken,
)
from trainlib.errors import EXIT_CONNECTION_LOST, EXIT_PORT_TAKEN, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs.attempt.record import was_stopped
from trainlib.runs.attempt.step_file import Steps, read_step_files, read_wrong_device
from trainlib.runs.records import failure_record
from trainlib.runs.records.failure_record import FailureRecord
from trainlib.runs.records.reasons import EndCode, machine_fault

_FAULTS = {
    EndCode.HANG: "finished no step for too long (train.hang_seconds)",
    EndCode.DEVICE_LOST: "lost its device",
    EndCode.CONNECTION_LOST: "lost the connection to another rank",
    EndCode.RANKS_DIFFER: "found that ranks hold other bits, though all computed the same",
    EndCode.WRONG_DEVICE: "found that a device computes wrongly (train.audit)",
}


@dataclass(frozen=True)
class Ending:
    """How one start of a run has ended.

    code    exit code, for a launcher that does not start the run again
    words   what to tell then; empty where all was told already
    fault   the fault of the machine that ended it; None where another start would not help
    what    who failed and how, without a place: `rank 1 was killed by SIGKILL`; only with `fault`
    place   host and log of that
    rank    that failed; None where it was none of them
    steps   how far that rank had come, or the one that came furthest; None where none had begun to train
    begun   whether the attempt had begun
    wrong   the device that computed wrongly: the UUID of a GPU, empty for another device; None where none is known
    wrong_rank   the rank on it
    """

    code: int
    words: str = ""
    fault: EndCode | None = None
    what: str = ""
    place: str = ""
    rank: int | None = None
    steps: Steps | None = None
    begun: bool = False
    wrong: str | None = None
    wrong_rank: int | None = None

    def after(self, folder: Path | None, *, begun: bool) -> Ending:
        """Return the same, with what the ranks have written into the launcher's temporary folder."""
        steps = read_step_files(folder)
        of_rank = None if self.rank is None else steps.get(self.rank)
        furthest = max(steps.values(), key=lambda found: found.finished, default=None)
        rank, wrong = read_wrong_device(folder)
        return replace(self, steps=of_rank or furthest, begun=begun, wrong=wrong, wrong_rank=rank)


def ending_of_ranks(
    report: AgentReport, agent_code: int, directory: Path, node_rank: int, logs: Path | None, frozen: Collection[int]
) -> Ending:
    """Return how the ranks of an agent ended by themselves, and record which of them failed.

    logs     where the ranks have printed: the run's own logs if this attempt at the run has begun
    frozen   processes that were killed because they were frozen
    """
    if agent_code == 0:
        return Ending(0)
    if report.error:
        return Ending(agent_code, f"error: {report.error}")
    failure = find_failed_rank(report.failures, report.closing, frozen)
    if failure is None:
        return _without_rank(report.log, directory, agent_code)
    begun = logs == directory / "logs"
    log = logs / f"rank-{failure.rank}.log" if logs else None
    tail = last_lines(log) if log else []
    failure = judge_aborted(failure, tail)
    if begun and log and failure.shell_code != EXIT_STOPPED:
        record_failure(failure, directory, node_rank, log, tail)
    return ending_of_rank(failure, log if begun else None, tail, is_frozen=failure.pid in frozen)


def ending_of_rank(
    failure: RankFailure, log: Path | None, tail: Sequence[str], *, is_frozen: bool = False, is_alone: bool = False
) -> Ending:
    """Return the ending that a failed rank has brought about.

    log        of that rank, in the run directory; None where the attempt had not begun
    tail       the last lines that the rank has printed
    is_alone   it is the only process, and on the console is all that it had to say
    """
    fault = EndCode.HANG if is_frozen else machine_fault(failure.exit_code)
    told_by_rank_0 = failure.shell_code == EXIT_STOPPED or (failure.shell_code == EXIT_USER_ERROR and not failure.rank)
    frozen = "was frozen for too long, as by SIGSTOP (train.hang_seconds)" if is_frozen else None
    words = ""
    if not (told_by_rank_0 or (is_alone and fault is None)):
        # What rank 0 said is on the console already.
        words = f"error: {describe(failure, host(), log, tail if failure.rank else [], frozen)}"
    if fault is None:
        return Ending(failure.shell_code, words, rank=failure.rank)
    how = frozen or _FAULTS.get(fault) or f"was {killed_by(-failure.exit_code)}"
    what = f"rank {failure.rank} {how}"
    place = f"host {host()}" + (f", log {log}" if log else "")
    return Ending(failure.shell_code, words, fault, what, place, failure.rank)


def ended_for_others() -> Ending:
    """Return the ending of ranks that their launcher killed, as they waited for ranks of a machine that is gone."""
    return Ending(EXIT_CONNECTION_LOST, "", EndCode.CONNECTION_LOST, "ranks lost others, on a machine that is gone")


def record_failure(failure: RankFailure, directory: Path, node_rank: int, log: Path, tail: Sequence[str]) -> None:
    """Write to the run directory which rank failed on this machine, and the last line of its log."""
    record = FailureRecord(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        rank=failure.rank,
        host=host(),
        exit_code=failure.shell_code,
        signal=signal.Signals(-failure.exit_code).name if failure.exit_code < 0 else None,
        log=str(log),
        error=next((line for line in reversed(tail) if line.strip()), ""),
    )
    failure_record.save(directory, node_rank, record)


def _without_rank(agent_log: Sequence[str], directory: Path, agent_code: int) -> Ending:
    """Return the ending where the agent ended although it named no rank that failed."""
    if agent_code > 0 and was_stopped(directory):  # the agent was asked to end itself
        return Ending(EXIT_STOPPED)
    if agent_code < 0:
        what = f"accelerate launch was {killed_by(-agent_code)}"
        words = f"error: {what}; run the same command to continue from the last checkpoint"
        return Ending(128 - agent_code, words, machine_fault(agent_code), what, f"host {host()}")
    if port_is_taken("".join(agent_log)):
        return Ending(
            EXIT_PORT_TAKEN,
            "error: another program listens at the port of --head: give another port, on all machines",
        )
    # The ranks did not come to run, or something ended Accelerate itself.
    end_of_log = "".join(agent_log).splitlines()[-TAIL_LINES:]
    return Ending(agent_code, "\n".join([*end_of_log, f"error: accelerate launch ended with exit code {agent_code}"]))


def host() -> str:
    """Return the name of this machine, as SLURM calls it where there is one."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
