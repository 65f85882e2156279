"""The runs of a sweep here, one after another, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from launch.sweep.grid import Element, short_keys, value_text
from trainlib.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from trainlib.runs import RUNS
from trainlib.runs.stop_request import STOP_SIGNALS


def run_command(element: Element, options: Sequence[str]) -> list[str]:
    """What runs a prepared element: its directory holds its configuration."""
    return [sys.executable, "-m", "launch", "run", str(RUNS / element.name / "config.yaml"), *options]


def run_here(elements: Sequence[Element], options: Sequence[str]) -> int:
    """Run the elements, all prepared; the exit code.

    options   more of `launch run`
    A signal, Ctrl-C the first of them, is passed on: the run that is under way writes a checkpoint, and no other is
    begun (75); after a second Ctrl-C that run ends at once (130). A run that fails does not keep the others from
    running; the sweep then ends with the first one's code. One that `launch stop` ended counts as stopped (75).
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
    """Tell which runs failed, from the exit codes by name; the exit code of the whole."""
    failed = {name: code for name, code in codes.items() if code not in (EXIT_OK, EXIT_STOPPED)}
    for name, code in failed.items():
        print(f"error: {name} ended with exit code {code}: launch status {name}", file=sys.stderr)
    return next(iter(failed.values()), max(codes.values(), default=EXIT_OK))


class _Relay:
    """Runs one process at a time, in a session of its own: a Ctrl-C in the terminal reaches it only through here."""

    def __init__(self) -> None:
        self.asked = False
        self.asked_again = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, words: Sequence[str]) -> int:
        """The exit code, as a shell would give it."""
        if self.asked:
            return EXIT_STOPPED
        self._child = subprocess.Popen(words, start_new_session=True)
        if self.asked:  # while the process was being made
            self._child.terminate()
        code = self._child.wait()
        return code if code >= 0 else 128 - code

    def handle(self, number: int, frame: FrameType | None) -> None:
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
