"""Modules in the current folder do not stand for installed ones, whichever way a program is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

from trainlib.platform import isolation

# Python's own, ours, and those that we and torch import; one in a folder, one in a file.
SHADOWS = (
    "random.py",
    "queue.py",
    "torch.py",
    "wandb/__init__.py",
    "click.py",
    "yaml.py",
    "numpy/__init__.py",
    "psutil.py",
)


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A current folder with modules that leave the file RAN."""
    for name in SHADOWS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("open('RAN', 'a').write(__name__ + ' ')\nraise SystemExit('from here')\n")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "launch", "--version"],
        pytest.param(["-m", "launch", "check", "quickstart"], marks=pytest.mark.slow),
        pytest.param(["-m", "trainlib.train", "--help"], marks=pytest.mark.slow),
        pytest.param(["-m", "trainlib.distributed.rendezvous.agent", "2"], marks=pytest.mark.slow),
        ["-m", "launch.slurm.job", "--help"],
        ["-P", "-m", "launch", "list"],
    ],
)
def test_python_m_imports_nothing_from_the_current_folder(shadows: Path, words: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *words], cwd=shadows, env=environment, capture_output=True, text=True)
    assert not (shadows / "RAN").exists(), (shadows / "RAN").read_text()
    assert "from here" not in done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTHONSAFEPATH": "1"}),
        ({"PYTHONPATH": "/a:/b"}, {"PYTHONSAFEPATH": "1"}),
        ({"PYTHONPATH": ":/a"}, {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/a"}),
        ({"PYTHONPATH": "/a::/b:"}, {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/a:/b"}),
        ({"PYTHONPATH": ""}, {"PYTHONSAFEPATH": "1"}),
    ],
)
def test_the_variables_of_a_child(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "path", ["", str(REPOSITORY)])
    assert isolation.child_variables(given) == expected


def test_a_clone_that_is_not_installed_stays_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), str(tmp_path)])  # the first: of a script beside the packages
    assert isolation.child_variables({})["PYTHONPATH"] == str(REPOSITORY)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_imports_nothing_from_the_current_folder(shadows: Path, processes: int) -> None:
    """Ranks, their agent and W&B's process."""
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | {"PYTHONPATH": str(REPOSITORY)}
    words = ["quickstart", "name=run", "train={epochs: null, steps: 2}", "tracking.wandb.mode=offline"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch", "run", *words, "--processes", str(processes)],
        cwd=shadows,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (shadows / "RAN").exists(), (shadows / "RAN").read_text()
    assert list((shadows / "runs/run/wandb").glob("offline-*"))
