"""A machine's heart: a thread that renews its file, looks at the others' files, and asks whether they answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from launch.local.nodes.board import Board
from launch.local.nodes.board_records import End, Member

BEAT_SECONDS = 1.0
DEAD_SECONDS = 10.0  # without a new heartbeat, by the reader's own clock
REACH_SECONDS = 10.0  # without an answer
FORGET_SECONDS = 120.0  # a file that nobody renews is removed
_ANSWER_SECONDS = 2.0
_ASK_AT_ONCE = 32


class Living:
    """Tells which machines live, from how their heartbeats change. Time in which the reader was frozen counts for none.

    clock   in seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: dict[str, tuple[int, float | None]] = {}  # id: heartbeat, and when it was seen to change
        self._first: dict[str, float] = {}
        self._looked = clock()

    def look(self, members: Sequence[Member]) -> tuple[list[Member], list[str]]:
        """Return those that live, and the ids of those that have been dead for long."""
        now = self._clock()
        if (missed := now - self._looked - DEAD_SECONDS / 2) > 0:
            self._seen = {name: (beat, at and at + missed) for name, (beat, at) in self._seen.items()}
        self._looked = now
        for member in members:
            beat, at = self._seen.get(member.id, (member.beat, None))
            self._first.setdefault(member.id, now)
            self._seen[member.id] = (member.beat, now if member.beat != beat else at)
        alive, forgotten = [], []
        for member in members:
            at = self._seen[member.id][1]
            if at is not None and now - at < DEAD_SECONDS:
                alive.append(member)
            elif now - (self._first[member.id] if at is None else at) > FORGET_SECONDS:
                forgotten.append(member.id)
        return alive, forgotten


class Beacon:
    """Answers who connects with this machine's id: a process that is frozen, or cut off, does not."""

    def __init__(self, name: str):
        dualstack = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dualstack else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=256, dualstack_ipv6=dualstack)
        self.port = int(self._listener.getsockname()[1])
        self._name = name.encode()
        threading.Thread(target=self._answer, name="beacon", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with suppress(OSError), connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(self._name)

    def close(self) -> None:
        """Answer no more."""
        self._listener.close()


def answers(address: str, port: int, name: str) -> bool:
    """Return True if the beacon of the machine `name` answers at this address."""
    with suppress(OSError), socket.create_connection((address, port), timeout=_ANSWER_SECONDS) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        data = b""
        while len(data) < len(name) and (block := connection.recv(64)):
            data += block
        return data == name.encode()
    return False


class Heart:
    """This machine's file on the board, renewed every second, and what it knows of the others."""

    def __init__(self, board: Board, me: Member):
        self._board, self._me = board, me
        self._living = Living()
        self._alive: list[Member] = []
        self._reached: dict[str, tuple[str, float]] = {}  # id: address, and when it answered
        self._lock, self._over = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(_ASK_AT_ONCE, "reach")
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def alive(self) -> list[Member]:
        """Return the machines that live, this one as it is now."""
        with self._lock:
            return [self._me if member.id == self._me.id else member for member in self._alive]

    def has_ended(self, end: End) -> None:
        """Tell the others how this machine's ranks ended."""
        with self._lock:
            self._me = replace(self._me, end=end)
        self.beat()

    def stop(self) -> None:
        """Take part no more."""
        self._over.set()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._board.remove_member(self._me.id)

    def beat(self) -> None:
        """Renew this machine's file, and look at the others'."""
        with self._lock:
            now = time.monotonic()
            reaches = {name: address for name, (address, at) in self._reached.items() if now - at < REACH_SECONDS}
            self._me = replace(self._me, beat=self._me.beat + 1, reaches=reaches)
            with suppress(OSError):  # the disk is away: the others will think that this machine is dead
                self._board.write_member(self._me)
                alive, forgotten = self._living.look(list(self._board.members().values()))
                self._alive = alive
                for name in forgotten:
                    self._board.remove_member(name)

    def _run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self.beat()
            with self._lock:
                others = [member for member in self._alive if member.id != self._me.id]
            for member in others:
                self._pool.submit(self._ask, member)

    def _ask(self, member: Member) -> None:
        known = self._reached.get(member.id)
        for address in dict.fromkeys([*([known[0]] if known else []), *member.addresses]):
            if answers(address, member.port, member.id):
                self._reached[member.id] = (address, time.monotonic())
                return
