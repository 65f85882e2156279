"""Machines that gather at machine 0: who may come, who is waited for, and what is told. A machine is a thread here."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainlib.distributed.rendezvous.gathering import Gathering, Machine, join
from trainlib.errors import RunDirectoryError, TrainlaunchError, UserError
from trainlib.runs.attempt.secret import forget_unused, make_secret, read_secret, secret_file

SECRET, OTHER = b"a" * 32, b"b" * 32


class Meeting:
    """A head that waits for `count` machines, and what it says."""

    def __init__(self, count: int, seconds: float = 5.0):
        self.count, self.seconds = count, seconds
        self.said: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", int(self.listener.getsockname()[1]))
        self.pool = ThreadPoolExecutor()
        me = Machine(0, count, 2 * count)
        gathering = Gathering(me, SECRET, "runs/run/.secret", seconds, self.said.append)
        self.head = self.pool.submit(gathering.run, self.listener)

    def come(
        self, rank: int, secret: Callable[[], bytes | None] = lambda: SECRET, seconds: float = 5.0, **other: int | str
    ) -> Future[None]:
        place: dict[str, Any] = {"rank": rank, "count": self.count, "processes": 2 * self.count, **other}
        return self.pool.submit(
            join, self.address, Machine(**place), secret, "there/.secret", seconds, self.said.append
        )


def test_all_go_once_all_are_here() -> None:
    meeting = Meeting(4)
    early = [meeting.come(rank) for rank in (3, 1)]
    time.sleep(0.3)
    assert not any(future.done() for future in [meeting.head, *early])
    for future in [meeting.come(2), *early, meeting.head]:
        assert future.result(5) is None


def test_a_machine_that_never_comes_is_named_on_all_others() -> None:
    meeting = Meeting(4, seconds=1.0)
    here = meeting.come(2)
    for future in (meeting.head, here):
        with pytest.raises(TrainlaunchError, match="machines 1, 3 of 4 did not come within 1 s") as caught:
            future.result(5)
        assert caught.value.exit_code == 1
    assert "--node-rank 1, 3" in str(meeting.head.exception())


@pytest.mark.slow
def test_a_machine_with_another_secret_is_told_and_never_let_in() -> None:
    meeting = Meeting(2, seconds=1.0)
    stranger = meeting.come(1, lambda: OTHER, seconds=0.1)
    with pytest.raises(UserError, match=r"another secret than there/\.secret"):
        stranger.result(10)
    with pytest.raises(TrainlaunchError, match="machine 1 of 2 did not come"):
        meeting.head.result(5)
    assert "127.0.0.1 came with another secret than runs/run/.secret: is it started in the same folder?" in meeting.said
    assert SECRET.hex() not in str(meeting.said)


def test_a_secret_that_appears_late_will_do() -> None:
    meeting = Meeting(2)
    answers = iter([None, OTHER])
    assert meeting.come(1, lambda: next(answers, SECRET)).result(10) is None
    assert meeting.head.result(5) is None


@pytest.mark.slow
def test_without_a_secret_or_a_head_it_is_told_in_time() -> None:
    meeting = Meeting(2, seconds=0.5)
    with pytest.raises(UserError, match=r"there/\.secret, which machine 0 makes, did not appear"):
        meeting.come(1, lambda: None, seconds=0.1).result(10)
    meeting.listener.close()
    with pytest.raises(TrainlaunchError, match="did not answer in"):
        meeting.come(1, seconds=0.1).result(10)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 3}, "--nodes: machine 0 has 2, .* has 3"),
        ({"processes": 9}, "number of processes on all machines: machine 0 has 4, .* has 9"),
        ({"run_id": "job 7"}, "start of the job"),
        ({"rank": 0}, "--node-rank: got 0"),
        ({"rank": 2}, "--node-rank: got 2"),
    ],
)
def test_another_command_is_refused(wrong: dict[str, int | str], said: str) -> None:
    meeting = Meeting(2, seconds=1.0)
    with pytest.raises(UserError, match=said):
        meeting.come(**{"rank": 1, **wrong}).result(5)  # type: ignore[arg-type]
    with pytest.raises(TrainlaunchError, match="machine 1 of 2 did not come"):
        meeting.head.result(5)


def test_two_machines_with_one_number() -> None:
    meeting = Meeting(3, seconds=1.5)
    first = meeting.come(1, host="one")
    time.sleep(0.3)
    with pytest.raises(UserError, match="one and two both have 1"):
        meeting.come(1, host="two").result(5)
    assert meeting.come(2).result(5) is meeting.head.result(5) is first.result(5) is None


def test_a_machine_that_went_away_is_waited_for_again() -> None:
    meeting = Meeting(3)
    with socket.create_connection(meeting.address) as gone:
        gone.sendall(b"trainlaunch machine 1\n")
    last = meeting.come(2)
    time.sleep(0.2)
    assert meeting.come(1).result(5) is last.result(5) is meeting.head.result(5) is None


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.0\r\n\r\n" * 10, os.urandom(200), b"trainlaunch machine 1\n" + bytes(500)]
)
def test_other_programs_at_the_port_do_no_harm(noise: bytes) -> None:
    meeting = Meeting(2)
    with socket.create_connection(meeting.address) as other:
        other.sendall(noise)
        with suppress(OSError):  # the head may be quicker to hang up
            other.shutdown(socket.SHUT_WR if noise else socket.SHUT_RD)
        assert meeting.come(1).result(10) is None
    assert meeting.head.result(5) is None


def test_nothing_that_was_sent_helps_somebody_else() -> None:
    """A relay between head and machine hears every byte: neither the secret, nor a proof that works a second time."""
    heard: list[bytes] = []
    meeting = Meeting(2, seconds=2.0)
    relay = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            heard.append(data)
            target.sendall(data)

    def serve() -> None:
        machine, _ = relay.accept()
        head = socket.create_connection(meeting.address)
        threading.Thread(target=pass_on, args=(head, machine), daemon=True).start()
        pass_on(machine, head)

    threading.Thread(target=serve, daemon=True).start()
    address = ("127.0.0.1", int(relay.getsockname()[1]))
    join(address, Machine(1, 2, 4), lambda: SECRET, "x", 3.0, lambda line: None)
    assert meeting.head.result(5) is None
    assert SECRET not in b"".join(heard)
    again = Meeting(2, seconds=1.0)
    with socket.create_connection(again.address) as attacker:
        with suppress(ConnectionError):  # it is not listened to any more
            for data in heard:
                attacker.sendall(data)
        with pytest.raises(TrainlaunchError, match="did not come"):
            again.head.result(10)


def test_the_secrets_file(tmp_path: Path) -> None:
    run = tmp_path / "runs/run"
    make_secret(run)
    secret = read_secret(run)
    assert secret is not None
    assert len(secret) == 32
    assert secret_file(run).stat().st_mode & 0o777 == 0o600
    secret_file(run).chmod(0o644)
    make_secret(run)
    assert read_secret(run) == secret
    assert secret_file(run).stat().st_mode & 0o777 == 0o600
    forget_unused(run)
    assert not run.exists()


@pytest.mark.parametrize("damage", ["link", "fifo", "short", "rubbish"])
def test_what_is_no_secret_is_replaced_not_followed(tmp_path: Path, damage: str) -> None:
    path = secret_file(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("a" * 64)
    if damage == "link":
        path.symlink_to(elsewhere)
    elif damage == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"ab" if damage == "short" else b"\xff" * 64)
    assert read_secret(tmp_path) is None
    make_secret(tmp_path)
    assert read_secret(tmp_path) is not None
    assert elsewhere.read_text() == "a" * 64


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        make_secret(tmp_path / "runs/run")
