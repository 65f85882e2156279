"""Machines that come and go under `launch run --nodes MIN:MAX`: network namespaces of this machine are the hosts."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from hosts import Host, hosts_at_a_bridge
from needs import need
from patience import HANG, wait_until
from soak import only_in_soak
from unhurried import UNHURRIED

from trainlib.runs.files.json_records import read_lines

pytestmark = pytest.mark.slow

ELASTIC = ("train.reproducibility=elastic", "train.virtual_shards=4", "train.hang_seconds=60", "checkpoint.best=null")
EVERY = 4


class Machines:
    """Hosts that train one run together, and the same run undisturbed."""

    def __init__(self, cwd: Path, names: list[str], epochs: int):
        tiny.make_images(cwd / "images")
        self.cwd, whole = cwd, tiny.in_folder(cwd, "whole")
        training = tiny.arguments(cwd / "images", epochs, EVERY, *ELASTIC)
        assert ranks.train(training, cwd=whole, timeout=10 * HANG) == [0], ranks.console(whole)
        (cwd / "sitecustomize.py").write_text(UNHURRIED)
        (cwd / "SLOW").write_text("0.1")
        words = [*training, "--nodes", f"1:{len(names)}", "--processes", "1", "--restarts", "1000"]
        self.hosts = [Host(number, name, cwd, words) for number, name in enumerate(names)]

    @property
    def starts(self) -> int:
        return len(tiny.attempts(self.cwd, "start"))

    def wait(self, has_come: Callable[[], bool]) -> None:
        def is_so() -> bool:
            assert has_come() or any(host.process.poll() is None for host in self.hosts), self.said()
            return has_come()

        wait_until(is_so)

    def wait_for_world(self, size: int) -> None:
        """Wait until so many ranks have finished a step."""

        def is_so() -> bool:
            starts = tiny.attempts(self.cwd, "start")
            newest = starts[-1] if starts else {}
            return newest.get("world_size") == size and tiny.last_step(self.cwd) > newest["from_step"]

        self.wait(is_so)

    def finish(self) -> None:
        """Wait until all have ended; the result is that of the undisturbed run."""
        (self.cwd / "SLOW").unlink()
        codes = [host.process.wait(timeout=10 * HANG) for host in self.hosts]
        assert codes == [0] * len(self.hosts), self.said()
        tiny.assert_same_result(self.cwd, self.cwd / "whole")
        self.assert_never_two_at_once()

    def assert_never_two_at_once(self) -> None:
        """Each attempt has written the rows of steps that follow those of the checkpoint that it began from."""
        lines = read_lines(self.cwd / "runs/run/attempts.jsonl")
        numbers = [line["attempt"] for line in lines if line["event"] == "start"]
        assert numbers == list(range(1, len(numbers) + 1))
        begun: set[int] = set()
        for line in lines:  # what ends is the newest attempt: none of an older one comes after another has begun
            if line["event"] == "start":
                begun.add(line["attempt"])
            else:
                assert line["attempt"] == max(begun), lines

    def said(self) -> str:
        return "\n".join(f"--- host {host.number}\n{host.said}" for host in self.hosts)

    def end(self) -> None:
        for host in self.hosts:
            with suppress(psutil.NoSuchProcess):
                host.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[int, int], Machines]]:
    need("ip", root=True)
    made: list[Machines] = []
    count = int(os.environ.get("NODE_HOSTS", "3"))
    with hosts_at_a_bridge(count) as names:

        def make(number: int, epochs: int) -> Machines:
            made.append(Machines(tmp_path, names[:number], epochs))
            return made[0]

        yield make
        for each in made:
            each.end()


def test_the_other_machine_goes_on_where_the_first_is_killed(machines: Callable[[int, int], Machines]) -> None:
    cluster = machines(2, 25)
    cluster.wait_for_world(2)
    killed = cluster.hosts.pop(0)
    killed.kill()
    cluster.wait_for_world(1)
    assert "gone: killed, frozen or cut off; restart 1 of 1000 on 1 machine" in cluster.hosts[0].said
    cluster.finish()


@only_in_soak
@pytest.mark.parametrize("how", ["kill", "launcher", "freeze", "cut off"])
def test_the_first_machine_goes_and_comes_back(machines: Callable[[int, int], Machines], how: str) -> None:
    cluster = machines(2, 100)
    cluster.wait_for_world(2)
    first = cluster.hosts[0]
    harm(first, how)
    cluster.wait_for_world(1)
    assert how == "cut off" or "gone: killed, frozen or cut off" in cluster.hosts[1].said  # cut off, either goes on
    come_back(first, how)
    cluster.wait_for_world(2)
    cluster.finish()


@only_in_soak
@pytest.mark.parametrize("number", [0, 1])
def test_an_agent_that_is_killed_stops_nobody_for_good(machines: Callable[[int, int], Machines], number: int) -> None:
    cluster = machines(2, 50)
    cluster.wait_for_world(2)
    agent = next(each for each in cluster.hosts[number].family() if "rendezvous.agent" in " ".join(each.cmdline()))
    agent.kill()
    cluster.wait(lambda: cluster.starts > 1)
    cluster.wait_for_world(2)
    cluster.finish()


def harm(host: Host, how: str) -> None:
    if how == "kill":
        host.kill()
    elif how == "launcher":  # the kernel tells its agent, whose ranks ask all others to stop
        host.process.kill()
        host.process.wait()
    elif how == "freeze":
        host.signal(signal.SIGSTOP)
    else:
        host.cut_off(again=False)


def come_back(host: Host, how: str) -> None:
    if how in ("kill", "launcher"):
        host.start()
    elif how == "freeze":
        host.signal(signal.SIGCONT)
    else:
        host.cut_off(again=True)


@only_in_soak
def test_machines_go_and_come_back_at_random(machines: Callable[[int, int], Machines]) -> None:
    """NODE_FAULTS (50) times; prints the seconds from each to the next step."""
    faults = int(os.environ.get("NODE_FAULTS", "50"))
    choice = random.Random(18)
    cluster = machines(int(os.environ.get("NODE_HOSTS", "3")), 60 * faults)
    cluster.wait_for_world(len(cluster.hosts))
    seconds: dict[str, list[float]] = {}
    for _ in range(faults):
        victim, how = choice.choice(cluster.hosts), choice.choice(["kill", "freeze", "cut off"])
        time.sleep(choice.uniform(0.0, 3.0))
        began = time.monotonic()
        harm(victim, how)
        cluster.wait_for_world(len(cluster.hosts) - 1)
        seconds.setdefault(how, []).append(time.monotonic() - began)
        time.sleep(choice.uniform(0.0, 5.0))
        come_back(victim, how)
        cluster.wait_for_world(len(cluster.hosts))
    cluster.finish()
    for how, found in seconds.items():
        print(f"\n{how}: {len(found)} times, {statistics.median(found):.1f} s (median), {max(found):.1f} s (most)")
