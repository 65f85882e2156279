"""The program that starts the ranks of a job with a range of nodes: `python -m launch.slurm.steps RUN LOG srun ...`.

Every node has a step of its own, in which `launch run --nodes MIN:MAX` meets those of the others. So a node that is
lost ends no other one, and its step is started again while the others go on. The batch script train.sbatch calls it;
its exit code is that of the run, and what it prints to stderr is what `srun` said of the run's end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launch.local.nodes.board import Board
from launch.local.nodes.board_records import Member
from launch.slurm.head import node_names
from trainlib.errors import EXIT_FAILURE, EXIT_OK, TrainlaunchError
from trainlib.runs.attempt.stop_request import read_stop_file
from trainlib.runs.records.reasons import EndCode

BEAT_SECONDS = 5.0  # between two signs of life for the nodes, which put the job back where there is none for a minute
BRIEF_SECONDS = 30.0  # a step that is lost sooner has not come to run
FEW_TRIES = 3  # for a job in which no step comes to run
SILENT_SECONDS = 60.0  # without a heartbeat of a node's `launch run`: srun does not notice that a slurmstepd was killed
CLOSING_SECONDS = 30.0  # for steps to end, once the run is over
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.5
_STEP_SECONDS = 60  # for the controller to begin a step
_MOST_PAUSE = 60.0
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")


def own_code(code: int, said: str) -> int | None:
    """Return the code with which a node's `launch run` has ended by itself; None where its step was lost.

    code   srun's
    said   what srun printed: it names the exit code of a task that failed
    """
    if code == EXIT_OK:
        return code
    found = _EXIT_CODE.search(said)
    return int(found[1]) if found and int(found[1]) < 128 else None  # from 128 on, a signal has ended it


def pause_before_next(tries: int) -> float:
    """Return the seconds before a step is started again that was lost so often, each time before it came to run."""
    return min(5.0 * 2.0 ** max(0, tries - 1), _MOST_PAUSE)


@dataclass
class Step:
    """One node's step, over all its starts.

    number   of the node in this job
    tries    how often it was lost before it came to run, since it last did
    code     with which its `launch run` has ended by itself; None where it has not
    before   the machines that were there at this node when the step was started last, dead ones as a rule
    beats    the heartbeats of those that came since; `silence`: seconds without a change, up to `looked`
    """

    node: str
    number: int
    process: subprocess.Popen[bytes] | None = None
    tries: int = 0
    code: int | None = None
    began: float = 0.0
    due: float = 0.0
    before: frozenset[str] = frozenset()
    beats: frozenset[tuple[str, int]] = frozenset()
    silence: float = 0.0
    looked: float = 0.0
    words: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def start(self, command: Sequence[str], log: str, members: Sequence[Member]) -> None:
        """Start srun for this node. Raises OSError where there is none.

        members   all machines that have a file
        """
        options = ["--nodes=1", "--ntasks=1", f"--nodelist={self.node}", "--overlap", f"--immediate={_STEP_SECONDS}"]
        words = [command[0], *options, f"--output={log}-node-{self.number}.out", *command[1:]]
        self.words = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=self.words)
        self.began = time.monotonic()
        self.before = frozenset(member.id for member in members if member.host == self.node)
        self.beats, self.silence = frozenset(), 0.0

    def is_silent(self, members: Sequence[Member]) -> bool:
        """Return True if a `launch run` has come to this node, and is not heard of any more, but srun waits for it."""
        beats = frozenset((m.id, m.beat) for m in members if m.host == self.node and m.id not in self.before)
        now = time.monotonic()
        # Time in which this process was frozen, or waited for the disk, is not counted.
        passed = min(now - self.looked, 2 * _POLL_SECONDS)
        self.silence = self.silence + passed if beats and beats == self.beats else 0.0
        self.beats, self.looked = beats, now
        return self.process is not None and self.silence > SILENT_SECONDS

    def said(self) -> str:
        """Return what srun has printed since this step was started last."""
        self.words.seek(0)
        return self.words.read().decode(errors="replace")

    def look(self, *, is_last: bool) -> str | None:
        """Note whether srun has ended; return what it has said then, None where it has not.

        is_last   it is not to be started again
        """
        if self.process is None or self.process.poll() is None:
            return None
        now, said = time.monotonic(), self.said()
        self.code = own_code(self.process.returncode, said)
        if self.code is None:
            self.tries = self.tries + 1 if now - self.began < BRIEF_SECONDS else 0
            self.due = now + pause_before_next(self.tries)
            again = "" if is_last else f"; it is started again in {self.due - now:g} s"
            print(f"{self.node}: its step was lost (srun's exit code {self.process.returncode}){again}", flush=True)
        self.process = None
        return said

    def end(self) -> None:
        """End srun, which waits for a node that does not answer."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_KILL_SECONDS)
            self.process.kill()
            self.process.wait()  # `look` says that it is lost


class Steps:
    """The steps of all nodes of a job.

    directory   of the run
    log         the beginning of the names of this start's logs
    command     srun and its words, without what tells one node from another
    """

    def __init__(self, directory: Path, log: str, command: Sequence[str], nodes: Sequence[str]):
        self._directory, self._log, self._command = directory, log, command
        self._steps = [Step(node, number) for number, node in enumerate(nodes)]
        self._board = Board(directory)
        newest = self._board.newest()
        self._first = newest.number if newest else 0  # what was decided before concerns others
        self._asked = False
        self._last: tuple[int, str] | None = None  # the `launch run` that ended last: its code, and what srun said

    def run(self) -> int:
        """Keep a step on every node until the run is over; return the run's exit code."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._ask)  # and not ignored, which srun would inherit
        with Beat(f"{self._log}.beat") as beat:
            while (code := self._code_of_run()) is None and not self._is_hopeless():
                with suppress(OSError):  # the disk is away
                    members = list(self._board.members().values())
                    for step in self._steps:
                        beat.renew()  # each may take some seconds to be ended
                        self._keep(step, members)
                beat.renew()
                time.sleep(_POLL_SECONDS)
            return self._close(code, beat)

    def _ask(self, *_: object) -> None:
        self._asked = True  # the batch script and the ranks heed it: only nothing is started any more

    def _keep(self, step: Step, members: Sequence[Member]) -> None:
        """Start the step of a node where none runs and its `launch run` has not ended by itself."""
        is_last = self._is_stopping()
        if step.is_silent(members):
            step.end()
        said = step.look(is_last=is_last)
        if said is not None:
            print(said, end="", flush=True)
            self._last = self._last if step.code is None else (step.code, said)
        is_due = step.began == 0.0 or (step.due <= time.monotonic() and not is_last)
        if step.process is None and step.code is None and is_due:
            step.start(self._command, self._log, members)

    def _code_of_run(self) -> int | None:
        """Return the run's exit code, as its machines have agreed on it; None as long as it is not over."""
        with suppress(OSError):  # the disk is away
            newest = self._board.newest()
            if newest is not None and newest.number > self._first and newest.is_over:
                return newest.code
        return None

    def _is_stopping(self) -> bool:
        stop = self._directory / "STOP"
        with suppress(OSError):  # the disk is away
            return self._asked or (stop.exists() and read_stop_file(stop).code is not EndCode.REGROUP)
        return False

    def _is_hopeless(self) -> bool:
        """Return True if no step runs, and none will: all have ended by themselves, or do not come to run."""
        is_last = self._is_stopping()
        return all(
            step.process is None and (step.code is not None or step.tries >= FEW_TRIES or (is_last and step.began))
            for step in self._steps
        )

    def _close(self, code: int | None, beat: Beat) -> int:
        """Wait for the steps to end, end those that do not, and tell which nodes are lost; return the exit code."""
        deadline = time.monotonic() + CLOSING_SECONDS
        if code is None:
            code, words = self._last or (EXIT_FAILURE, "".join(step.said() for step in self._steps))
            told = [words]
        else:
            told = []
        while any(step.process for step in self._steps) and time.monotonic() < deadline:
            told += [said for step in self._steps if (said := step.look(is_last=True)) is not None]
            beat.renew()
            time.sleep(_POLL_SECONDS)
        for step in self._steps:
            beat.renew()
            step.end()
        told += [f"node failure on {step.node} : its step was lost\n" for step in self._steps if step.code is None]
        sys.stderr.write("".join(told))
        return code


class Beat:
    """A file that changes every few seconds, as long as the batch script's node lives, for the other nodes."""

    def __init__(self, path: str):
        self._path, self._count, self._renewed = path, 0, float("-inf")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)

    def renew(self) -> None:
        """Change it, if it is time to; in its place, which works on a full disk as well."""
        if time.monotonic() - self._renewed > BEAT_SECONDS:
            self._renewed, self._count = time.monotonic(), self._count + 1
            with suppress(OSError):
                os.pwrite(self._descriptor, b"%012d\n" % self._count, 0)
                os.fsync(self._descriptor)  # on NFS, the other nodes would see it half a minute later

    def __enter__(self) -> Beat:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
        with suppress(OSError):
            os.unlink(self._path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    directory, log, *command = sys.argv[1:] if arguments is None else arguments
    try:
        return Steps(Path(directory), log, command, node_names(os.environ.get("SLURM_JOB_NODELIST"))).run()
    except TrainlaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
