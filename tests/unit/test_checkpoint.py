"""Checkpoints: whole or absent, verified, the newest good one found, old ones removed last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from trainlib.errors import CheckpointError
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.manager import MAX_FAILED_WRITES, CheckpointManager

MODEL_STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2], dtype=torch.int64)}


def save(directory: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.save(
        directory, Contents(step, MODEL_STATE, {"optimizer": {"lr": 0.1}, "step": step}, {"world_size": 1})
    )


def test_what_was_saved_is_what_loads(tmp_path: Path) -> None:
    save(tmp_path, 123)
    path = tmp_path / "step-00000123"
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.safetensors", "trainer.pt"]
    loaded = checkpoint.verify(path)
    assert loaded.step == 123
    assert loaded.trainer_state() == {"optimizer": {"lr": 0.1}, "step": 123}
    for name, tensor in safetensors.torch.load_file(path / "model.safetensors").items():
        assert torch.equal(tensor, MODEL_STATE[name])
        assert torch.equal(loaded.model_state()[name], tensor)


def test_a_tensor_of_two_names_is_saved_under_both(tmp_path: Path) -> None:
    """As timm's CoaT has them."""
    weight = torch.arange(6.0)
    state = {"a": weight, "b": weight, "part": weight[2:4], "transposed": weight.view(2, 3).t(), "none": weight[:0]}
    found = checkpoint.save(tmp_path, Contents(1, state, {}, {})).model_state()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_manifest_tells_the_truth_about_the_files(tmp_path: Path) -> None:
    save(tmp_path, 5)
    manifest = json.loads((tmp_path / "step-00000005/manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 5)  # another format would shut out the runs of today
    assert manifest["world_size"] == 1
    for name in ("model.safetensors", "trainer.pt"):
        content = (tmp_path / "step-00000005" / name).read_bytes()
        assert manifest["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_digest_is_over_the_bytes_in_name_order() -> None:
    expected = hashlib.sha256()
    expected.update(MODEL_STATE["a.bias"].numpy().tobytes())
    expected.update(MODEL_STATE["b.weight"].numpy().tobytes())
    assert weights_sha256(MODEL_STATE) == expected.hexdigest()
    transposed = MODEL_STATE | {"b.weight": MODEL_STATE["b.weight"].t().contiguous().t()}
    assert weights_sha256(transposed) == expected.hexdigest()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "manifest.json"])
def test_damage_is_noticed_and_the_older_one_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-00000002" / name)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(tmp_path / "step-00000002")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert (tmp_path / "step-00000002").is_dir()  # nothing was changed: the start may still be refused
    checkpoint.set_aside_newer(tmp_path, found)
    assert (tmp_path / "step-00000002.damaged").is_dir()
    assert "step-00000002" in caplog.text


def test_a_checkpoint_that_the_disk_does_not_give_back_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    sha256 = checkpoint._sha256

    def bad_sector(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(5, "Input/output error")
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", bad_sector)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize(
    "swapped",
    [["model.safetensors"], ["trainer.pt"], ["manifest.json"], ["model.safetensors", "trainer.pt", "manifest.json"]],
)
def test_swapped_files_are_noticed(tmp_path: Path, swapped: list[str]) -> None:
    save(tmp_path, 1)
    checkpoint.save(tmp_path, Contents(2, {"w": torch.ones(3)}, {"other": 1}, {}))
    for name in swapped:
        shutil.copy(tmp_path / "step-00000001" / name, tmp_path / "step-00000002" / name)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_unfinished_checkpoints_are_never_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-step-00000009")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert checkpoint.newest(tmp_path / "nothing") is None


def test_trainer_state_that_would_execute_code_does_not(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    saved = save(tmp_path, 1)
    torch.save({"optimizer": Evil()}, saved.path / "trainer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        saved.trainer_state()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(2, None, [4, 5]), (3, None, [3, 4, 5]), (2, 1, [1, 4, 5]), (2, 5, [4, 5])]
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    checkpoint_manager = CheckpointManager(tmp_path, keep, {})
    for step in range(1, 6):
        checkpoint_manager.save(Contents(step, MODEL_STATE, {}, {"best_step": best}))
    assert list(steps_in(tmp_path)) == left


def test_pruning_counts_only_whole_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "step-00000003" / "trainer.pt")
    checkpoint.prune(tmp_path, keep=2, protect=(), verified=set())
    assert list(steps_in(tmp_path)) == [1, 2]


def test_a_failed_write_leaves_the_old_ones_and_several_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint_manager = CheckpointManager(tmp_path, 2, {})
    checkpoint_manager.save(Contents(1, MODEL_STATE, {}, {}))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_500_000))
    for step in range(2, 2 + MAX_FAILED_WRITES):
        assert checkpoint_manager.problem() is None
        checkpoint_manager.save(Contents(step, MODEL_STATE, {}, {}))
        assert f"step {step} was not written ([Errno 28] No space left on device; 2.5 MB are free there)" in caplog.text
    told = (
        "3 checkpoints in a row could not be written ([Errno 28] No space left on device; 2.5 MB are free there); the"
    )
    assert str(checkpoint_manager.problem()).startswith(told)
    assert "step 4 could not be written" in str(checkpoint_manager.problem(must_have=4))
    assert checkpoint_manager.problem(must_have=1) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.verify(tmp_path / "step-00000001").step == 1


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(tmp_path / "step-00000001" / "model.safetensors")
    save(tmp_path, 1)
    assert checkpoint.verify(tmp_path / "step-00000001").step == 1
    assert (tmp_path / "step-00000001.damaged").is_dir()


def test_a_manifest_that_was_edited_is_noticed(tmp_path: Path) -> None:
    manifest = save(tmp_path, 5).path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(CheckpointError, match="do not match its own SHA-256"):
        checkpoint.verify(manifest.parent)


def test_what_a_kill_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """A half written checkpoint of the same step, and one that was being removed, with files in them."""
    for name in (".tmp-step-00000001", ".old-step-00000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rest").touch()
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.prune(tmp_path, keep=1, protect=(), verified=set())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_rewinding_sets_newer_ones_aside(tmp_path: Path) -> None:
    chosen = save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.set_aside_newer(tmp_path, chosen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002.superseded"]
    flip(tmp_path / "step-00000001" / "model.safetensors")
    checkpoint.set_aside_newer(tmp_path, checkpoint.newest(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001.damaged", "step-00000002.superseded"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 6}, "is of step 6"),
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"files": {}}, "must list"),
    ],
)
def test_a_manifest_that_was_made_otherwise_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    """Its own SHA-256 is right: another step's, a later version's, or of a program that writes other files."""
    path = save(tmp_path, 5).path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest |= change
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": checkpoint._seal(manifest)}))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.verify(path)


@pytest.mark.parametrize("linked", ["", "manifest.json", "model.safetensors"])
def test_a_link_in_place_of_a_part_is_not_followed(tmp_path: Path, linked: str) -> None:
    path = save(tmp_path, 5).path
    part = path / linked if linked else path
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="link"):
        checkpoint.verify(path)


def test_trainer_state_that_is_no_mapping_is_an_error(tmp_path: Path) -> None:
    saved = save(tmp_path, 5)
    torch.save([1, 2], saved.path / "trainer.pt")
    with pytest.raises(CheckpointError, match="it holds a list"):
        saved.trainer_state()


def test_setting_aside_overwrites_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        checkpoint.set_aside(save(tmp_path, 5).path, checkpoint.DAMAGED, "test")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-00000005.damaged{end}" for end in ("", "-1", "-2")]
