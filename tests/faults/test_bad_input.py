"""The user's mistakes, made for real: exit code 2, one clear message with the fix, no traceback, nothing trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from locks import owning
from PIL import Image

from launch.cli import main

SMALL = ["data={name: synthetic, limit: 64, val_fraction: 0.01}", "train={steps: 2, batch_size: 32}"]
SMALL += ["tracking={tensorboard: false, progress: false}", "scheduler=null"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `launch run`; returns its message."""
    code = main(["run", *arguments])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("- a\n- b\n", "list"),
        ("optimizer: {name: SGD, lr: -0.1}\n", "optimizer.lr: got -0.1, must be > 0"),
        ("train: {batch_size: 0}\n", "train.batch_size: got 0"),
        ("data: {val_fraction: 1}\n", "data.val_fraction: got 1"),
        ("train: {epochs: 3\n", "line"),
        ("model: !!python/object/apply:os.mkdir [executed]\n", "python/object"),
        ("name: ../escape\n", "name: got"),
        ("seed: 1\nseed: 2\n", "seed"),
        ("optimiser: {lr: 1}\n", "did you mean optimizer"),
        ("train: {reproducibility: elastic, virtual_shards: 65}\n", "train.virtual_shards: got 65"),
    ],
)
def test_files(workdir: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    assert says in fails([write(workdir / "x.yaml", text)], capsys)
    assert sorted(path.name for path in workdir.iterdir()) == ["x.yaml"]


def test_a_missing_file(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "quickstart" in fails(["quikstart"], capsys)
    assert "nothing.yaml" in fails(["nothing.yaml"], capsys)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["data.limit=100000"], "data.limit: got 100000"),
        (["train.precision=fp16"], "train.precision: got fp16, which needs a GPU"),
        (["loss.weight=[1, 2, 3]"], "loss.weight: got 3 numbers, must be a list of 10"),
        (["model={name: vgg16, freeze: nothing}"], "model.freeze"),
        (["model={name: resnet18, freeze: features}"], "freeze"),
        (["optimizer={name: Muon, lr: 0.1}"], "Muon"),
        (["data={name: image_folder, root: nowhere}"], "nowhere"),
        (["model.name=inception_v3"], "data.image_size: Inception3 cannot take 2 images of 32 x 32"),
        (["model.name=resnet18", "data.limit=33"], "resnet18 cannot learn from 1 image (BatchNorm)"),
        (["data={name: cifar10, root: here}"], "cifar-10-python.tar.gz"),
    ],
)
def test_values(workdir: Path, capsys: pytest.CaptureFixture[str], changes: list[str], says: str) -> None:
    assert says in fails(["quickstart", *SMALL, *changes], capsys)


def test_image_folders_without_classes(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "images/train").mkdir(parents=True)
    (workdir / "images/test").mkdir()
    assert "class" in fails(["quickstart", "data={name: image_folder, root: images}"], capsys)


def test_a_damaged_image_is_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (workdir / f"images/{split}/{name}").mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (40, 30), (index * 50, 0, 0)).save(workdir / f"images/{split}/{name}/{index}.png")
    (workdir / "images/train/dog/1.png").write_bytes(b"not a picture")
    assert "dog/1.png" in fails(["quickstart", "data={name: image_folder, root: images}", "train.batch_size=2"], capsys)


def test_weights_of_another_architecture(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"fc.weight": torch.zeros(10, 512)}, "other.pt")
    message = fails(["quickstart", *SMALL, "model.weights=other.pt"], capsys)
    assert "features.0.weight" in message
    assert "fc.weight" in message


def test_a_pickle_that_would_execute_code(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(workdir / "executed"),)

    torch.save(Evil(), "evil.pt")
    assert "evil.pt" in fails(["quickstart", *SMALL, "model.weights=evil.pt"], capsys)
    assert not (workdir / "executed").exists()


def test_an_unwritable_run_directory(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "runs").write_text("a file, where a folder should be")
    assert "runs/quickstart: cannot be written" in fails(["quickstart", *SMALL], capsys)


def test_two_runs_in_one_directory(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "runs/quickstart").mkdir(parents=True)
    with owning(workdir / "runs/quickstart"):
        assert "in use" in fails(["quickstart", *SMALL], capsys)


def test_what_is_finished_or_different_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.make_images(workdir / "images")
    small = ["quickstart", *SMALL, "data={name: image_folder, root: images, val_fraction: 0.2, limit: null}"]
    assert main(["run", *small]) == 0
    capsys.readouterr()
    assert "is finished" in fails(small, capsys)
    message = fails([*small, "optimizer.lr=0.02"], capsys)
    assert "optimizer.lr: 0.01 there, 0.02 now" in message
    assert "--fresh" in message
    assert "--resume to continue" not in message.replace("`", "")
    assert "`--resume`" in fails([*small, "train.steps=4"], capsys)

    assert main(["run", *small, "train.steps=4", "--resume"]) == 0
    assert "ends at 3" in fails([*small, "train.steps=3", "--resume"], capsys)
    assert "no such checkpoint" in fails([*small, "train.steps=5", "--resume", "step-00000099"], capsys)
    assert main(["run", *small, "--fresh"]) == 0
    assert (workdir / "runs/quickstart.old-1/summary.json").exists()
