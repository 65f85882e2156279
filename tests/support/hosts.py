"""Hosts of their own on this machine: network namespaces at one bridge, each with a launcher that can be harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from paths import REPOSITORY


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def hosts_at_a_bridge(count: int) -> Iterator[list[str]]:
    """Namespaces `...n0`, `...n1` and so on with the addresses 10.78.0.1, .2 and so on; their names."""
    bridge = f"tl{os.getpid()}s"
    names = [f"tl{os.getpid()}n{number}" for number in range(count)]
    try:
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"p{number}", "netns", bridge)
            ip("-n", bridge, "link", "set", f"p{number}", "master", "br0")
            ip("-n", bridge, "link", "set", f"p{number}", "up")
            ip("-n", name, "addr", "add", f"10.78.0.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in (*names, bridge):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Host:
    """One host with `launch run` on it, whose output is in `host-NUMBER.txt`."""

    def __init__(self, number: int, name: str, cwd: Path, words: Sequence[str]):
        self.number, self.name, self.cwd, self._words = number, name, cwd, words
        self.output = cwd / f"host-{number}.txt"
        self.start()

    def start(self) -> None:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "launch", "run", *self._words]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{self.cwd}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        launcher = psutil.Process(self.process.pid)
        return [launcher, *launcher.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the launcher and all below it, as a power cut or a frozen virtual machine reaches them."""
        for process in self.family():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def cut_off(self, *, again: bool) -> None:
        """Drop all packets from and to this host, or no more."""
        ip("-n", self.name, "link", "set", "eth0", "up" if again else "down")
