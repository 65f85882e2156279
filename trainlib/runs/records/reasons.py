"""Why an attempt at a run ended: a code from a closed set, for programs to decide on, and a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from signal import Signals
from typing import Any, Literal

from trainlib.errors import EXIT_CONNECTION_LOST, EXIT_DEVICE_LOST, EXIT_HANG, EXIT_RANKS_DIFFER, EXIT_WRONG_DEVICE

Status = Literal["completed", "stopped", "failed"]


class EndCode(StrEnum):
    """The codes for why an attempt ended, as attempts.jsonl holds them."""

    COMPLETED = "completed"  # it trained to the end of its configuration
    STOP_FILE = "stop_file"  # a person asked for it: `launch stop`, or a STOP file made by hand
    SIGNAL = "signal"  # a stop signal came, to rank 0 itself or through a STOP file that names the signal
    REGROUP = "regroup"  # another machine joins: it goes on at once (launch run --nodes MIN:MAX)
    OTHER_RANK = "other_rank"  # a stop signal came to another rank
    RUNG = "rung"  # it came to the step at which its start was to end: see `stop_at` in launch_variables.py
    END_TIME = "end_time"  # the time of its SLURM job was nearly over
    LAUNCHER_DIED = "launcher_died"  # the process that had started the ranks was gone
    ERROR = "error"  # an exception ended it
    KILLED = "killed"  # a signal that nobody handles ended a rank: a crash, a kill, memory that ran out
    HANG = "hang"  # a rank finished no step for train.hang_seconds, or was frozen
    DEVICE_LOST = "device_lost"  # a device did not answer, or told of a fault of its own
    CONNECTION_LOST = "connection_lost"  # another rank was gone, or the network between two
    RANKS_DIFFER = "ranks_differ"  # ranks held other bits, though all computed the same
    WRONG_DEVICE = "wrong_device"  # a device computed other bits than two others did (train.audit)

    @property
    def status(self) -> Status:
        """Return what people are told of an attempt that ended so: `completed`, `stopped` or `failed`."""
        if self is EndCode.COMPLETED:
            return "completed"
        return "failed" if self is EndCode.ERROR or self.is_fault_of_machine else "stopped"

    @property
    def is_fault_of_machine(self) -> bool:
        """Return True if another start may go well: see `machine_fault`."""
        return self in _FAULTS_OF_THE_MACHINE


_EXIT_CODES = {
    EXIT_HANG: EndCode.HANG,
    EXIT_DEVICE_LOST: EndCode.DEVICE_LOST,
    EXIT_CONNECTION_LOST: EndCode.CONNECTION_LOST,
    EXIT_RANKS_DIFFER: EndCode.RANKS_DIFFER,
    EXIT_WRONG_DEVICE: EndCode.WRONG_DEVICE,
}
_FAULTS_OF_THE_MACHINE = {EndCode.KILLED, *_EXIT_CODES.values()}
_CRASHES = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")


def machine_fault(exit_code: int) -> EndCode | None:
    """Return the fault of the machine that ended a process; None where the program or a person ended it.

    exit_code   as subprocess gives it: negative for a signal

    A fault of the machine may be gone at the next start. An exception of Python would come again, and signals such as
    SIGTERM are somebody's wish.
    """
    if exit_code < 0:
        is_crash = -exit_code in [Signals[name] for name in _CRASHES if name in Signals.__members__]
        return EndCode.KILLED if is_crash else None
    return _EXIT_CODES.get(exit_code)


@dataclass(frozen=True)
class EndReason:
    """Why an attempt ended: `code` for decisions; `sentence` for people, None where there is nothing to add."""

    code: EndCode
    sentence: str | None = None

    def __str__(self) -> str:
        return self.sentence or self.code


REGROUP = "another machine joins"  # in a STOP file
COMPLETED = EndReason(EndCode.COMPLETED)
OTHER_RANK = EndReason(EndCode.OTHER_RANK, "another rank was asked to stop")
RUNG = EndReason(EndCode.RUNG, "it came as far as it was to go for now")
END_TIME = EndReason(EndCode.END_TIME, "end time")
LAUNCHER_DIED = EndReason(EndCode.LAUNCHER_DIED, "the launcher died")


def reason_of_stop_file(text: str) -> EndReason:
    """Return why a run is to stop, from the first line of its STOP file, which says who asked; it may be empty."""
    asked_by = text.partition("\n")[0].strip()
    if asked_by == REGROUP:
        return EndReason(EndCode.REGROUP, asked_by)
    if asked_by.startswith("SIG"):  # the launcher and the batch script pass a signal on by its name
        return EndReason(EndCode.SIGNAL, asked_by)
    return EndReason(EndCode.STOP_FILE, asked_by or "STOP file")


def code_of_end(end: Mapping[str, Any]) -> EndCode | None:
    """Return the code of an end line of attempts.jsonl, or None where the line does not tell how the attempt ended.

    Versions before the codes wrote a status and a sentence; the code of such a line is derived from these two.
    """
    with suppress(ValueError):
        return EndCode(str(end.get("code")))
    status, sentence = end.get("status"), str(end.get("reason") or "")
    if status != "stopped":
        return {"completed": EndCode.COMPLETED, "failed": EndCode.ERROR}.get(str(status))
    if sentence.startswith("StoppedError: "):  # rank 0 was not asked itself, so it had no sentence of its own
        return EndCode.OTHER_RANK
    known = {reason.sentence: reason.code for reason in (OTHER_RANK, END_TIME, LAUNCHER_DIED)}
    return known.get(sentence) or reason_of_stop_file(sentence).code
