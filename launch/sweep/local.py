"""Trains the runs of a sweep on this machine, one or several at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from launch.sweep.file.grid import Element
from launch.sweep.file.names import short_keys, value_text
from launch.sweep.shares import Shares, begun
from trainlib.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from trainlib.platform.isolation import child_variables
from trainlib.runs import RUNS
from trainlib.runs.attempt.stop_request import STOP_SIGNALS
from trainlib.runs.terminal.printable import print_error

_POLL_SECONDS = 0.05


def run_command(element: Element, options: Sequence[str]) -> list[str]:
    """Return the command that trains an element whose run directory holds its configuration."""
    return [sys.executable, "-m", "launch", "run", str(RUNS / element.name / "config.yaml"), *options]


def run_here(elements: Sequence[Element], shares: Shares, parallel: int = 1, output: Path | None = None) -> int:
    """Train the elements, whose run directories are prepared; return the exit code of the whole.

    shares     what each of them gets of the machine
    parallel   the number of runs at a time
    output     the folder for what the runs print; None: they print here
    A stop signal, such as Ctrl-C, is passed on: the runs under way write a checkpoint, and no other is started (75);
    after a second Ctrl-C they end at once (130). A run that fails does not keep the others from being trained;
    the exit code is then that of the first failure. A run that `launch stop` ended counts as stopped (75).
    """
    codes: dict[str, int] = {}
    waiting = list(enumerate(elements, 1))
    with passing_signals_on(parallel) as pool:
        while pool.running or (waiting and not pool.asked):
            if waiting and pool.has_room and not pool.asked:
                number, element = waiting.pop(0)
                print(f"[{number}/{len(elements)}] {element.name}: {values_text(element)}", file=sys.stderr)
                start(pool, element, shares, output=output)
                continue
            name, code = pool.wait()
            shares.give_back(name)
            codes[name] = EXIT_STOPPED if code is None else code
    if pool.asked:
        return EXIT_INTERRUPTED if pool.asked_again else EXIT_STOPPED
    return report(codes)


def start(
    pool: Pool, element: Element, shares: Shares, variables: Mapping[str, str] | None = None, output: Path | None = None
) -> None:
    """Start the training of an element, whose run directory is prepared.

    variables   of the environment, beside those that share the machine out
    output      the folder for what the run prints; None: it prints here
    """
    is_elastic = element.config.train.reproducibility == "elastic"
    options, shared = shares.take(element.name, begun(RUNS / element.name), is_elastic=is_elastic)
    file = None if output is None else output / f"{element.name}.txt"
    pool.start(element.name, run_command(element, options), {**shared, **(variables or {})}, file)


def values_text(element: Element) -> str:
    """Return what sets an element apart, for a line: `lr=0.1 seed=0`."""
    varied = short_keys(element.values)
    return " ".join(f"{varied[key]}={value_text(value)}" for key, value in element.values.items())


def report(codes: Mapping[str, int]) -> int:
    """Print which runs failed, and return the exit code of the whole.

    codes   each run's exit code, by its name
    """
    failed = {name: code for name, code in codes.items() if code not in (EXIT_OK, EXIT_STOPPED)}
    for name, code in failed.items():
        print_error(f"{name} ended with exit code {code}: launch status {name}")
    return next(iter(failed.values()), max(codes.values(), default=EXIT_OK))


class Pool:
    """Runs processes at the same time and passes stop signals on to them, in sessions that Ctrl-C does not reach."""

    def __init__(self, size: int) -> None:
        self.asked = False
        self.asked_again = False
        self._size = size
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._adopted: dict[str, tuple[Callable[[], bool], Callable[[], None]]] = {}

    @property
    def running(self) -> set[str]:
        """Return the names of what was started, or adopted, and has not ended."""
        return {*self._children, *self._adopted}

    @property
    def has_room(self) -> bool:
        """Return True if another one may be started."""
        return len(self.running) < self._size

    def start(self, name: str, words: Sequence[str], variables: Mapping[str, str], output: Path | None = None) -> None:
        """Start a command.

        variables   of its environment, beside this one's
        output      a file, to which what it prints is appended; None: it prints here
        """
        environment = {**os.environ, **child_variables(os.environ), **variables}
        if output is None:
            child = subprocess.Popen(words, env=environment, start_new_session=True)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("ab") as file:
                child = subprocess.Popen(words, env=environment, start_new_session=True, stdout=file, stderr=file)
        self._children[name] = child
        if self.asked:  # while the process was being made
            child.terminate()

    def adopt(self, name: str, is_over: Callable[[], bool], ask_to_stop: Callable[[], None]) -> None:
        """Wait for a run, too, that a process trains which this one has not started."""
        self._adopted[name] = is_over, ask_to_stop

    def wait(self) -> tuple[str, int | None]:
        """Wait for the first to end; return its name and exit code, 128 + the signal's number where one ended it.

        The code of one that was adopted is not known: None.
        """
        told = False
        while True:
            for name, child in self._children.items():
                if (code := child.poll()) is not None:
                    del self._children[name]
                    return name, code if code >= 0 else 128 - code
            for name, (is_over, ask_to_stop) in self._adopted.items():
                if self.asked and not told:
                    ask_to_stop()
                if self.asked_again or is_over():
                    del self._adopted[name]
                    return name, None
            told = self.asked
            time.sleep(_POLL_SECONDS)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a stop signal: remember it, and pass it on to the processes."""
        self.asked_again = self.asked_again or (self.asked and number == signal.SIGINT)
        self.asked = True
        for child in [*self._children.values()]:
            if child.returncode is None:
                child.send_signal(number)


@contextmanager
def passing_signals_on(size: int) -> Iterator[Pool]:
    """Context manager: a pool for so many processes, which gets the stop signals."""
    pool = Pool(size)
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, pool.handle) for number in numbers}
    try:
        yield pool
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
