"""A run where wandb, tensorboard or matplotlib is not installed: it trains to its end, with one warning for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

pytestmark = pytest.mark.slow

# Imported by Python at its start: the interpreter finds none of the packages named in HIDDEN, as if not installed.
HIDE = """
import importlib.machinery, os
find_spec = importlib.machinery.PathFinder.find_spec
hidden = os.environ["HIDDEN"].split()
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *more: None if name.partition(".")[0] in hidden else find_spec(name, *more)
)
"""
WARNINGS = {
    "wandb": "W&B: the package is not installed (`pip install wandb`); training goes on without it",
    "tensorboard": "TensorBoard: the package is not installed (`pip install tensorboard`); training goes on without it",
    "matplotlib": "curves.png could not be drawn (the package is not installed: `pip install matplotlib`); "
    "launch report shows the curves",
}
LEAVES = {"wandb": "wandb", "tensorboard": "tensorboard", "matplotlib": "curves.png"}  # in the run directory


def launch(hidden: str, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the `launch` program in an interpreter that cannot import the packages in `hidden`."""
    (cwd / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": f"{cwd}{os.pathsep}{REPOSITORY}", "HIDDEN": hidden}
    environment.pop("WANDB_MODE", None)
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("hidden", ["", " ".join(WARNINGS)], ids=["none missing", "all missing"])
def test_a_run_without_a_package(hidden: str, tmp_path: Path) -> None:
    done = launch(hidden, tmp_path, "run", "quickstart", "train.steps=2", "data.limit=32", "train.batch_size=16")
    console = done.stdout + done.stderr
    assert done.returncode == 0, console
    for package, warning in WARNINGS.items():
        assert console.count(warning) == (package in hidden.split()), console
        assert (tmp_path / "runs/quickstart" / LEAVES[package]).exists() == (package not in hidden.split())
    assert console.count("not installed") == len(hidden.split())


def test_commands_that_show_a_run_need_none_of_them(trained: Path, tmp_path: Path) -> None:
    run = trained / "runs/run"
    hidden = " ".join(WARNINGS)
    for words in (["status", str(run)], ["report", str(run), "--output", "page.html"], ["eval", str(run), "--json"]):
        done = launch(hidden, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert "not installed" not in done.stderr
