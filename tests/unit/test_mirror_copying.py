"""A run's copy at a mirror: whole or not at all, newest first, and brought back as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from mirrored_runs import FailingStore, add_attempt, brought_back, copy, make_run, tree, write_checkpoint

from trainlib.errors import RunDirectoryError
from trainlib.runs.mirror.copying import Copier
from trainlib.runs.mirror.restoring import restore
from trainlib.runs.mirror.store import MirrorError, Store
from trainlib.runs.records.checkpoints import steps_in


@pytest.fixture(params=["folder", "file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    addresses = {"folder": f"{tmp_path}/mirror", "file": f"file://{tmp_path}/mirror", "memory": "memory://mirror"}
    yield addresses[request.param]
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "here/run", 4, 8)


def test_what_comes_back_is_what_was_there(run: Path, address: str, tmp_path: Path) -> None:
    store = Store(address, "run")
    (run / "own_code/package").mkdir(parents=True)
    (run / "own_code/package/a.py").write_text("A = 1\n")
    (run / "logs").mkdir()
    (run / "logs/rank-0.log").write_text("stays here")
    assert copy(run, store).missing() == []
    there, said = brought_back(store, tmp_path)
    assert tree(there) == {name: content for name, content in tree(run).items() if not name.startswith("logs")}
    assert not said


def test_the_newest_checkpoint_is_copied_first_and_its_manifest_last(run: Path, tmp_path: Path) -> None:
    store = FailingStore(f"{tmp_path}/mirror")
    copy(run, store)
    written = [what.removeprefix("write checkpoints/") for what in store.done if "checkpoints" in what]
    assert [name.split("/")[0] for name in written] == ["step-00000008"] * 3 + ["step-00000004"] * 3
    assert [number % 3 == 2 for number in range(6)] == [name.endswith("manifest.json") for name in written]
    assert store.done.index("write metrics.jsonl") < store.done.index("write checkpoints/step-00000008/manifest.json")


def test_the_best_checkpoint_is_there_before_the_one_that_names_it(run: Path, tmp_path: Path) -> None:
    """Else a machine that goes on from the newest alone has lost the best weights."""
    store = FailingStore(f"{tmp_path}/mirror")
    write_checkpoint(run, 12, best=4)
    copy(run, store)
    whole = [what for what in store.done if what.startswith("write checkpoints/") and what.endswith("manifest.json")]
    assert [int(what.split("step-")[1][:8]) for what in whole] == [4, 12, 8]


def test_cut_off_anywhere_only_whole_checkpoints_come_back(tmp_path: Path) -> None:
    """Also while the run prunes, a step is trained anew to other bytes, and a whole copy is already there."""
    changes = 0
    while True:
        shutil.rmtree(tmp_path, ignore_errors=True)
        run, store = make_run(tmp_path / "here/run", 4, 8), FailingStore(f"{tmp_path}/mirror")
        copier = copy(run, store)
        store.left = changes
        shutil.rmtree(run / "checkpoints/step-00000004")
        shutil.rmtree(run / "checkpoints/step-00000008")
        write_checkpoint(run, 8, content="anew")
        write_checkpoint(run, 12)
        try:
            copier.copy()
            is_over = True
        except MirrorError:
            is_over = False
        there, said = brought_back(Store(f"{tmp_path}/mirror", "run"), tmp_path)
        assert not said, "what has a manifest there is whole"
        found = steps_in(there / "checkpoints")
        assert found, "there always is one to go on from"
        assert len((there / "metrics.jsonl").read_bytes().split(b"\n")) > max(found), "its rows came before it"
        if is_over:
            assert tree(there) == tree(run)
            return
        store.left = -1
        copier.copy()  # the same process goes on once the mirror answers
        assert tree(brought_back(store, tmp_path)[0]) == tree(run)
        changes += 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_copy_is_passed_over(run: Path, tmp_path: Path, damage: str) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    folder = tmp_path / "mirror/run/checkpoints/step-00000008"
    file = folder / ("manifest.json" if damage == "manifest" else "trainer.pt")
    content = file.read_bytes()
    file.unlink()
    if damage != "remove":
        file.write_bytes({"flip": b"x" + content[1:], "cut": content[:-1], "manifest": b"{}"}[damage])
    there, said = brought_back(store, tmp_path)
    assert list(steps_in(there / "checkpoints")) == [4]
    assert len(said) == 1
    assert "step-00000008" in said[0]
    assert "the next older one is used" in said[0]


def test_a_checkpoint_that_the_run_prunes_while_it_is_copied_is_copied_whole(run: Path, tmp_path: Path) -> None:
    def prune(what: str) -> None:
        shutil.rmtree(run / "checkpoints/step-00000004", ignore_errors=True)
        if what == "write checkpoints/step-00000008/trainer.pt":
            shutil.rmtree(run / "checkpoints/step-00000008")
            write_checkpoint(run, 12)

    store = FailingStore(f"{tmp_path}/mirror", before=prune)
    copy(run, store)
    assert "write checkpoints/step-00000008/manifest.json" in store.done
    there, said = brought_back(store, tmp_path)
    assert not said
    assert list(steps_in(there / "checkpoints")) == [12]


def test_the_best_checkpoint_and_what_is_newer_is_never_pruned(run: Path, tmp_path: Path) -> None:
    """A directory that is being deleted looks like one that is pruned."""
    store = Store(f"{tmp_path}/mirror", "run")
    copier = copy(run, store)
    write_checkpoint(run, 12, best=4)
    copier.copy()
    for step in (4, 8):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    copier.copy()
    assert list(steps_in(tmp_path / "mirror/run/checkpoints")) == [4, 12]
    shutil.rmtree(run / "checkpoints")
    copier.copy()
    assert list(steps_in(tmp_path / "mirror/run/checkpoints")) == [4, 12]


def test_of_a_checkpoint_that_keeps_only_its_weights_only_the_rest_is_removed(run: Path, tmp_path: Path) -> None:
    store = FailingStore(f"{tmp_path}/mirror")
    copier = copy(run, store)
    manifest = run / "checkpoints/step-00000008/manifest.json"
    values = json.loads(manifest.read_text())
    del values["files"]["trainer.pt"]
    manifest.write_text(json.dumps(values))
    (manifest.parent / "trainer.pt").unlink()
    before = len(store.done)
    copier.copy()
    where = "checkpoints/step-00000008"
    assert store.done[before:] == [f"write {where}/manifest.json", f"remove {where}/trainer.pt"]
    assert tree(brought_back(store, tmp_path)[0]) == tree(run)


def test_checkpoints_that_a_run_goes_back_from_leave_the_mirror_first(run: Path, tmp_path: Path) -> None:
    store = FailingStore(f"{tmp_path}/mirror")
    copy(run, store)
    (run / "checkpoints/step-00000008").rename(run / "checkpoints/step-00000008.superseded")
    before = len(store.done)
    copy(run, store, from_step=4)
    assert store.done[before] == "remove checkpoints/step-00000008/manifest.json"
    assert list(steps_in(brought_back(store, tmp_path)[0] / "checkpoints")) == [4]


def test_a_mirror_that_lost_everything_gets_everything_again(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copier = copy(run, store)
    shutil.rmtree(tmp_path / "mirror")
    copier.learn()
    copier.copy()
    assert tree(brought_back(store, tmp_path)[0]) == tree(run)


def test_results_that_a_new_attempt_removes_leave_the_mirror(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    (run / "summary.json").write_text('{"status": "completed"}')
    copier = copy(run, store)
    (run / "summary.json").unlink()
    copier.copy()
    assert not (brought_back(store, tmp_path)[0] / "summary.json").exists()


def test_nothing_is_changed_once_the_training_is_gone(run: Path, tmp_path: Path) -> None:
    store = FailingStore(f"{tmp_path}/mirror")
    copy(run, store)
    copier, before = Copier(run, store, lambda: False), len(store.done)
    copier.learn()
    write_checkpoint(run, 12)
    shutil.rmtree(run / "checkpoints/step-00000004")
    copier.copy()
    assert len(store.done) == before
    assert set(copier.missing()) == {"step-00000012", "metrics.jsonl", "config.yaml", "attempts.jsonl"}


@pytest.mark.parametrize("steps", [(), (12,)])
def test_two_histories_of_one_run_are_told_apart(run: Path, tmp_path: Path, steps: tuple[int, ...]) -> None:
    """Another machine has gone on from the mirror; then the first one comes back with its directory."""
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    there, _ = brought_back(store, tmp_path)
    add_attempt(there, 2, "there")
    copy(there, store, from_step=8)
    add_attempt(run, 2)
    for step in steps:
        write_checkpoint(run, step)
    before = tree(tmp_path)
    starts: tuple[Callable[[], None], ...] = (
        lambda: restore(run, store, print),
        lambda: Copier(run, store).begin(8),
    )
    for start in starts:
        with pytest.raises(RunDirectoryError, match=r"holds attempts at this run.*on there at t2.*--fresh.*--name"):
            start()
    assert tree(tmp_path) == before


def test_a_start_without_a_checkpoint_removes_none_at_the_mirror(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunDirectoryError, match="holds checkpoints, and this start has begun without one"):
        Copier(run, store).begin(0)


def test_a_run_that_lost_only_its_checkpoints_gets_them_back(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    before = tree(run)
    add_attempt(run, 2)
    own = (run / "attempts.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    restore(run, store, print)
    assert tree(run) == before | {"attempts.jsonl": own}


def test_fresh_keeps_what_is_at_the_mirror(run: Path, address: str, tmp_path: Path) -> None:
    store = Store(address, "run")
    copy(run, store)
    before = tree(brought_back(store, tmp_path)[0])
    for number in (1, 2):
        restore(tmp_path / "elsewhere/run", store, print, fresh=True)
        assert store.sizes() == {}
        shutil.rmtree(tmp_path / "elsewhere")
        restore(tmp_path / f"elsewhere/run.old-{number}", Store(address, f"run.old-{number}"), print)
        assert tree(tmp_path / f"elsewhere/run.old-{number}") == before
        copy(run, store)


def test_names_at_a_mirror_lead_nowhere_else(run: Path, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/mirror", "run")
    copy(run, store)
    for name in ("own_code/..a/x.py", "logs/x", "checkpoints/step-00000008/more", "step-1", "a.jsonl", "lock", "STOP"):
        store.write(name, b"x")
    there, _ = brought_back(store, tmp_path)
    assert set(tree(there)) - set(tree(run)) == {"own_code/..a/x.py"}
