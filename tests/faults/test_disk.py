"""Full disks and failing ones: every call that writes fails in turn, on each rank; nothing hangs, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import faults
import pytest
import ranks
import tiny
import torch
from needs import need
from soak import SOAK, only_in_soak

from trainlib.errors import EXIT_FAILURE, EXIT_USER_ERROR
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.manager import CheckpointManager
from trainlib.training.hooks.tracking import MetricsFile

EVERY = 4
CODES = [errno.ENOSPC, errno.EIO]
STATE = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk") / "images"
    tiny.make_images(root)
    return root


def save(directory: Path, step: int) -> bool:
    """Save as a run does, the best being step 1; whether the checkpoint is known to be safe."""
    checkpoint_manager = CheckpointManager(directory, 2, {"world_size": 1})
    checkpoint_manager.save(Contents(step, STATE, {"progress": {"step": step}}, {"best_step": 1}))
    return checkpoint_manager.problem(must_have=step) is None


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
def test_every_call_of_saving_and_pruning_may_fail(tmp_path: Path, code: int, for_good: bool) -> None:
    start = tiny.in_folder(tmp_path, "start")
    assert all(save(start, step) for step in (1, 2, 3))
    complete = tmp_path / "complete"
    shutil.copytree(start, complete)
    with faults.counted(faults.Calls(), complete) as calls:
        assert save(complete, 4)

    for number, name in enumerate(calls.names, 1):
        directory = tmp_path / f"call-{number}"
        shutil.copytree(start, directory)
        last = len(calls.names) if for_good else number
        failing = faults.Calls(lambda call: number <= call <= last, faults.fail_with(code))  # noqa: B023 - within
        with faults.counted(failing, directory):
            is_safe = save(directory, 4)
        whole = [checkpoint.verify(path).step for path in steps_in(directory).values()]
        assert {1, 3} <= set(whole), name
        assert is_safe == (4 in whole) or (not is_safe and name == "fsync "), name  # in doubt, it is not called safe
        checkpoint.remove_partial(directory)
        assert save(directory, 5), name
        assert list(steps_in(directory)) in ([1, 3, 5], [1, 4, 5]), name
        assert len(list(directory.iterdir())) == 3, "something half done is left"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "rank"),
    [pytest.param(1, 0, marks=only_in_soak), (2, 0), pytest.param(2, 1, marks=only_in_soak)],
)
def test_every_call_of_a_training_may_fail(tmp_path: Path, images: Path, world_size: int, rank: int) -> None:
    """Once, and for good from there on: the run goes on or ends with one message, and the next one is bitwise."""
    training = tiny.arguments(images, 3, EVERY)
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.run(faults.train, training, rank, 0, 0, None, world_size=world_size, cwd=whole) == [0] * world_size
    names = (whole / "calls.txt").read_text().splitlines()
    distinct = faults.first_of_each(names)
    cases = [(number, number, code) for number in distinct for code in CODES]
    cases += [(number, 10**9, errno.ENOSPC) for number in distinct]
    for number, last, code in cases if SOAK else random.Random(world_size).sample(cases, min(4, len(cases))):
        what = f"{names[number - 1]}, {errno.errorcode[code]}, call {number} to {last}"
        cwd = tiny.in_folder(tmp_path, f"call-{number}-{last}-{code}")
        codes = ranks.run(faults.train, training, rank, number, last, code, world_size=world_size, cwd=cwd)
        if codes != [0] * world_size:
            assert codes[rank] in (EXIT_FAILURE, EXIT_USER_ERROR), what
            assert rank > 0 or "Traceback" not in ranks.console(cwd), f"{what}\n{ranks.console(cwd)}"
            assert rank > 0 or os.strerror(code) in ranks.console(cwd) or "could not be written" in ranks.console(cwd)
            assert ranks.train(training, world_size=world_size, cwd=cwd) == [0] * world_size, what
        tiny.assert_same_result(cwd, whole, best_is_lost="the best weights are lost" in ranks.console(cwd))


def train_within(limit: int, arguments: list[str], rank: int) -> int:
    """In each rank: train; in one, no file may become longer than this."""
    if int(os.environ.get("RANK", "0")) == rank:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return ranks.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "rank"), [(0, 0), pytest.param(1000, 0, marks=only_in_soak), (100_000, 0), (0, 1)])
def test_a_real_limit_on_file_sizes(tmp_path: Path, images: Path, limit: int, rank: int) -> None:
    training = tiny.arguments(images, 5, EVERY)
    whole, limited = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "limited")
    assert ranks.train(training, world_size=2, cwd=whole) == [0, 0]
    codes = ranks.start(train_within, limit, training, rank, world_size=2, cwd=limited).wait(closing=3.0)
    if rank == 0:
        assert codes[0] in (EXIT_FAILURE, EXIT_USER_ERROR)
        assert ranks.train(training, world_size=2, cwd=limited) == [0, 0], ranks.console(limited)
    else:
        assert codes == [0, 0]  # only its log is lost
    tiny.assert_same_result(limited, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for a run and little more."""
    disk = tiny.in_folder(tmp_path, "disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    need("mount", "umount", root=True)
    subprocess.run(command, capture_output=True, check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_from_some_step_on(tmp_path: Path, images: Path, small_disk: Path) -> None:
    training = tiny.arguments(images, 10, EVERY)
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.train(training, world_size=2, cwd=whole) == [0, 0]
    filler = small_disk / "filler"
    for left in (0, 20_000, 1_000_000) if SOAK else (20_000,):
        cwd = tiny.in_folder(small_disk, f"left-{left}")
        under_way = ranks.start(ranks.main, training, world_size=2, cwd=cwd)
        while under_way.running and tiny.last_step(cwd) < 2 * EVERY:
            time.sleep(0.01)
        free = shutil.disk_usage(small_disk).free
        with suppress(OSError), filler.open("wb", buffering=0) as file:  # the run may be the first to fill it
            file.write(b"\0" * max(0, free - left))
        codes = under_way.wait()
        assert codes[0] in (0, EXIT_FAILURE)
        assert checkpoint.newest(cwd / "runs/run/checkpoints") is not None
        filler.unlink()
        if codes != [0, 0]:
            assert ranks.train(training, world_size=2, cwd=cwd) == [0, 0], ranks.console(cwd)
        tiny.assert_same_result(cwd, whole, best_is_lost="the best weights are lost" in ranks.console(cwd))
        shutil.rmtree(cwd)


def test_rows_are_whole_while_a_background_writer_makes_them_safe(tmp_path: Path) -> None:
    """`flush` comes from the thread that writes checkpoints, `log` from the loop."""
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    over = threading.Event()

    def keep_flushing() -> None:
        while not over.is_set():
            file.flush()

    writer = threading.Thread(target=keep_flushing)
    writer.start()
    rows = [{"step": step, "split": "train", "text": "x" * (step % 100)} for step in range(3000)]
    for row in rows:
        file.log(row)
    over.set()
    writer.join()
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=errno.errorcode.__getitem__)
def test_a_file_system_that_cannot_flush_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some network file systems refuse it; their checkpoints are no worse for it than their other files."""
    fsync = os.fsync

    def refuse_directories(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    assert save(tmp_path, 1)
    assert checkpoint.verify(tmp_path / "step-00000001").step == 1


def test_a_disk_that_is_read_only(tmp_path: Path, images: Path, small_disk: Path) -> None:
    training = tiny.arguments(images, 2, EVERY)
    consoles = tiny.in_folder(tmp_path, "consoles")
    (consoles / "runs").symlink_to(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ranks.train(training, cwd=consoles) == [EXIT_USER_ERROR]
    assert "Read-only file system" in ranks.console(consoles)
    assert "Traceback" not in ranks.console(consoles)
