"""Processes of `launch run` die or freeze, and nobody touches it: the run goes on by itself, with the same bits."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from faulty import FAULTY
from needs import need_memory_folder
from paths import REPOSITORY
from patience import HANG, wait_until
from soak import only_in_soak

from trainlib.errors import WrongDeviceError
from trainlib.runs.attempt.status import read_run
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints.snapshots import FIRST_STEPS

pytestmark = pytest.mark.slow

EVERY = 4
HANG_SECONDS = 12
ELASTIC = ("train.reproducibility=elastic", "train.virtual_shards=4")
WORLDS = [(1, ()), pytest.param(2, (), marks=only_in_soak), (2, ELASTIC), pytest.param(4, ELASTIC, marks=only_in_soak)]
SEVERAL: list[tuple[int, tuple[str, ...]]] = [(2, ()), (2, ELASTIC), (4, ELASTIC)]
CRASHES = [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "images"
    tiny.make_images(root)
    return root


@dataclass
class Launched:
    """A run under `launch run`, with options, begun in a folder."""

    cwd: Path
    training: list[str]
    world_size: int
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = [sys.executable, "-m", "launch", "run", *self.training, "--processes", str(self.world_size)]
        variables = {"PYTHONPATH": f"{self.cwd}{os.pathsep}{REPOSITORY}", "CUDA_VISIBLE_DEVICES": ""}
        with (self.cwd / "console.txt").open("ab") as console:
            self.process = subprocess.Popen(
                [*words, *self.options],
                cwd=self.cwd,
                env=os.environ | variables | self.environment,
                stdout=console,
                stderr=console,
            )

    @property
    def console(self) -> str:
        return (self.cwd / "console.txt").read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=10 * HANG)

    def starts(self) -> int:
        return len(tiny.attempts(self.cwd, "start"))

    def ranks(self) -> list[psutil.Process]:
        """Its ranks, and the agent that has started them where there are several."""
        children = psutil.Process(self.process.pid).children()
        if self.world_size == 1 or not children:
            return children
        return [*children[0].children(), *children]

    def wait_for_step(self, step: int) -> None:
        self._wait(lambda: tiny.last_step(self.cwd) >= step)

    def wait_for_start(self, number: int) -> None:
        self._wait(lambda: self.starts() >= number)

    def _wait(self, has_come: Callable[[], bool]) -> None:
        def is_so() -> bool:
            assert has_come() or self.process.poll() is None, self.console
            return has_come()

        wait_until(is_so)


def whole_run(training: list[str], cwd: Path, world_size: int) -> None:
    assert ranks.train(training, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)


@pytest.mark.parametrize(("world_size", "more"), [pytest.param(1, (), marks=only_in_soak), *WORLDS[1:]])
def test_killed_ranks_come_back_and_no_bit_changes(
    tmp_path: Path, images: Path, world_size: int, more: tuple[str, ...]
) -> None:
    training = tiny.arguments(images, 24, EVERY, *more)
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    whole_run(training, whole, world_size)
    launched = Launched(killed, training, world_size)
    for number, step in enumerate((6, 30), 1):
        launched.wait_for_step(step)
        launched.ranks()[-1 if number == 2 else 0].send_signal(CRASHES[number])
        launched.wait_for_start(number + 1)
    assert launched.wait() == 0, launched.console
    tiny.assert_same_result(killed, whole)
    assert launched.console.count("starting again from step") == 2
    assert "restart 1 of 3" in launched.console
    starts = tiny.attempts(killed, "start")
    assert [start.get("restart") for start in starts] == [None, 1, 1]
    assert {start.get("cause") for start in starts[1:]} == {"killed"}
    assert "Traceback" not in launched.console


@pytest.mark.parametrize(("world_size", "more"), WORLDS[:2])
def test_a_frozen_rank_is_named_and_replaced(
    tmp_path: Path, images: Path, world_size: int, more: tuple[str, ...]
) -> None:
    training = tiny.arguments(images, 12, EVERY, f"train.hang_seconds={HANG_SECONDS}", *more)
    launched = Launched(tmp_path, training, world_size)
    launched.wait_for_step(6)
    victim = launched.ranks()[world_size - 1]
    rank = victim.environ().get("RANK", "0")
    victim.suspend()
    assert launched.wait() == 0, launched.console
    assert f"rank {rank} was frozen for too long" in launched.console
    assert [line.get("cause") for line in tiny.attempts(tmp_path, "start")] == [None, "hang"]


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=only_in_soak)])
@pytest.mark.parametrize(
    ("fault", "every", "starts"), [("raise", 5, 1), ("kill", 5, 2), pytest.param("kill", 4, 4, marks=only_in_soak)]
)
def test_a_fault_that_repeats_ends_the_run(
    tmp_path: Path, images: Path, world_size: int, fault: str, every: int, starts: int
) -> None:
    """An exception at once; a kill in the same step after the second time, where both starts finished a step."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    variables = {"FAULT": fault, "FAULT_RANK": str(world_size - 1)}
    training = tiny.arguments(images, 12, every, "checkpoint.best=null")  # which would be that of step 16
    launched = Launched(tmp_path, training, world_size, environment=variables)
    code = launched.wait()
    assert launched.starts() == starts, launched.console
    assert code == (1 if fault == "raise" else 137)
    assert launched.console.count("starting again from step") == starts - 1
    assert ("it repeats, and is not chance" in launched.console) == (starts == 2)
    assert ("give more with --restarts" in launched.console) == (starts == 4)
    assert ("a mistake in the model" in launched.console) == (fault == "raise")


@pytest.mark.parametrize(("world_size", "more"), [(1, ()), *(pytest.param(*w, marks=only_in_soak) for w in SEVERAL)])
def test_what_was_done_since_the_newest_snapshot_is_all_that_is_done_again(
    tmp_path: Path, images: Path, world_size: int, more: tuple[str, ...]
) -> None:
    need_memory_folder()
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    training = tiny.arguments(images, 24, 1000, "checkpoint.best=null", *more)
    whole_run(training, whole, world_size)
    (killed / "sitecustomize.py").write_text(FAULTY)
    launched = Launched(killed, training, world_size, environment={"FAULT": "kill after a snapshot", "FAULT_RANK": "0"})
    assert launched.wait() == 0, launched.console
    tiny.assert_same_result(killed, whole)
    (step,) = [start["from_step"] for start in tiny.attempts(killed, "start")[1:]]
    assert step >= FIRST_STEPS
    assert f"starting again from step {step}, restart 1 of 3" in launched.console


@pytest.mark.parametrize("more", [ELASTIC, ()], ids=["elastic", "exact"])
def test_a_device_that_computes_wrongly_is_left_out_in_elastic_mode(
    tmp_path: Path, images: Path, more: tuple[str, ...]
) -> None:
    """One of three ranks has a wrong gradient in step 17, which is audited then; without it, two go on."""
    whole, broken = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "broken")
    training = tiny.arguments(images, 6, EVERY, *more, "train.audit=1")
    (broken / "sitecustomize.py").write_text(FAULTY)
    launched = Launched(broken, training, 3, environment={"FAULT": "flip", "FAULT_RANK": "1"})
    code = launched.wait()
    assert "step 17 was not applied" in launched.console
    assert "a third computation says that the wrong one is rank 1 on" in launched.console
    sizes = [start["world_size"] for start in tiny.attempts(broken, "start")]
    if not more:
        assert (code, sizes) == (WrongDeviceError.exit_code, [3])
        return
    assert (code, sizes) == (0, [3, 2]), launched.console
    whole_run(training, whole, 1)
    tiny.assert_same_result(broken, whole)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=only_in_soak), 2])
@pytest.mark.parametrize("how", ["cancel", "SIGTERM", "launcher"])
def test_who_wants_an_end_gets_it(tmp_path: Path, images: Path, world_size: int, how: str) -> None:
    launched = Launched(tmp_path, tiny.arguments(images, 400, EVERY), world_size)
    launched.wait_for_step(6)
    family = [psutil.Process(launched.process.pid), *psutil.Process(launched.process.pid).children(recursive=True)]
    if how == "cancel":
        words = [sys.executable, "-m", "launch", "cancel", "run"]
        subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True)
    else:
        launched.process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    code = launched.wait()
    _, left = psutil.wait_procs(family, timeout=HANG)
    assert not left
    assert code == {"cancel": 137, "SIGTERM": 75, "launcher": -9}[how], launched.console
    assert launched.starts() == 1
    assert not (tmp_path / "runs/run/STOP").exists()


@only_in_soak
@pytest.mark.parametrize(("world_size", "more"), WORLDS)
@pytest.mark.parametrize(("every", "gap"), [(EVERY, EVERY), (100, 40)])
def test_random_deaths_that_nobody_looks_after_change_no_bit(
    tmp_path: Path, images: Path, world_size: int, more: tuple[str, ...], every: int, gap: int
) -> None:
    """HEAL_KILLS times a random process is killed or frozen; only a killed launcher is started again by hand.

    Prints the seconds from each kill, or from when a freeze was noticed, to the next step, and the steps done again,
    beside those that it would have been without snapshots.

    gap   steps from a start to the next kill, on average
    """
    kills = int(os.environ.get("HEAL_KILLS", "70"))
    choice = random.Random(18 + world_size)
    training = tiny.arguments(images, (gap + 20) * kills // 4 + 12, every, *more, "train.hang_seconds=20")
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    whole_run(training, whole, world_size)
    options = ("--restarts", "1000")
    launched = Launched(killed, training, world_size, options)
    seconds: list[float] = []
    again: list[int] = []
    since_checkpoint: list[int] = []
    for _ in range(kills):
        step = tiny.last_step(killed) + choice.randint(1, 2 * gap)
        launched.wait_for_step(step)
        time.sleep(choice.uniform(0.0, 0.1))
        reached, starts = tiny.last_step(killed), launched.starts()
        is_launcher = choice.random() < 0.15
        is_frozen = not is_launcher and choice.random() < 0.15
        victim = psutil.Process(launched.process.pid) if is_launcher else choice.choice(launched.ranks())
        victim.send_signal(signal.SIGSTOP if is_frozen else choice.choice(CRASHES))
        since = time.monotonic() + (20.0 if is_frozen else 0.0)
        if is_launcher:
            launched.wait()
            wait_until(lambda: read_run(killed / "runs/run").status != "running")
            launched = Launched(killed, training, world_size, options)
        launched.wait_for_start(starts + 1)
        begun = tiny.attempts(killed, "start")[-1]["from_step"]
        again.append(max(0, reached - begun))
        newest = max(steps_in(killed / "runs/run/checkpoints"), default=0)
        since_checkpoint.append(max(0, reached - min(newest, begun)))
        launched.wait_for_step(begun + 1)
        seconds.append(time.monotonic() - since)
    assert launched.wait() == 0, launched.console
    tiny.assert_same_result(killed, whole)
    seconds.sort()
    print(
        f"\n{kills} deaths, {world_size} ranks, a checkpoint each {every} steps: {statistics.median(seconds):.1f} s to "
        f"the next step (median), {seconds[int(0.95 * len(seconds))]:.1f} s (95th percentile); steps again (mean): "
        f"{statistics.mean(again):.1f}, from the newest checkpoint {statistics.mean(since_checkpoint):.1f}"
    )
