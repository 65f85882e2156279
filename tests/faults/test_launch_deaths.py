"""Two real ranks under `launch run`, and SIGKILL or SIGSTOP to each of its processes: all of them end, and soon."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ranks
from paths import REPOSITORY
from patience import HANG
from soak import only_in_soak

from trainlib.runs.attempt.status import Run, read_run

pytestmark = pytest.mark.slow


TRAINING = [
    "quickstart",
    "name=x",
    "data={name: synthetic, limit: 640, val_fraction: 0.002}",
    "scheduler=null",
    "train={steps: 1000000, batch_size: 32}",
    "checkpoint={every: 20st}",
    "tracking={tensorboard: false, wandb: {mode: disabled}}",
]


class Launched:
    """`launch run` with two ranks, or a command of the same form, and all processes below it."""

    def __init__(self, cwd: Path, *more: str, by_hand: bool = False):
        self.cwd = cwd
        self._environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        self._words = [sys.executable, "-m", "launch", "run", *TRAINING, "--processes", "2", "--restarts", "0", *more]
        with (cwd / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                ["sh", "-c", f"exec {self._printed()}"] if by_hand else self._words,
                cwd=cwd,
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        self.processes: list[psutil.Process] = []

    def _printed(self) -> str:
        """The command that --dry-run prints."""
        words = [*self._words, "--dry-run"]
        done = subprocess.run(words, cwd=self.cwd, env=self._environment, capture_output=True, text=True, check=True)
        return f"env {done.stdout}"

    @property
    def output(self) -> str:
        return (self.cwd / "output.txt").read_text()

    @property
    def exit_code(self) -> int:
        return self.process.wait(1)

    @property
    def run(self) -> Run:
        return read_run(self.cwd / "runs" / "x")

    def find_processes(self) -> None:
        """Remember every process of the run as it is now."""
        top = psutil.Process(self.process.pid)
        self.processes = [top, *top.children(recursive=True)]

    def agent(self) -> psutil.Process:
        """`accelerate launch`, the parent of the ranks."""
        return psutil.Process(self.rank(0).ppid())

    def rank(self, number: int) -> psutil.Process:
        return next(process for process in self.processes if _environ(process).get("RANK") == str(number))

    def wait_until_it_starts(self) -> None:
        """Rank 0 has begun with the run directory, and has torch, data and the other rank before it."""
        self._wait_for((self.cwd / "runs" / "x" / "lock").exists)

    def wait_until_it_trains(self) -> None:
        self._wait_for(lambda: bool(self.run.checkpoints))

    def left_after(self, seconds: float) -> list[psutil.Process]:
        """Wait until all processes of the run have ended; those that have not."""
        deadline = time.monotonic() + seconds
        while (left := [process for process in self.processes if _is_alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANG
        self.find_processes()
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
            self.find_processes()


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts a run in the test's directory. Whatever is left of it is killed after the test."""
    started = []

    def start(*more: str, by_hand: bool = False) -> Launched:
        started.append(Launched(tmp_path, *more, by_hand=by_hand))
        return started[-1]

    yield start
    for launched in started:
        for process in launched.processes:
            if _is_alive(process):
                process.kill()
        launched.process.kill()
        launched.process.wait()


def assert_stopped_with_checkpoint(launched: Launched) -> None:
    end = launched.run.attempts[-1]
    assert (end["event"], end["status"]) == ("end", "stopped")
    assert max(launched.run.checkpoints) == end["step"]


def assert_goes_on(launched: Launched) -> None:
    """Resumed for a few steps, the run goes on from its newest checkpoint."""
    newest = max(launched.run.checkpoints)
    words = [*TRAINING, f"train.steps={newest + 3}", "--resume"]
    assert ranks.train(words, world_size=2, cwd=launched.cwd) == [0, 0], ranks.console(launched.cwd)
    start, end = launched.run.attempts[-2:]
    assert (start["from_step"], end["status"], end["step"]) == (newest, "completed", newest + 3)


@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        ("launcher", "training"),
        ("agent", "starting"),
        pytest.param("launcher", "starting", marks=only_in_soak),
        pytest.param("agent", "training", marks=only_in_soak),
    ],
)
def test_without_launcher_or_agent_the_ranks_end(victim: str, moment: str, launch: Callable[..., Launched]) -> None:
    """Where they train, they stop with a checkpoint; where they wait for each other to come up, they are ended."""
    launched = launch()
    if moment == "starting":
        launched.wait_until_it_starts()
    else:
        launched.wait_until_it_trains()
    (launched.agent() if victim == "agent" else launched.process).kill()
    assert launched.left_after(HANG) == []
    if victim == "agent":
        assert launched.exit_code == 128 + signal.SIGKILL
        assert "error: accelerate launch was killed by SIGKILL; run the same command to continue" in launched.output
    if moment == "training":
        assert_stopped_with_checkpoint(launched)
        assert_goes_on(launched)


@only_in_soak
def test_ranks_without_our_launcher_notice_that_their_agent_died(launch: Callable[..., Launched]) -> None:
    launched = launch(by_hand=True)
    launched.wait_until_it_trains()
    assert launched.agent().pid == launched.process.pid
    launched.process.kill()
    assert launched.left_after(HANG) == []
    assert launched.run.attempts[-1]["reason"] == "the launcher died"
    assert_stopped_with_checkpoint(launched)


def test_when_a_rank_is_killed_all_end_and_it_is_named(launch: Callable[..., Launched]) -> None:
    launched = launch()
    launched.wait_until_it_trains()
    launched.rank(1).kill()
    assert launched.left_after(HANG) == []
    assert launched.exit_code == 128 + signal.SIGKILL
    log = Path("runs/x/logs/rank-1.log")
    assert f"error: rank 1 on {socket.gethostname()} was killed by SIGKILL; its log is {log}" in launched.output


def test_when_a_rank_hangs_all_end_and_the_stacks_are_kept(launch: Callable[..., Launched]) -> None:
    hang_seconds = 15  # longer than a step or a checkpoint takes where other programs hold the processor and the disk
    launched = launch(f"train.hang_seconds={hang_seconds}")
    launched.wait_until_it_trains()
    launched.rank(1).suspend()
    assert launched.left_after(HANG) == []
    assert launched.exit_code not in (0, 2, 75)
    frozen = "was frozen for too long, as by SIGSTOP (train.hang_seconds)"
    assert f"error: rank 1 on {socket.gethostname()} {frozen}; its log is runs/x/logs/rank-1.log" in launched.output
    log = (launched.cwd / "runs/x/logs/rank-0.log").read_text()
    assert f"no step was finished for {hang_seconds} s (train.hang_seconds)" in log, launched.output
    assert "in train_step" in log
