"""Asked to stop, on any one rank and at any time: all ranks end with 75 after the same step, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import ranks
import stopping
import tiny
from soak import only_in_soak, rounds

from trainlib.config import load_config
from trainlib.data import load_data
from trainlib.errors import EXIT_STOPPED
from trainlib.training.checkpoints import checkpoint

EVERY = 4
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose images are decoded already, so that the ranks of a test meet at once."""
    root = tmp_path_factory.mktemp("signals") / "images"
    tiny.make_images(root)
    load_data(load_config(tiny.arguments(root, 1, 1)).data)
    return root


def assert_stopped_well(cwd: Path, attempts: int) -> None:
    """The newest attempt was stopped, with a checkpoint at the step where it ended."""
    ends = tiny.attempts(cwd, "end")
    assert len(ends) == attempts
    assert ends[-1]["status"] == "stopped"
    newest = checkpoint.newest(cwd / "runs/run/checkpoints")
    assert newest is not None
    assert newest.step == ends[-1]["step"] == tiny.last_step(cwd)


@pytest.mark.slow
def test_signalled_at_random_all_ranks_stop_at_the_same_step(tmp_path: Path, images: Path) -> None:
    choice = random.Random(40)
    stops = rounds(6, 40)
    training = tiny.arguments(images, 4 * stops, EVERY)
    whole, stopped = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "stopped")
    assert ranks.train(training, world_size=2, cwd=whole) == [0, 0], ranks.console(whole)
    for attempt in range(1, stops + 1):
        moment = tiny.Moment(stopped, EVERY, choice)
        under_way = ranks.start(ranks.main, training, world_size=2, cwd=stopped)
        under_way.wait_for_handlers()
        moment.wait(lambda: under_way.running)  # noqa: B023 - called at once
        under_way.signal(choice.randrange(2), choice.choice(SIGNALS))
        assert under_way.wait() == [EXIT_STOPPED] * 2, ranks.console(stopped)
        assert_stopped_well(stopped, attempt)
    assert ranks.train(training, world_size=2, cwd=stopped) == [0, 0], ranks.console(stopped)
    tiny.assert_same_result(stopped, whole)


BUSY = [
    ("trainlib.training.session", "load_data", 1),
    ("trainlib.distributed.process_group", "start", 1),
    ("trainlib.training.session", "build_inputs", 1),
    ("trainlib.training.build.training", "warm_up", 1),
    ("trainlib.data.batches.loader", "BatchLoader.train_batches", 2),
    ("trainlib.data.batches.loader", "BatchLoader.eval_batches", 2),
    ("trainlib.training.checkpoints.checkpoint", "_write_files", 2),
    ("trainlib.training.checkpoints.checkpoint", "prune", 2),
]


QUICK = ((0, "load_data"), (0, "_write_files"), (1, "BatchLoader.train_batches"))


@pytest.mark.parametrize(
    ("rank", "module", "name", "call"),
    [
        pytest.param(rank, *busy, marks=() if (rank, busy[1]) in QUICK else pytest.mark.slow)
        for rank in (0, 1)
        for busy in BUSY
        if rank == 0 or busy[0] != "trainlib.training.checkpoints.checkpoint"
    ],
)
def test_signalled_while_busy_with_something_else(
    tmp_path: Path, images: Path, rank: int, module: str, name: str, call: int
) -> None:
    training = tiny.arguments(images, 4, EVERY)
    codes = ranks.run(stopping.stop_within, training, module, name, rank, call, world_size=2, cwd=tmp_path)
    assert codes == [EXIT_STOPPED] * 2, ranks.console(tmp_path)
    assert_stopped_well(tmp_path, 1)


def stop_while_decoding(arguments: list[str], cache: str, module: str, name: str, rank: int) -> int:
    """As `stop_within`, with nothing decoded yet."""
    os.environ["TRAINLAUNCH_CACHE"] = cache
    return stopping.stop_within(arguments, module, name, rank, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "module", "name"),
    [(0, "trainlib.data.storage.store", "Store.complete"), (1, "trainlib.data.sources.listed", "load_decoded")],
)
def test_signalled_while_images_are_decoded(tmp_path: Path, images: Path, rank: int, module: str, name: str) -> None:
    """Before the ranks know each other: the one asked ends with 75, and a launcher ends those that wait for it."""
    training = tiny.arguments(images, 2, EVERY)
    cache = str(tmp_path / "cache")
    started = ranks.start(stop_while_decoding, training, cache, module, name, rank, world_size=2, cwd=tmp_path)
    codes = started.wait(closing=3.0)
    assert codes[rank] == EXIT_STOPPED, ranks.console(tmp_path)
    assert codes[1 - rank] in (EXIT_STOPPED, -signal.SIGKILL)
    ends = [end["status"] for end in tiny.attempts(tmp_path, "end")]
    assert ends == (["stopped"] if codes[0] == EXIT_STOPPED else [])
    assert ranks.train(training, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)


def test_signalled_when_all_is_done_a_run_is_complete(tmp_path: Path, images: Path) -> None:
    training = tiny.arguments(images, 2, EVERY)
    codes = ranks.run(
        stopping.stop_within, training, "trainlib.training.trainer", "Trainer.test", 1, 1, world_size=2, cwd=tmp_path
    )
    assert codes == [0, 0]
    assert tiny.summary(tmp_path)["status"] == "completed"


@only_in_soak
def test_the_real_launcher_signalled_at_random(tmp_path: Path, images: Path) -> None:
    choice = random.Random(50)
    stops = 10
    training = tiny.arguments(images, 8 * stops, EVERY)
    whole, stopped = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "stopped")
    assert tiny.launch(training, whole).wait(timeout=600) == 0, (whole / "console.txt").read_text()
    for attempt in range(1, stops + 1):
        moment = tiny.Moment(stopped, EVERY, choice)
        launcher = tiny.launch(training, stopped)
        time.sleep(0.5)  # for its handlers to be there
        if choice.random() < 0.7:  # else while it, or the ranks, start
            while len(tiny.attempts(stopped, "start")) < attempt and launcher.poll() is None:
                time.sleep(0.02)
            moment.wait(lambda: launcher.poll() is None)  # noqa: B023 - called at once
        psutil.Process(launcher.pid).send_signal(choice.choice(SIGNALS))
        assert launcher.wait(timeout=120) == EXIT_STOPPED, (stopped / "console.txt").read_text()
        assert_stopped_well(stopped, attempt)
    assert tiny.launch(training, stopped).wait(timeout=600) == 0, (stopped / "console.txt").read_text()
    tiny.assert_same_result(stopped, whole)


@only_in_soak
def test_three_ranks_resume_bitwise_at_every_batch_of_three_epochs(tmp_path: Path) -> None:
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.train(stopping.VGG, world_size=3, cwd=whole) == [0] * 3, ranks.console(whole)
    for step in range(1, stopping.STEPS - 1):
        cwd = tiny.in_folder(tmp_path, f"stopped-at-{step}")
        codes = ranks.run(stopping.train_until, stopping.VGG, step, world_size=3, cwd=cwd)
        assert codes == [EXIT_STOPPED] * 3, ranks.console(cwd)
        assert ranks.train(stopping.VGG, world_size=3, cwd=cwd) == [0] * 3, ranks.console(cwd)
        assert tiny.digest(cwd) == tiny.digest(whole)
        assert tiny.rows(cwd) == tiny.rows(whole)
