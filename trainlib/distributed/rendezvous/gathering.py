"""The machines of a run gather at machine 0, the head, before anything is trained, and prove that they know the secret.

    machine                                     head
    hello, a random number          ->
                                    <-          a random number, proof
    its place and command, proof    ->
                                    <-          once all are here: go; or what is wrong. Proof

A proof is an HMAC-SHA256 over both random numbers, who speaks, and the message. Nothing secret is sent. What follows,
torch's store and the sockets of gloo and NCCL, knows no proofs: see docs/reliability.md.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainlib.errors import TrainlaunchError, UserError

_HELLO = b"trainlaunch machine 1\n"
_NUMBER_BYTES, _PROOF_BYTES, _MOST_BYTES = 32, 32, 1 << 14
_REPLY_SECONDS = 3.0  # for each message but the last
_TELL_SECONDS, _TELL_AGAIN_SECONDS = 5.0, 60.0  # of waiting, before it is told for whom
_RETRY_SECONDS = 0.5
_PATIENCE = 5.0  # seconds that a machine waits longer than the head, which knows more


@dataclass(frozen=True)
class Machine:
    """One machine of a run, as it describes itself.

    rank        its number, from 0, the head
    count       number of machines that it was told of
    processes   number of ranks on all machines that it was told of
    run_id      the start that it belongs to, as the batch system names it; else empty
    """

    rank: int
    count: int
    processes: int
    run_id: str = ""
    host: str = field(default_factory=socket.gethostname)


class _WrongSecretError(Exception):
    """The other side cannot prove that it knows our secret."""


class _Talk:
    """A connection on which both sides prove each message."""

    def __init__(self, connection: socket.socket, secret: bytes, own: str, other: str):
        """own, other: names of this side and the other one, so that no proof can be sent back as one's own."""
        self.connection = connection
        self._secret, self._own, self._other = secret, own, other
        self._numbers = b""

    def greet(self) -> None:
        """Begin a talk, as a machine; the head has proved itself then."""
        mine = secrets.token_bytes(_NUMBER_BYTES)
        self.connection.sendall(_HELLO + mine)
        theirs = self._read(_NUMBER_BYTES)
        self._numbers = mine + theirs
        self.receive()

    def answer(self) -> None:
        """Begin a talk, as the head. Raises ConnectionError for a program that is no machine of any run."""
        hello = self._read(len(_HELLO) + _NUMBER_BYTES)
        if not hello.startswith(_HELLO):
            raise ConnectionError("another program")
        mine = secrets.token_bytes(_NUMBER_BYTES)
        self._numbers = hello[len(_HELLO) :] + mine
        self.connection.sendall(mine)
        self.send({})

    def send(self, message: dict[str, Any]) -> None:
        """Send a message with its proof."""
        data = json.dumps(message).encode()
        self.connection.sendall(len(data).to_bytes(4, "big") + data + self._proof(self._own, data))

    def receive(self) -> dict[str, Any]:
        """Receive a message. Raises _WrongSecretError for a wrong proof, and OSError where none comes."""
        length = int.from_bytes(self._read(4), "big")
        if length > _MOST_BYTES:
            raise ConnectionError("another program")
        data, proof = self._read(length), self._read(_PROOF_BYTES)
        if not hmac.compare_digest(proof, self._proof(self._other, data)):
            raise _WrongSecretError
        message = json.loads(data)
        assert isinstance(message, dict), "the other side knows the secret"
        return message

    def is_alive(self) -> bool:
        """Return True unless the other side has gone; it sends nothing while it waits."""
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.connection.settimeout(_REPLY_SECONDS)

    def _proof(self, speaker: str, data: bytes) -> bytes:
        return hmac.digest(self._secret, speaker.encode() + self._numbers + data, "sha256")

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            block = self.connection.recv(count - len(data))
            if not block:
                raise ConnectionError("it has closed the connection")
            data += block
        return data


class Gathering:
    """The head's side: it admits the other machines, one after another, until all are here.

    say   shows a line to the user
    """

    def __init__(self, me: Machine, secret: bytes, secret_file: str, seconds: float, say: Callable[[str], None]):
        self._me, self._secret, self._secret_file = me, secret, secret_file
        self._seconds, self._say = seconds, say
        self._here: dict[int, tuple[Machine, _Talk]] = {}
        self._told: set[str] = set()

    def run(self, listener: socket.socket) -> None:
        """Return once all machines are here. Raises TrainlaunchError, here and there, where some never come."""
        deadline = time.monotonic() + self._seconds
        tell_at = time.monotonic() + _TELL_SECONDS
        while missing := self._missing():
            now = time.monotonic()
            if now > deadline:
                self._give_up(missing)
            if now > tell_at:
                self._say(f"waiting for {_names(missing)} of {self._me.count} to start ({self._seconds:g} s at most)")
                tell_at = now + _TELL_AGAIN_SECONDS
            listener.settimeout(max(0.05, min(1.0, deadline - now)))
            with suppress(TimeoutError):
                connection, address = listener.accept()
                self._admit(connection, str(address[0]))
        for _, talk in self._here.values():
            talk.send({"go": True})
            talk.connection.close()

    def _missing(self) -> list[int]:
        self._here = {rank: (machine, talk) for rank, (machine, talk) in self._here.items() if talk.is_alive()}
        return [rank for rank in range(1, self._me.count) if rank not in self._here]

    def _give_up(self, missing: list[int]) -> None:
        waited = f"{_names(missing)} of {self._me.count} did not come within {self._seconds:g} s"
        for _, talk in self._here.values():
            with suppress(OSError):
                talk.send({"error": f"{waited}; nothing was trained"})
        numbers = ", ".join(map(str, missing))
        raise TrainlaunchError(
            f"{waited} (--node-rank {numbers}); nothing was trained. Look at what was printed there, start all with "
            "the same command, or set TRAINLAUNCH_NODE_SECONDS to wait longer"
        )

    def _admit(self, connection: socket.socket, address: str) -> None:
        connection.settimeout(_REPLY_SECONDS)
        talk = _Talk(connection, self._secret, "head", "machine")
        stranger = f"{address} came with another secret than {self._secret_file}: is it started in the same folder?"
        is_machine = False
        try:
            talk.answer()
            is_machine = True
            machine = Machine(**talk.receive())
            if (mistake := self._mistake(machine)) is None:
                self._here[machine.rank] = machine, talk
                return
            self._tell_once(f"{machine.host} is refused: {mistake}")
            talk.send({"error": mistake, "user": True})
        except (_WrongSecretError, OSError, ValueError, TypeError):
            if is_machine:
                self._tell_once(stranger)
        connection.close()

    def _mistake(self, machine: Machine) -> str | None:
        me = self._me
        for option, theirs, ours in [
            ("--nodes", machine.count, me.count),
            ("number of processes on all machines", machine.processes, me.processes),
            ("start of the job", machine.run_id, me.run_id),
        ]:
            if theirs != ours:
                return f"{option}: machine 0 has {ours}, {machine.host} has {theirs}, must be the same on all"
        if not 0 < machine.rank < me.count:
            return f"--node-rank: got {machine.rank} on {machine.host}, must be from 1 to {me.count - 1}"
        if machine.rank in self._here:
            return f"--node-rank: {self._here[machine.rank][0].host} and {machine.host} both have {machine.rank}"
        return None

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)


def join(
    head: tuple[str, int],
    me: Machine,
    read_secret: Callable[[], bytes | None],
    secret_file: str,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Wait at the head until all machines are there, as one of the others.

    read_secret   called at each try, as the head may only just be making it
    Raises UserError for a wrong secret or command, TrainlaunchError where the head, or another machine, never comes.
    """
    where = f"machine 0 at {head[0]}:{head[1]}"
    deadline = time.monotonic() + seconds + _PATIENCE
    tell_at = time.monotonic() + _TELL_SECONDS
    problem: TrainlaunchError = TrainlaunchError(f"{where} did not answer in {seconds:g} s; nothing was trained")
    while True:
        secret = read_secret()
        if secret is None:
            problem = UserError(
                f"{secret_file}, which machine 0 makes, did not appear here within {seconds:g} s: start the run in a "
                "folder that all machines share, with machine 0; nothing was trained"
            )
        else:
            try:
                with socket.create_connection(head, timeout=_REPLY_SECONDS) as connection:
                    return _wait_for_all(_Talk(connection, secret, "machine", "head"), me, seconds + _PATIENCE)
            except _WrongSecretError:
                problem = UserError(
                    f"{where} has another secret than {secret_file}: start the run in a folder that all machines "
                    "share, and look whether another run has that port; nothing was trained"
                )
            except (OSError, ValueError):
                pass  # it is not there yet, or has just gone, for the reason that was found before
        if time.monotonic() > deadline:
            raise problem
        if time.monotonic() > tell_at:
            say(f"waiting for {where} to start ({seconds:g} s at most)")
            tell_at = time.monotonic() + _TELL_AGAIN_SECONDS
        time.sleep(_RETRY_SECONDS)


def _wait_for_all(talk: _Talk, me: Machine, seconds: float) -> None:
    """Wait for the head's word, which comes within its own time, that may have begun later."""
    talk.greet()
    talk.send(asdict(me))
    talk.connection.settimeout(seconds)
    verdict = talk.receive()
    if "error" in verdict:
        raise (UserError if verdict.get("user") else TrainlaunchError)(verdict["error"])


def _names(ranks: list[int]) -> str:
    return f"machine{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
