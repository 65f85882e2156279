"""W&B's records of a run: which attempt was first, and what a log of a stranger may not make W&B do."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from wandb_files import of_run, record, row, write_log

from trainlib.errors import UserError
from trainlib.training.hooks.tracking.wandb.foreign import own_environment, require_own_contents, require_own_files
from trainlib.training.hooks.tracking.wandb.log import history, segments
from trainlib.training.hooks.tracking.wandb.run import run_id
from trainlib.training.hooks.tracking.wandb.sync import sync
from trainlib.training.hooks.tracking.wandb.temporary import PREFIX, TemporaryFolder, remove_leftovers


def test_the_order_of_attempts_is_that_of_their_rows_not_of_local_time(tmp_path: Path) -> None:
    """Also where a clock was set back; logs without rows go by the time in them, before those with rows."""
    second = write_log(tmp_path, "offline-run-20300101_010000-abc", of_run(5), row(2), row(3))
    first = write_log(tmp_path, "offline-run-20300101_090000-abc", of_run(9), row(0), row(1))
    empty_late = write_log(tmp_path, "run-20290101_000000-abc", of_run(8))
    empty_early = write_log(tmp_path, "run-20310101_000000-abc", of_run(7))
    cut = write_log(tmp_path, "offline-run-20300101_100000-abc")
    assert segments(tmp_path, "abc") == [cut, empty_early, empty_late, first, second]
    assert [point.number for path in segments(tmp_path, "abc") for point in history(path)] == [0, 1, 2, 3]


def test_a_damaged_log_ends_where_the_damage_is(tmp_path: Path) -> None:
    odd = record()
    odd.history.item.add().value_json = "{"
    path = write_log(tmp_path, "offline-run-20300101_010000-abc", of_run(5), row(0), odd, row(1))
    assert [point.number for point in history(path)] == [0]


@pytest.mark.parametrize("kind", ["tbrecord", "request", "alert", "file", "artifact", "use_artifact"])
def test_a_log_may_not_ask_for_anything_else(tmp_path: Path, kind: str) -> None:
    made = record()
    if kind == "file":
        made.files.files.add().path = "../../../../etc/passwd"
    elif kind == "artifact":
        made.artifact.manifest.contents.add().local_path = "/etc/passwd"
    elif kind == "tbrecord":
        made.tbrecord.log_dir = "/etc"
    elif kind == "request":
        made.request.poll_exit.SetInParent()
    else:
        getattr(made, kind).SetInParent()
    path = write_log(tmp_path / "run/wandb", "offline-run-20300101_010000-abc", of_run(5), row(0), made)
    with pytest.raises(UserError, match="not uploaded"):
        require_own_contents(path)


def test_a_log_may_name_its_own_files(tmp_path: Path) -> None:
    own, staged = record(), record()
    own.files.files.add().path = "media/table/x.json"
    staged.artifact.manifest.contents.add().local_path = "/home/user/.local/share/wandb/artifacts/staging/tmp1"
    require_own_contents(write_log(tmp_path / "run/wandb", "offline-run-20300101_010000-abc", of_run(5), own, staged))


@pytest.mark.parametrize("name", ["lock", "run-id", "offline-run-20300101_010000-abc/files/x", "wandb"])
def test_links_in_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "wandb"
    write_log(folder, "offline-run-20300101_010000-abc", of_run(5), row(0))
    (folder / "offline-run-20300101_010000-abc/files").mkdir()
    (folder / "run-id").write_text("abc\n")
    require_own_files(folder)
    link = tmp_path / "link" if name == "wandb" else folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(folder if name == "wandb" else tmp_path / "outside")
    with pytest.raises(UserError, match="link"):
        require_own_files(link if name == "wandb" else folder)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("text", ["", "../../x", "--help", "a b", "x" * 100])
def test_an_id_is_an_id(tmp_path: Path, text: str) -> None:
    (tmp_path / "run-id").write_text(text)
    with pytest.raises(UserError, match="is no id"):
        run_id(tmp_path)


@pytest.mark.parametrize("kind", ["long", "folder", "link", "pipe"])
def test_an_id_that_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run-id"
    match kind:
        case "long":
            path.write_text("x" * 100_000)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("elsewhere")
        case _:
            os.mkfifo(path)
    with pytest.raises(UserError, match=r"run-id: cannot be read \("):
        run_id(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_of_which_nothing_was_tracked_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/run-id").write_text("abc\n")
    write_log(tmp_path / "wandb", "offline-run-20300101_010000-abc")  # killed before its first record
    with pytest.raises(UserError, match="nothing of this run was tracked"):
        sync(tmp_path)


def test_everything_is_claimed_only_of_rows_that_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/run-id").write_text("abc\n")
    log = write_log(tmp_path / "wandb", "offline-run-20300101_010000-abc", of_run(5), row(0))
    log.with_name(f"{log.name}.synced").touch()
    assert "has everything" in sync(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "epoch": 1, "split": "train", "loss": 0.5}\n')
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="W&B: "):  # there is a row to upload, and no key to do so
        sync(tmp_path)


def test_the_ids_of_an_agent_are_left_out() -> None:
    given = {"WANDB_RUN_ID": "x", "WANDB_SWEEP_ID": "y", "WANDB_PROJECT": "z", "WANDB_API_KEY": "k", "PATH": "p"}
    assert own_environment(given) == {"WANDB_API_KEY": "k", "PATH": "p"}


def test_folders_left_by_a_kill_are_removed_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, used, new, other = (tmp_path / name for name in (f"{PREFIX}left", f"{PREFIX}used", f"{PREFIX}new", "other"))
    for folder in (left, used, new, other):
        folder.mkdir()
        (folder / "file").touch()
    (left / "lock").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(outside)
    with (used / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = TemporaryFolder()
        assert [folder.exists() for folder in (left, used, new, other, outside)] == [False, True, True, True, True]
    os.utime(new, (0, 0))
    remove_leftovers(tmp_path)
    assert [folder.exists() for folder in (used, new, made.path)] == [False, False, True]
    made.remove()
    assert not made.path.exists()
