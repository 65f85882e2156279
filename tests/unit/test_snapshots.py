"""Snapshots of the state in memory: written beside the training, whole or not at all, and used only where they fit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from needs import need_memory_folder
from patience import HANG, wait_until

from trainlib.runs.attempt.snapshot_folder import SNAPSHOTS, SnapshotFolder, snapshot_folder
from trainlib.runs.records.checkpoints import name_of, steps_in
from trainlib.training.checkpoints import checkpoint, snapshots
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.snapshots import (
    FEWEST_STEPS,
    FIRST_STEPS,
    SHARE,
    Snapshots,
    SnapshotWriter,
    newest_snapshot,
    next_step,
)
from trainlib.training.metrics.clock import Clock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "snapshots"
    path.mkdir()
    return path


@pytest.fixture
def writer(folder: Path) -> Iterator[SnapshotWriter]:
    writer = SnapshotWriter(folder, 0, 64, {"attempt": 1})
    yield writer
    writer.close()


def save(writer: SnapshotWriter, step: int, flush: Callable[[], None] = lambda: None) -> None:
    facts = {"best_step": None, "num_rows": 2}
    writer.save(Contents(step, {"weight": torch.full((4,), float(step))}, {"progress": step}, facts), flush)


def save_and_wait(writer: SnapshotWriter, folder: Path, step: int) -> None:
    """Also while the one before is still being written, where nothing is done."""

    def is_there() -> bool:
        save(writer, step)
        return step in steps_in(folder)

    wait_until(is_there)


def test_the_newest_two_stay_and_are_whole(folder: Path, writer: SnapshotWriter) -> None:
    for step in (5, 10, 15):
        save_and_wait(writer, folder, step)
    writer.close()
    assert list(steps_in(folder)) == [10, 15]
    found = checkpoint.verify(folder / name_of(15))
    assert found.model_state()["weight"].tolist() == [15.0] * 4
    assert found.trainer_state() == {"progress": 15}
    assert found.manifest["attempt"] == 1
    assert writer.seconds > 0.0


def test_nobody_waits_for_a_snapshot_that_is_being_written(folder: Path, writer: SnapshotWriter) -> None:
    may_go_on = threading.Event()
    weight = torch.zeros(4)
    facts = {"best_step": None, "num_rows": 2}
    writer.save(Contents(5, {"weight": weight}, {}, facts), lambda: assert_is_set(may_go_on))
    weight += 1.0  # as the next step does
    save(writer, 10)
    assert not steps_in(folder)
    may_go_on.set()
    writer.close()
    assert list(steps_in(folder)) == [5]
    assert checkpoint.verify(folder / name_of(5)).model_state()["weight"].tolist() == [0.0] * 4


def assert_is_set(event: threading.Event) -> None:
    assert event.wait(HANG)


@pytest.mark.parametrize(("memory", "disk"), [(511, 1000), (1000, 127)])
def test_where_memory_has_no_room_there_are_none(
    folder: Path, writer: SnapshotWriter, memory: int, disk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "available_memory", lambda: memory)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=disk))
    save(writer, 5)
    writer.close()
    assert not list(folder.iterdir())


def test_a_snapshot_that_cannot_be_written_harms_nothing(folder: Path, writer: SnapshotWriter) -> None:
    def full() -> None:
        raise OSError("no room for rows")

    save_and_wait(writer, folder, 5)
    for _ in range(2):
        save(writer, 10, full)
    writer.close()
    assert list(steps_in(folder)) == [5]


def test_an_attempt_removes_what_is_newer_than_its_beginning_and_what_is_half_written(folder: Path) -> None:
    for name in (name_of(5), name_of(10), name_of(15), ".tmp-step-00000020"):
        (folder / name).mkdir()
    SnapshotWriter(folder, 10, 64, {}).close()
    assert [path.name for path in sorted(folder.iterdir())] == [name_of(5), name_of(10)]


def make_run(directory: Path, *, from_steps: list[int], steps: list[int], checkpoints: list[int]) -> Path:
    """A run whose attempts began from these steps, a row for each of `steps`, and checkpoints that are just names."""
    directory.mkdir()
    starts = [{"event": "start", "attempt": i, "from_step": step} for i, step in enumerate(from_steps, 1)]
    rows = [{"step": step, "split": "train", "scope": "step"} for step in steps]
    for name, lines in (("attempts.jsonl", starts), ("metrics.jsonl", rows)):
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in checkpoints:
        (directory / "checkpoints" / name_of(step)).mkdir(parents=True)
    return directory


@pytest.mark.parametrize(
    ("attempt", "best_step", "from_steps", "steps", "is_used"),
    [
        (1, None, [0], [5, 10], True),
        (1, None, [0], [5, 10, 15], True),  # rows after it are made again
        (1, 5, [0], [5, 10], True),
        (1, 8, [0], [5, 10], False),  # the best checkpoint was lost while it was written
        (1, None, [0], [5], False),  # rows were lost
        (1, None, [0, 10], [5, 10], True),  # the start after it began from it, and died
        (1, None, [0, 5], [5, 10], False),  # the rows of step 10 were made again
        (2, None, [0, 5], [5, 10], True),
        (3, None, [0, 5], [5, 10], False),  # of an attempt that this run knows nothing of
        (None, None, [0], [5, 10], False),
    ],
)
def test_a_snapshot_is_used_only_where_the_run_still_leads_to_it(
    tmp_path: Path,
    folder: Path,
    attempt: int | None,
    best_step: int | None,
    from_steps: list[int],
    steps: list[int],
    is_used: bool,
) -> None:
    run = make_run(tmp_path / "run", from_steps=from_steps, steps=steps, checkpoints=[5])
    checkpoint.save(folder, Contents(10, {}, {}, {"attempt": attempt, "best_step": best_step, "num_rows": 2}))
    found = newest_snapshot(folder, run, None)
    assert (found.step if found else None) == (10 if is_used else None)


def test_a_newer_checkpoint_and_an_older_snapshot_win_where_they_must(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", from_steps=[0], steps=[5, 10], checkpoints=[])
    for step in (5, 10):
        checkpoint.save(folder, Contents(step, {}, {}, {"attempt": 1, "num_rows": step // 5, "best_step": None}))
    kept = {step: checkpoint.verify(path) for step, path in steps_in(folder).items()}
    assert newest_snapshot(folder, run, None) == kept[10]
    assert newest_snapshot(folder, run, kept[5]) == kept[10]
    assert newest_snapshot(folder, run, kept[10]) is None  # of the same step the checkpoint is used
    assert newest_snapshot(None, run, None) is None
    with (folder / name_of(10) / "trainer.pt").open("r+b") as file:
        file.write(b"damaged")
    assert newest_snapshot(folder, run, None) == kept[5]


@pytest.mark.parametrize(
    ("spent", "taken", "size", "step_seconds", "expected"),
    [
        (0.0, 0, 1_000_000, 0.01, 160),  # 3 ms are expected: the first one after 0.6 s
        (0.0, 0, 0, 0.01, 110 + FEWEST_STEPS),
        (0.01, 1, 1, 0.01, 100 + 400),
        (0.01, 1, 1, 10.0, 110 + FEWEST_STEPS),
        (3.0, 1, 1, 1.0, 100 + 1200),
    ],
)
def test_when_the_next_snapshot_is_due(spent: float, taken: int, size: int, step_seconds: float, expected: int) -> None:
    assert next_step(100, 110, spent, taken, size, step_seconds) == expected


def test_snapshots_stay_within_their_share_of_the_time() -> None:
    step, taken, cost, step_seconds = 10, 0, 0.02, 0.013
    while step < 100_000:
        step = next_step(0, step, taken * cost, taken, 1_000, step_seconds)
        taken += 1
        assert taken == 1 or taken * cost <= SHARE * step * step_seconds + 1e-9
    assert taken > 0.9 * SHARE * step * step_seconds / cost


def test_the_first_steps_only_tell_how_long_a_step_takes(writer: SnapshotWriter) -> None:
    taken: list[int] = []
    due, clock = Snapshots(100, writer), Clock(0.0)
    writer.size = 0
    for step in range(101, 200):
        due.take_if_due(step, clock, lambda _, step=step: taken.append(step))  # type: ignore[misc]
    assert not [step for step in taken if step <= 100 + FIRST_STEPS]


def test_the_folder_is_in_memory_and_goes_with_its_launcher() -> None:
    need_memory_folder()
    folder = SnapshotFolder()
    path = snapshot_folder(folder.variables())
    assert path is not None
    assert path.parent == Path("/dev/shm")
    assert folder.newest() is None
    for step in (5, 10, 15):
        (path / name_of(step)).mkdir()
    assert folder.newest() == 15
    folder.drop_from(10)
    assert folder.newest() == 5
    folder.remove()
    folder.remove()
    assert not path.exists()
    assert (folder.variables(), folder.newest()) == ({}, None)
    assert snapshot_folder({}) is snapshot_folder({SNAPSHOTS: ""}) is None


def test_without_files_in_memory_there_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files.scratch", "attempt.snapshot_folder"):
        monkeypatch.setattr(f"trainlib.runs.{module}.SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = SnapshotFolder()
    folder.drop_from(0)
    folder.remove()
    assert (folder.variables(), folder.newest()) == ({}, None)
    assert not list(tmp_path.iterdir())
