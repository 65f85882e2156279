"""Trains the runs of a sweep on this machine, one after another, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from launch.sweep.grid import Element, short_keys, value_text
from trainlib.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from trainlib.isolation import child_variables
from trainlib.runs import RUNS
from trainlib.runs.attempt.stop_request import STOP_SIGNALS
from trainlib.runs.terminal.printable import print_error


def run_command(element: Element, options: Sequence[str]) -> list[str]:
    """Return the command that trains an element whose run directory holds its configuration."""
    return [sys.executable, "-m", "launch", "run", str(RUNS / element.name / "config.yaml"), *options]


def run_here(elements: Sequence[Element], options: Sequence[str]) -> int:
    """Train the elements, whose run directories are prepared; return the exit code of the whole.

    options   further options of `launch run`
    A stop signal, such as Ctrl-C, is passed on: the current run writes a checkpoint, and no other is started (75);
    after a second Ctrl-C that run ends at once (130). A run that fails does not keep the others from being trained;
    the exit code is then that of the first failure. A run that `launch stop` ended counts as stopped (75).
    """
    codes: dict[str, int] = {}
    with _passing_signals_on() as relay:
        for number, element in enumerate(elements, 1):
            varied = short_keys(element.values)
            said = " ".join(f"{varied[key]}={value_text(value)}" for key, value in element.values.items())
            print(f"[{number}/{len(elements)}] {element.name}: {said}", file=sys.stderr)
            codes[element.name] = relay.run(run_command(element, options))
            if relay.asked:
                break
    if relay.asked:
        return EXIT_INTERRUPTED if relay.asked_again else EXIT_STOPPED
    return report(codes)


def report(codes: Mapping[str, int]) -> int:
    """Print which runs failed, and return the exit code of the whole.

    codes   each run's exit code, by its name
    """
    failed = {name: code for name, code in codes.items() if code not in (EXIT_OK, EXIT_STOPPED)}
    for name, code in failed.items():
        print_error(f"{name} ended with exit code {code}: launch status {name}")
    return next(iter(failed.values()), max(codes.values(), default=EXIT_OK))


class _Relay:
    """Runs one process at a time and passes stop signals on to it, in a session that Ctrl-C does not reach."""

    def __init__(self) -> None:
        self.asked = False
        self.asked_again = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, words: Sequence[str]) -> int:
        """Run a command to its end; return its exit code, 128 + the signal's number where a signal ended it."""
        if self.asked:
            return EXIT_STOPPED
        self._child = subprocess.Popen(words, env={**os.environ, **child_variables(os.environ)}, start_new_session=True)
        if self.asked:  # while the process was being made
            self._child.terminate()
        code = self._child.wait()
        return code if code >= 0 else 128 - code

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a stop signal: remember it, and pass it on to the process."""
        self.asked_again = self.asked_again or (self.asked and number == signal.SIGINT)
        self.asked = True
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)


@contextmanager
def _passing_signals_on() -> Iterator[_Relay]:
    relay = _Relay()
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, relay.handle) for number in numbers}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
