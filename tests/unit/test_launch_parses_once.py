"""A command reads its configuration once: what it starts in the same process gets what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import trainlib.train
from launch.cli import main
from launch.cli.slurm import prepare
from trainlib.config import Config, load, load_config

CONFIG = ["quickstart", "data={name: synthetic}", "name=x"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> list[Config]:
    """Every configuration that is validated, in the order in which that happens."""
    found: list[Config] = []
    original = load._validated

    def validated(*source_and_parts: Any) -> Config:
        found.append(original(*source_and_parts))
        return found[-1]

    monkeypatch.setattr(load, "_validated", validated)
    return found


def test_run(read: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Config] = []

    def train(config: Config, *_: Any, **__: Any) -> bool:
        trained.append(config)
        return True

    monkeypatch.setattr(trainlib.train, "train", train)
    assert main(["run", *CONFIG, "--processes", "1"]) == 0
    assert [config.name for config in trained] == ["x"]
    assert len(read) == 1
    assert trained[0] is read[0]


def test_check(read: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *CONFIG]) == 0
    assert len(read) == 1
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "x"


def test_preparing_a_job(read: list[Config]) -> None:
    prepare(CONFIG, load_config(CONFIG))
    assert len(read) == 1
    assert yaml.safe_load(Path("runs/x/config.yaml").read_text())["name"] == "x"


@pytest.mark.parametrize("command", ["run", "check"])
def test_mistakes_are_told_as_before(command: str, read: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *CONFIG, "optimizer.lr=-1"]) == 2
    assert "error: optimizer.lr: got -1, must be" in capsys.readouterr().err
    assert read == []
