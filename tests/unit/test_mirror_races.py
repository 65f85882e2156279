"""A mirror whose run directory vanishes, is damaged, or is another machine's by now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mirrored_runs import FailingStore, add_attempt, brought_back, copy, make_run, tree

from trainlib.errors import RunDirectoryError
from trainlib.runs.mirror.store import Store
from trainlib.runs.records.checkpoints import steps_in


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "here/run", 4, 8)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_run_directory_that_is_being_removed_takes_nothing_with_it(
    run: Path, tmp_path: Path, backwards: bool
) -> None:
    """It is never made again, and whatever is gone already, what a start goes on from stays at the mirror."""
    store = Store(f"{tmp_path}/mirror", "run")
    copier = copy(run, store)
    before = tree(brought_back(store, tmp_path)[0])
    for path in sorted(run.rglob("*"), reverse=backwards):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        copier.copy()
    run.rmdir()
    copier.copy()
    assert not run.exists()
    assert tree(brought_back(store, tmp_path)[0]) == before


def test_a_run_directory_that_vanishes_while_a_checkpoint_is_copied_is_not_made_again(
    run: Path, tmp_path: Path
) -> None:
    number = 0
    while True:  # at the first change at the mirror, the second, ...
        shutil.rmtree(tmp_path)
        make_run(run, 4)
        changes: list[str] = []

        def vanish(what: str, changes: list[str] = changes, last: int = number) -> None:
            changes.append(what)
            if len(changes) == last + 1:
                shutil.rmtree(run)

        copy(run, FailingStore(f"{tmp_path}/mirror", before=vanish))
        if len(changes) <= number:
            return
        assert not run.exists()
        number += 1


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": 3}', b"\xff"])
def test_a_damaged_manifest_does_not_end_the_copying(run: Path, tmp_path: Path, where: str, content: bytes) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    if where == "there":
        copy(run, store)
    place = run if where == "here" else tmp_path / "mirror/run"
    (place / "checkpoints/step-00000008/manifest.json").write_bytes(content)
    copy(run, store, from_step=8)
    steps = list(steps_in(brought_back(store, tmp_path)[0] / "checkpoints"))
    assert steps == ([4] if where == "here" else [4, 8])


def test_what_a_killed_process_left_half_written_is_removed(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    there = tmp_path / "mirror/run"
    before = tree(there)
    for place in (there / ".a.0123456789abcdef.tmp", there / "checkpoints/step-00000008/.b.0123456789abcdef.tmp"):
        place.write_bytes(b"half")
    copy(run, store, from_step=8)
    assert tree(there) == before


def test_what_somebody_removed_at_the_mirror_is_copied_again(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    (tmp_path / "mirror/run/checkpoints/step-00000008/trainer.pt").unlink()
    copy(run, store, from_step=8)
    assert tree(brought_back(store, tmp_path)[0]) == tree(run)


def test_a_machine_that_was_cut_off_copies_nothing_over_the_one_that_took_over(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copier = copy(run, store)
    there, _ = brought_back(store, tmp_path)
    add_attempt(there, 2, "there")
    copy(there, store, from_step=8)
    with pytest.raises(RunDirectoryError, match="on there at t2"):
        copier.learn()
