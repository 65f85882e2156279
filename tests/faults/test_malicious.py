"""Inputs made to do harm: no code of theirs runs, and nothing outside the run directory is read, written or removed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from tiers import slow_but

from trainlib.errors import EXIT_USER_ERROR, CheckpointError, ConfigError
from trainlib.training.checkpoints import checkpoint

ENTRIES = [
    "config.yaml",
    ".config.yaml.tmp",
    "metrics.jsonl",
    ".metrics.jsonl.tmp",
    "attempts.jsonl",
    "summary.json",
    ".summary.json.tmp",
    "environment.json",
    "lock",
    "STOP",
    "logs/rank-0.log",
    "logs/rank-1.log",
]
FOLDERS = ["logs", "checkpoints", "tensorboard", "wandb", "checkpoints/step-00000008", "checkpoints/.tmp-step-00000012"]


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.target),)


CONSTANT = "scheduler=null"  # a rate for the steps that are added


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("malicious") / "images"
    tiny.make_images(root)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The working directory of a run of two epochs, with checkpoints at steps 4 and 8."""
    cwd = tmp_path_factory.mktemp("trained")
    assert ranks.train(tiny.arguments(images, 2, 4, CONSTANT), cwd=cwd) == [0], ranks.console(cwd)
    return cwd


@pytest.fixture
def victim(tmp_path: Path, trained: Path) -> Path:
    """A copy of that working directory, to be tampered with and gone on in."""
    cwd = tmp_path / "cwd"
    shutil.copytree(trained, cwd)
    return cwd


def go_on(cwd: Path, images: Path, *more: str) -> int:
    """Train two epochs more."""
    (code,) = ranks.train([*tiny.arguments(images, 4, 4, CONSTANT), *(more or ["--resume"])], cwd=cwd)
    return code


def assert_one_message(cwd: Path) -> None:
    errors = [line for line in ranks.console(cwd).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ranks.console(cwd)
    assert "Traceback" not in ranks.console(cwd)


def forge(path: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and make the manifest and its seal those of the new file."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.verify(path)  # the forgery is a good one


def evil_pickles(target: Path, folder: Path) -> list[bytes]:
    """Code to run in each form that a trainer's state could come in."""
    torch.save({"progress": Evil(target)}, folder / "zip")
    torch.save({"progress": Evil(target)}, folder / "legacy", _use_new_zipfile_serialization=False)
    return [(folder / "zip").read_bytes(), (folder / "legacy").read_bytes(), pickle.dumps(Evil(target))]


FORMS = {"zip": 0, "legacy": 1, "pickle": 2}


def each(names: Sequence[str], quick: Collection[tuple[str, str]]) -> pytest.MarkDecorator:
    """Parametrize a test with each name and form of pickle; those that are not named as quick are slow."""
    cases = [
        pytest.param(name, FORMS[form], id=f"{name}-{form}", marks=() if (name, form) in quick else pytest.mark.slow)
        for name in names
        for form in FORMS
    ]
    return pytest.mark.parametrize(("name", "form"), cases)


@each(["trainer.pt", "model.safetensors"], {("trainer.pt", "zip"), ("model.safetensors", "pickle")})
def test_a_pickle_in_a_checkpoint_with_forged_hashes(
    tmp_path: Path, victim: Path, images: Path, name: str, form: int
) -> None:
    content = evil_pickles(tmp_path / "executed", tmp_path)[form]
    forge(victim / "runs/run/checkpoints/step-00000008", name, content)
    assert go_on(victim, images) == EXIT_USER_ERROR
    assert_one_message(victim)
    assert f"step-00000008: {name}" in ranks.console(victim)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_for_a_manifest(tmp_path: Path, victim: Path, images: Path) -> None:
    path = victim / "runs/run/checkpoints/step-00000008"
    (path / "manifest.json").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        checkpoint.verify(path)
    assert go_on(victim, images, "--resume", "step-00000008") == EXIT_USER_ERROR
    assert_one_message(victim)
    assert go_on(victim, images) == 0  # from the one before it
    assert not (tmp_path / "executed").exists()


@each(["w.pt", "w.pth", "w.safetensors"], {("w.pt", "zip"), ("w.pth", "legacy"), ("w.safetensors", "pickle")})
def test_a_pickle_for_weights(tmp_path: Path, images: Path, name: str, form: int) -> None:
    weights = tmp_path / name
    weights.write_bytes(evil_pickles(tmp_path / "executed", tmp_path)[form])
    training = [*tiny.arguments(images, 1, 4), f"model.weights={weights}"]
    assert ranks.train(training, cwd=tmp_path) == [EXIT_USER_ERROR]
    assert_one_message(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    slow_but(
        ["seed: !!python/object/apply:os.mkdir [{executed}]\n"],
        [
            "seed: !!python/object/apply:os.mkdir [{executed}]\n",
            "seed: !!python/object/new:os.mkdir [{executed}]\n",
            "data: !!python/object/apply:os.system ['mkdir {executed}']\n",
            "data: {{root: !!python/name:os.mkdir }}\n",
            "!!python/module:os\n",
        ],
    ),
)
@pytest.mark.parametrize("where", ["file", "run directory", "override"])
def test_yaml_tags(tmp_path: Path, victim: Path, images: Path, text: str, where: str) -> None:
    text = text.format(executed=tmp_path / "executed")
    training = tiny.arguments(images, 2, 4, CONSTANT)
    if where == "file":
        (victim / "evil.yaml").write_text(text)
        training.insert(1, "evil.yaml")
    elif where == "run directory":
        (victim / "runs/run/config.yaml").write_text(text)
    else:
        training.append(f"data={text.partition(' ')[2]}")
    assert ranks.train([*training, "--resume"], cwd=victim) == [EXIT_USER_ERROR]
    assert_one_message(victim)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "a/../../outside", "..", ".hidden", "a\0b", "run/", "~"]
)
def test_run_names_that_lead_elsewhere(tmp_path: Path, images: Path, name: str) -> None:
    from trainlib.config import load_config

    with pytest.raises(ConfigError, match=r"^name: |name: .*letters, digits"):
        load_config([*tiny.arguments(images, 1, 4), f"name={json.dumps(name)}"])


@pytest.mark.parametrize(
    "named",
    slow_but(["{outside}", ".."], ["../../other/checkpoints/step-00000004", "{outside}", "..", "step-00000004/.."]),
)
def test_checkpoints_of_elsewhere_are_not_resumed_from(tmp_path: Path, victim: Path, images: Path, named: str) -> None:
    shutil.copytree(victim / "runs/run", victim / "runs/other")
    shutil.copytree(victim / "runs/run/checkpoints/step-00000004", tmp_path / "step-00000004")
    named = named.format(outside=tmp_path / "step-00000004")
    assert go_on(victim, images, "--resume", named) == EXIT_USER_ERROR
    assert_one_message(victim)


@pytest.mark.parametrize("entry", slow_but(["metrics.jsonl", ".summary.json.tmp", "lock"], ENTRIES))
def test_files_of_a_run_that_are_links(tmp_path: Path, victim: Path, images: Path, entry: str) -> None:
    outside = tmp_path / "outside"
    link = victim / "runs/run" / entry
    if link.exists():
        link.rename(outside)
    else:
        outside.write_text("precious")
    before = outside.read_bytes()
    link.symlink_to(outside)
    assert go_on(victim, images) == EXIT_USER_ERROR
    assert_one_message(victim)
    assert str(Path("runs/run") / entry) in ranks.console(victim)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("entry", slow_but(["logs", "checkpoints/step-00000008"], FOLDERS))
def test_folders_of_a_run_that_are_links(tmp_path: Path, victim: Path, images: Path, entry: str) -> None:
    outside = tmp_path / "outside"
    link = victim / "runs/run" / entry
    if link.exists():
        shutil.move(link, outside)
    else:
        outside.mkdir()
        (outside / "precious").write_text("precious")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    link.symlink_to(outside)
    assert go_on(victim, images) == EXIT_USER_ERROR
    assert_one_message(victim)
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_dangling_links_create_nothing_outside(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "runs/run"
    run.mkdir(parents=True)
    (run / "lock").symlink_to(tmp_path / "outside")
    assert ranks.train(tiny.arguments(images, 1, 4), cwd=tmp_path) == [EXIT_USER_ERROR]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", slow_but(["model.safetensors"], ["model.safetensors", "trainer.pt", "manifest.json"]))
def test_a_file_of_a_checkpoint_that_is_a_link(tmp_path: Path, victim: Path, images: Path, name: str) -> None:
    path = victim / "runs/run/checkpoints/step-00000008"
    outside = tmp_path / name
    shutil.move(path / name, outside)
    (path / name).symlink_to(outside)
    before = outside.read_bytes()
    assert go_on(victim, images, "--resume", "step-00000008") == EXIT_USER_ERROR
    assert_one_message(victim)
    assert go_on(victim, images) == 0  # unnamed, it counts as damaged: from the one before it
    assert "resuming from step 4" in ranks.console(victim)
    assert outside.read_bytes() == before
