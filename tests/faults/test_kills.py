"""Killed at any moment, again and again: the same bits in the end, and never more lost than one checkpoint interval.

KILLS in the environment sets how often, in place of each case's own number.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import faults
import psutil
import pytest
import ranks
import tiny
import torch
from patience import HANG
from soak import SOAK, only_in_soak, rounds

from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.manager import CheckpointManager

EVERY = 4
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills") / "images"
    tiny.make_images(root)
    return root


def assert_little_was_lost(cwd: Path, reached: list[int], intervals: int = 1) -> None:
    """Each attempt went on at most so many intervals before the last row that the ones before it had written."""
    started = [line["from_step"] for line in tiny.attempts(cwd, "start")]
    for step, last in zip(started[1:], reached, strict=False):
        assert last - step <= intervals * EVERY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "background", "kills"),
    [
        (2, False, rounds(5, 200)),
        pytest.param(2, True, 50, marks=only_in_soak),
        pytest.param(1, False, 150, marks=only_in_soak),
        pytest.param(3, False, 100, marks=only_in_soak),
        pytest.param(4, True, 100, marks=only_in_soak),
    ],
)
def test_killed_at_random_and_resumed_is_the_same_in_every_bit(
    tmp_path: Path, images: Path, world_size: int, background: bool, kills: int
) -> None:
    kills = int(os.environ.get("KILLS", kills))
    choice = random.Random(20 + world_size)
    training = tiny.arguments(images, 3 * kills, EVERY, f"checkpoint.background={background}")
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    assert ranks.train(training, world_size=world_size, cwd=whole, timeout=10 * HANG) == [0] * world_size

    reached: list[int] = []
    for _ in range(kills):
        attempts = len(tiny.attempts(killed, "start"))
        moment = tiny.Moment(killed, EVERY, choice)
        under_way = ranks.start(ranks.main, training, world_size=world_size, cwd=killed)
        moment.wait(lambda: under_way.running)  # noqa: B023 - called at once
        victim, number = choice.randrange(world_size), choice.choice(DEADLY)
        under_way.signal(victim, number)
        codes = under_way.wait(closing=3.0)
        assert codes[victim] == -number, "the run was over before all the kills"
        if len(tiny.attempts(killed, "start")) > attempts:
            reached.append(tiny.last_step(killed))
    codes = ranks.train(training, world_size=world_size, cwd=killed, timeout=10 * HANG)
    assert codes == [0] * world_size, ranks.console(killed)
    tiny.assert_same_result(killed, whole)
    assert len(reached) > kills / 4  # many came to training, on a loaded machine too
    assert_little_was_lost(killed, reached, intervals=2 if background else 1)  # the one being written is lost, too


@only_in_soak
@pytest.mark.parametrize(
    ("world_size", "kills", "more"),
    [
        (2, 80, ()),
        (1, 50, ()),
        (3, 40, ("train.reproducibility=elastic",)),
        (4, 30, ("train.reproducibility=elastic",)),
    ],
)
def test_killed_under_the_real_launcher(
    tmp_path: Path, images: Path, world_size: int, kills: int, more: tuple[str, ...]
) -> None:
    """Any process of the run is killed: the launcher, Accelerate's agent or a rank; then all are gone soon."""
    kills = int(os.environ.get("KILLS", kills))
    choice = random.Random(30 + world_size)
    training = tiny.arguments(images, 3 * kills, EVERY, *more)
    whole, killed = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "killed")
    assert tiny.launch(training, whole, world_size).wait(timeout=10 * HANG) == 0, (whole / "console.txt").read_text()

    reached: list[int] = []
    for _ in range(kills):
        attempts = len(tiny.attempts(killed, "start"))
        moment = tiny.Moment(killed, EVERY, choice)
        launcher = tiny.launch(training, killed, world_size)
        ended = launcher.poll
        while len(tiny.attempts(killed, "start")) == attempts and ended() is None:
            time.sleep(0.02)
        moment.wait(lambda: ended() is None)  # noqa: B023 - called at once
        family = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        choice.choice(family).kill()
        _, left = psutil.wait_procs(family[1:], timeout=HANG)
        assert not left
        assert launcher.wait(timeout=HANG) != 0, "the run was over before all the kills"
        reached.append(tiny.last_step(killed))
    assert tiny.launch(training, killed, world_size).wait(timeout=10 * HANG) == 0, (killed / "console.txt").read_text()
    tiny.assert_same_result(killed, whole)
    assert_little_was_lost(killed, reached)


def state_of(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((5, 7), float(step)), "count": torch.tensor(step)}


def save(directory: Path, step: int) -> None:
    """Save a checkpoint and prune: at most two stay, and the best, which is that of step 1."""
    checkpoint_manager = CheckpointManager(directory, 2, {"world_size": 1})
    checkpoint_manager.save(Contents(step, state_of(step), {"progress": {"step": step}}, {"best_step": 1}))
    assert checkpoint_manager.problem(must_have=step) is None


def save_and_die(directory: Path, number: int) -> None:
    with faults.counted(faults.Calls(lambda call: call == number, faults.kill_here), directory):
        save(directory, 4)


def whole_steps(directory: Path) -> list[int]:
    """The steps whose checkpoints are whole and hold what they should."""
    steps = []
    for step, path in steps_in(directory).items():
        found = checkpoint.verify(path)
        assert all(torch.equal(found.model_state()[name], value) for name, value in state_of(step).items())
        assert found.trainer_state() == {"progress": {"step": step}}
        steps.append(step)
    return steps


def test_a_kill_at_every_point_of_saving_and_pruning_loses_nothing(tmp_path: Path) -> None:
    start = tiny.in_folder(tmp_path, "start")
    for step in (1, 2, 3):
        save(start, step)
    complete = tmp_path / "complete"
    shutil.copytree(start, complete)
    with faults.counted(faults.Calls(), complete) as calls:
        save(complete, 4)
    assert {name.split()[0] for name in calls.names} >= {"mkdir", "write", "fsync", "rename", "unlink", "rmdir"}

    for number in range(1, len(calls.names) + 1) if SOAK else faults.first_of_each(calls.names):
        directory, name = tmp_path / f"call-{number}", calls.names[number - 1]
        shutil.copytree(start, directory)
        assert ranks.run(save_and_die, directory, number, world_size=1, cwd=tmp_path) == [-signal.SIGKILL], name
        renamed = number > calls.names.index("rename .tmp-step-00000004") + 1
        pruned = number > calls.names.index("rename step-00000002") + 1
        left = [1, *([] if pruned else [2]), 3, *([4] if renamed else [])]
        assert whole_steps(directory) == left, name
        newest = checkpoint.newest(directory)
        assert newest is not None
        assert newest.step == left[-1]
        checkpoint.remove_partial(directory)
        save(directory, 5)
        assert whole_steps(directory) == [1, left[-1], 5]
        assert len(list(directory.iterdir())) == 3, "something half done is left"


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=only_in_soak), 2])
def test_a_training_killed_at_any_call_that_writes_goes_on_bitwise(
    tmp_path: Path, images: Path, world_size: int
) -> None:
    """All that rank 0 writes into its run directory, from the lock to the summary."""
    training = tiny.arguments(images, 3, EVERY)
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.run(faults.train, training, 0, 0, 0, None, world_size=world_size, cwd=whole) == [0] * world_size
    names = (whole / "calls.txt").read_text().splitlines()
    distinct = faults.first_of_each(names)
    assert len(distinct) > 50
    for number in distinct if SOAK else random.Random(world_size).sample(distinct, 3):
        cwd = tiny.in_folder(tmp_path, f"call-{number}")
        under_way = ranks.start(faults.train, training, 0, number, number, None, world_size=world_size, cwd=cwd)
        assert under_way.wait(closing=3.0)[0] == -signal.SIGKILL, names[number - 1]
        if tiny.summary(cwd).get("status") != "completed":  # else it was killed when all was done
            assert ranks.train(training, world_size=world_size, cwd=cwd) == [0] * world_size, names[number - 1]
        tiny.assert_same_result(cwd, whole)
