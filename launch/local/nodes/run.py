"""Train with whoever is there: each machine runs this, and obeys the newest entry of the board."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.local.console import say
from launch.local.nodes.board import Board
from launch.local.nodes.board_records import BoardEntry, End, Member
from launch.local.nodes.heart import DEAD_SECONDS, Beacon, Heart
from launch.local.nodes.membership import Rules, lost, newcomers, next_entry
from launch.local.nodes.outcome import is_complete, was_unasked
from launch.local.outcome.ending import Ending
from launch.local.restarts.healing import DirectoryHold
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_FAILURE, EXIT_OK, EXIT_PORT_TAKEN, EXIT_STOPPED, TrainlaunchError, UserError
from trainlib.runs.attempt.owner import is_taken, read_owner
from trainlib.runs.attempt.stop_request import write_stop_file
from trainlib.runs.machine.launch_variables import node_seconds
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.reasons import REGROUP, EndCode

JOIN_SECONDS = 15.0  # after the machine that came last, fewer than the most begin
_CLOSING_SECONDS = 12.0  # for ranks to end by themselves, once those of another machine have
_FREE_SECONDS = 20.0  # for a rank 0 that was cut off to give the run directory up
_POLL_SECONDS = 0.2
_TELL_SECONDS = 60.0


@dataclass(frozen=True)
class RankStart:
    """One start of this machine's ranks, as an entry of the board orders it.

    number      of this machine among those that train
    variables   of the environment, for the ranks
    on_poll     to be called often; returns True where the ranks are to be ended
    """

    entry: BoardEntry
    number: int
    variables: dict[str, str]
    on_poll: Callable[[], bool]


@dataclass
class _Watch:
    """What one start has noticed so far."""

    others_ended: float | None = None
    checkpoint: int | None = None  # the newest one when a machine was seen that wants to join
    why: str = ""


@dataclass
class Nodes:
    """One machine's launcher among those that come and go.

    start   runs the ranks of one start to their end
    """

    start: Callable[[RankStart], Ending]
    directory: Path
    stop: StopRequest
    rules: Rules
    me: Member
    _waiting_since: float = field(default_factory=time.monotonic)
    _told: float = 0.0
    _last_arrival: float = field(default_factory=time.monotonic)
    _known: set[str] = field(default_factory=set)

    def run(self) -> int:
        """Take part until the run is over; return the exit code."""
        self._board = Board(self.directory)
        newest = self._board.newest()
        self._first = newest.number if newest else 0  # what was decided before concerns others
        self._hold = DirectoryHold(self.directory, self.stop)
        beacon = Beacon(self.me.id)
        self._heart = Heart(self._board, replace(self.me, port=beacon.port))
        self._ended, self._code, self._words = 0, EXIT_FAILURE, ""
        try:
            while True:
                entry = self._next()
                if entry is None:
                    return EXIT_STOPPED
                if entry.is_over:
                    if entry.tell and entry.code not in (EXIT_OK, EXIT_STOPPED):
                        say(entry.tell)
                    return entry.code
                self._train(entry)
        finally:
            beacon.close()
            self._hold.give_up()
            if not self._others_train():
                self._hold.remove_stop_file()
            self._heart.stop()

    def _next(self) -> BoardEntry | None:
        """Wait for the next entry that concerns this machine, or propose it; None where the run is to stop."""
        self._waiting_since = time.monotonic()
        while not self._is_asked_to_stop() or self._is_awaited():
            with suppress(OSError):  # the disk is away
                newest = self._board.newest()
                number = newest.number if newest else 0
                is_new = newest is not None and number > max(self._first, self._ended)
                if newest is not None and is_new and (newest.is_over or self.me.id in newest.members):
                    return newest
                if newest is not None and self.me.id in newest.left_out:
                    return BoardEntry(
                        number, code=self._code, tell=self._words or f"{self.me.host} is left out: see above"
                    )
                alive = self._heart.alive()
                self._notice(alive)
                self._propose(alive, newest)
                self._require_enough(alive, newest)
            self._hold.renew()
            time.sleep(_POLL_SECONDS)
        return None

    def _is_awaited(self) -> bool:
        """Return True while others may still end their ranks: who leaves before would look like a machine that died."""
        return self._ended > 0 and time.monotonic() - self._waiting_since < _CLOSING_SECONDS

    def _propose(self, alive: list[Member], newest: BoardEntry | None) -> None:
        """Add the entry that should follow, if it is this machine's turn to do so."""
        number = newest.number if newest else 0
        in_force = newest is not None and (number > self._first or any(m.id in newest.members for m in alive))
        current = newest if in_force else None
        entry = next_entry(
            alive,
            current,
            number + 1,
            self.rules,
            settled=time.monotonic() - self._last_arrival > JOIN_SECONDS,
            regrouping=self._board.is_regrouping(number),
            is_complete=current is not None and is_complete(self.directory),
            unasked=current is not None and not self.stop.asked and was_unasked(self.directory),
        )
        if entry is None:
            return
        ended = [member.id for member in alive if current is not None and member.id in current.members]
        if self.me.id == (entry.members or ended or [self.me.id])[0]:
            if not entry.is_over and len(entry.members) > 1:
                entry = replace(entry, port=_free_port())
            if self._board.add(entry) and not entry.is_over:
                say(entry.tell)

    def _is_asked_to_stop(self) -> bool:
        """Return True if the run is to end, and no ranks are there that would heed it."""
        return self.stop.asked or (self._hold.is_asked_to_stop() and not self._others_train())

    def _others_train(self) -> bool:
        with suppress(OSError):
            newest = self._board.newest()
            training = set(newest.members if newest else ()) - {self.me.id}
            ended = {m.id for m in self._heart.alive() if newest and m.end and m.end.number == newest.number}
            return any(member.id in training - ended for member in self._heart.alive())
        return True  # the disk is away

    def _notice(self, alive: list[Member]) -> None:
        """Note when the last machine came."""
        names = {member.id for member in alive}
        if names - self._known:
            self._last_arrival = time.monotonic()
        self._known |= names

    def _require_enough(self, alive: list[Member], newest: BoardEntry | None) -> None:
        """Tell that machines are waited for; raise TrainlaunchError where too few come."""
        now, limit = time.monotonic(), node_seconds()
        hosts = ", ".join(member.host for member in alive)
        training = set(newest.members if newest else ()) - {self.me.id}
        others = [member for member in alive if member.id in training and member.kind != self.me.kind]
        if others:
            raise UserError(
                f"--nodes {self.rules.least}:{self.rules.most}: {others[0].host} trains with other code, another "
                f"configuration, or another number of --processes than {self.me.host} has: start the same here as there"
            )
        if any(member.id in training for member in alive):
            self._waiting_since = now
        if now - self._waiting_since > limit:
            raise TrainlaunchError(
                f"--nodes {self.rules.least}:{self.rules.most}: at least {self.rules.least} machines are needed that "
                f"reach each other and have the same code and configuration, and within {limit:g} s there were "
                f"{len(alive)} ({hosts}); start more with the same command, or set TRAINLAUNCH_NODE_SECONDS to wait "
                "longer"
            )
        if now - max(self._told, self._waiting_since + 5.0) > (_TELL_SECONDS if self._told else 0.0):
            self._told = now
            say(f"waiting for other machines; here now: {hosts or self.me.host}")

    def _train(self, entry: BoardEntry) -> None:
        """Run this machine's ranks by an entry, and tell the others how they ended."""
        number = entry.members.index(self.me.id)
        if number == 0:
            self._hold.withdraw_regrouping()
            self._take_directory(entry)
        else:
            self._hold.give_up()
            say(entry.tell)
        watch = _Watch()
        variables = self._hold.variables()
        start = RankStart(entry, number, variables, lambda: self._must_end(entry, number, watch))
        ending = self._unless_others_are_gone(self.start(start), entry)
        if watch.why:
            say(watch.why)
        self._ended, self._code, self._words = entry.number, ending.code, ending.words
        if number == 0 and ending.fault is not None:
            self._hold.keep()
            if self._hold.is_asked_to_stop():  # by `launch cancel`, which kills rank 0
                ending = replace(ending, fault=None)
        self._heart.has_ended(_end_of(ending, entry, number))

    def _unless_others_are_gone(self, ending: Ending, entry: BoardEntry) -> Ending:
        """Return the ending; where an exception of the network ended the ranks, which may have any words, as that."""
        if ending.fault is not None or ending.code not in (EXIT_FAILURE, EXIT_PORT_TAKEN) or len(entry.members) == 1:
            return ending
        deadline = time.monotonic() + DEAD_SECONDS + 1.0
        while time.monotonic() < deadline and ending.code != EXIT_PORT_TAKEN and not self.stop.asked:
            if lost(self.me.id, self._heart.alive(), entry):
                break
            time.sleep(_POLL_SECONDS)
        else:
            if ending.code != EXIT_PORT_TAKEN:
                return ending
        return replace(ending, fault=EndCode.CONNECTION_LOST, what=f"ranks on {self.me.host} lost others")

    def _take_directory(self, entry: BoardEntry) -> None:
        """Wait until a rank 0 of another machine has given the run directory up, or is dead, and own it."""
        deadline = time.monotonic() + _FREE_SECONDS
        if not entry.begun:
            return
        while is_taken(self.directory) and not self._hold.holds() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._hold.take_over()

    def _must_end(self, entry: BoardEntry, number: int, watch: _Watch) -> bool:
        """Return True where this machine's ranks are to be ended at once: others are gone, or go on without it."""
        self._hold.renew()
        now, alive = time.monotonic(), self._heart.alive()
        try:
            newest = self._board.newest()
        except OSError:
            return False  # the disk is away: what ranks write fails as well
        if newest is not None and newest.number > entry.number:
            watch.why = "others go on without this machine, which was frozen or cut off: its ranks are ended"
            return True
        if gone := lost(self.me.id, alive, entry):
            watch.why = f"{', '.join(gone)} cannot be reached: the ranks here are ended, to go on without"
            return True
        ended = [m for m in alive if m.id in entry.members and m.end is not None and m.end.number == entry.number]
        watch.others_ended = (watch.others_ended or now) if ended else None
        if watch.others_ended is not None and now - watch.others_ended > _CLOSING_SECONDS:
            watch.why = f"the ranks on {ended[0].host} have ended: those here are ended as well"
            return True
        if number == 0 and not ended:
            self._let_others_join(alive, entry, watch)
        return False

    def _let_others_join(self, alive: list[Member], entry: BoardEntry, watch: _Watch) -> None:
        """Ask the ranks to stop after the next checkpoint, where a machine has come that can join."""
        if self._board.is_regrouping(entry.number):
            return
        came = newcomers(alive, entry, self.rules.most)
        if not came:
            watch.checkpoint = None
            return
        step = max(steps_in(self.directory / "checkpoints"), default=0)
        if watch.checkpoint is None:
            watch.checkpoint = step
            say(f"{', '.join(member.host for member in came)} will join at the next checkpoint")
        owner = read_owner(self.directory)
        if step > watch.checkpoint and owner is not None and self.stop.run_has_begun():
            self._board.mark_regrouping(entry.number)
            write_stop_file(self.directory, REGROUP, owner.stop_token)


def _end_of(ending: Ending, entry: BoardEntry, number: int) -> End:
    ranks = range(number * entry.processes, (number + 1) * entry.processes)
    return End(
        number=entry.number,
        code=ending.code,
        fault=ending.fault,
        what=ending.what,
        place=ending.place,
        words=ending.words,
        steps=(ending.steps.begun_from, ending.steps.finished) if ending.steps else None,
        begun=ending.begun,
        is_wrong=ending.fault is EndCode.WRONG_DEVICE and ending.wrong_rank in ranks,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
