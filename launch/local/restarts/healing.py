"""Start a run again by itself, for as long as only the machine is at fault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launch.local.console import append, say
from launch.local.outcome.ending import Ending
from launch.local.restarts.restart_policy import RestartDecision, decide_restart
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from trainlib.runs.attempt.owner import (
    LAUNCHER,
    OWNER_FILE,
    RENEW_SECONDS,
    Ownership,
    new_identity,
    read_owner,
    this_process,
)
from trainlib.runs.attempt.record import RESTART, last_event, read_attempts
from trainlib.runs.attempt.snapshot_folder import SnapshotFolder
from trainlib.runs.attempt.step_file import Steps
from trainlib.runs.attempt.stop_request import is_meant_for, read_stop_file
from trainlib.runs.files.json_records import read_json
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.reasons import EndCode, code_of_end


@dataclass(frozen=True)
class Start:
    """What the launcher knows when it starts a run.

    variables    of the environment, for the ranks
    has_begun    whether an attempt of this launcher has begun before, and done what the options say
    is_restart   whether this is not its first start
    on_poll      to be called often until the ranks have ended
    left_out     devices that have computed wrongly: the UUIDs of GPUs, empty for others
    """

    variables: Mapping[str, str]
    has_begun: bool
    is_restart: bool
    on_poll: Callable[[], None]
    left_out: Sequence[str] = ()


class DirectoryHold:
    """The launcher's hold on the run directory between two starts, so that nobody else's start comes in between.

    All starts of a launcher own the directory under one identity. A STOP file that names it is meant for all of them.
    """

    def __init__(self, directory: Path, stop: StopRequest):
        self._directory, self._stop = directory, stop
        self._owner = replace(this_process(), id=new_identity())
        self._held: Ownership | None = None
        self._renewed = 0.0

    def variables(self) -> dict[str, str]:
        """Return what tells the ranks of a start who has started them."""
        return {LAUNCHER: f"{self._owner.id} {self._owner.pid}"}

    def keep(self) -> None:
        """Become the owner in place of the dead rank 0, until the next one takes over."""
        if self._held is not None and self._held.holds():  # the start before did not come to take it
            return
        self.give_up()
        owner = read_owner(self._directory)
        if owner is not None and owner.id != self._owner.id:  # somebody else was faster
            return
        with suppress(OSError):  # there is no directory yet, or it cannot be written
            (self._directory / OWNER_FILE).unlink(missing_ok=True)
            # Without a thread, which would be in the way of a fork.
            self._held = Ownership(self._directory, self._owner, renewed=False)

    def holds(self) -> bool:
        """Return True if the directory is this launcher's."""
        return self._held is not None and self._held.holds()

    def take_over(self) -> None:
        """Become the owner in place of one that is known to be dead, or to have given up."""
        if self.holds():
            return
        self.give_up()
        with suppress(OSError):
            (self._directory / OWNER_FILE).unlink(missing_ok=True)
            self._held = Ownership(self._directory, self._owner, renewed=False)

    def renew(self) -> None:
        """Show others that the directory is kept; to be called often."""
        if self._held is not None and time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            self._held.renew()

    def give_up(self) -> None:
        """Own the directory no more."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def is_asked_to_stop(self) -> bool:
        """Return True if a person asked this launcher's run to stop, or has ended it, through the STOP file."""
        return self._has_stop_file() and not self._is_regrouping()

    def remove_stop_file(self) -> None:
        """Remove a STOP file that is meant for the run that ends now: the next one must not obey it."""
        if self._has_stop_file():
            with suppress(OSError):
                (self._directory / "STOP").unlink()

    def withdraw_regrouping(self) -> None:
        """Remove a STOP file that asked an earlier start to let a machine join, and was not come to."""
        if self._has_stop_file() and self._is_regrouping():
            self.remove_stop_file()

    def _has_stop_file(self) -> bool:
        return is_meant_for(self._directory / "STOP", self._owner.stop_token, self._stop.earlier)

    def _is_regrouping(self) -> bool:
        return read_stop_file(self._directory / "STOP").code is EndCode.REGROUP


def run_healing(
    start_once: Callable[[Start], Ending],
    directory: Path,
    stop: StopRequest,
    most: int,
    *,
    may_leave_out: Callable[[int], bool] = lambda devices: False,
) -> int:
    """Start a run, and again after each fault of the machine, and return the exit code of the whole.

    start_once      starts it, and returns when it has ended
    stop            catches signals all the while
    most            number of restarts, counted since the last step that was never finished before
    may_leave_out   whether the run can go on without so many devices that computed wrongly
    """
    hold, snapshots = DirectoryHold(directory, stop), SnapshotFolder()
    starts: list[Steps | None] = []
    left_out: list[str] = []
    restart: dict[str, str] = {}
    begun = False
    try:
        while True:
            variables = {**hold.variables(), **snapshots.variables(), **restart}
            ending = start_once(Start(variables, begun, bool(starts), hold.renew, tuple(left_out)))
            if ending.fault is EndCode.WRONG_DEVICE:
                left_out += [] if ending.wrong is None else [ending.wrong]
                if ending.wrong is None or not may_leave_out(len(left_out)):
                    ending = replace(ending, fault=None)
            begun = begun or ending.begun
            code = _code_where_over(ending, directory, hold, stop) if ending.fault else ending.code
            if code is not None:
                is_complete = ending.fault is not None and code == 0
                say(f"{ending.what} ({ending.place}) when the run was complete" if is_complete else ending.words)
                return code
            starts.append(ending.steps)
            decision = decide_restart(starts, most)
            if decision.number is None:
                _tell_why_not(ending, decision, directory)
                return ending.code
            hold.keep()
            if ending.fault is EndCode.WRONG_DEVICE:
                snapshots.drop_from(0)  # since when it computes wrongly, nobody knows: the last checkpoint is older
            elif ending.steps is not None:
                snapshots.drop_from(ending.steps.finished)
            _tell_restart(ending, decision, most, directory, snapshots.newest())
            restart = {RESTART: _in_record(ending, decision)}
            if not _pause(decision.pause, hold, stop):
                say("stopped between two starts: the run continues from its last checkpoint when it is started again")
                return EXIT_INTERRUPTED if stop.now else EXIT_STOPPED
    finally:
        snapshots.remove()
        hold.give_up()
        hold.remove_stop_file()


def _code_where_over(ending: Ending, directory: Path, hold: DirectoryHold, stop: StopRequest) -> int | None:
    """Return the exit code where nothing is left to do, or a person wants no more; None where the run is to go on."""
    attempts = read_attempts(directory) if ending.begun else []
    start, end = last_event(attempts, "start"), last_event(attempts, "end")
    code = code_of_end(end) if start and end and start.get("attempt") == end.get("attempt") else None
    if code is EndCode.COMPLETED and read_json(directory / "summary.json").get("status") == "completed":
        return 0
    # Ranks whose agent was killed notice that, or are asked to stop by this launcher.
    is_ours = ending.rank is None and code in (EndCode.LAUNCHER_DIED, EndCode.SIGNAL, EndCode.OTHER_RANK)
    if code is not None and code.status == "stopped" and not is_ours:
        return EXIT_STOPPED
    return ending.code if stop.asked or hold.is_asked_to_stop() else None


def _tell_why_not(ending: Ending, decision: RestartDecision, directory: Path) -> None:
    why_not = f"not started again: {decision.why_not}" if decision.why_not else ""
    say("\n".join(filter(None, [ending.words, why_not])))
    if ending.begun and why_not:
        append(directory / "logs/launcher.log", [f"{ending.what} ({ending.place}); {why_not}\n"])


def _tell_restart(
    ending: Ending, decision: RestartDecision, most: int, directory: Path, newest_snapshot: int | None
) -> None:
    there = [*steps_in(directory / "checkpoints"), *([] if newest_snapshot is None else [newest_snapshot])]
    step = max(there, default=None) if ending.begun else None
    whence = "from its beginning" if step is None else f"from step {step}"
    line = f"{ending.what} ({ending.place}); starting again {whence}, restart {decision.number} of {most}"
    say(line)
    if ending.begun:
        append(directory / "logs/launcher.log", [f"{line}\n"])


def _in_record(ending: Ending, decision: RestartDecision) -> str:
    """Return what the next attempt's start line is to say of this one's end."""
    reason = f"{ending.what} ({ending.place})"
    return json.dumps({"restart": decision.number, "cause": ending.fault, "reason": reason})


def _pause(seconds: float, hold: DirectoryHold, stop: StopRequest) -> bool:
    """Wait; return False if the run is asked to stop meanwhile."""
    deadline = time.monotonic() + seconds
    while not (stop.asked or hold.is_asked_to_stop()):
        if time.monotonic() >= deadline:
            return True
        hold.renew()
        time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
    return False
