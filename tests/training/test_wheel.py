"""The wheel and the sdist are built, installed outside the clone, and hold everything that is used by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_works_outside_the_clone(kind: str, tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words: str, cwd: Path = elsewhere) -> str:
        environment = os.environ | {"PYTHONPATH": str(there)}
        done = subprocess.run([sys.executable, "-P", *words], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path / "dist"), cwd=REPOSITORY)
    [built] = (tmp_path / "dist").iterdir()
    run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(there), str(built))
    assert run("-c", "import launch, trainlib; print(launch.__file__, trainlib.__file__)").count(str(there)) == 2
    script = Path(run("-m", "launch", "slurm-script").strip())
    assert script.is_relative_to(there)
    assert (script.parent / "sites/apptainer.sh").is_file()
    assert "trainlib.train" in run("-m", "launch", "run", "finetune", "--dry-run")
    assert "sbatch" in run("-m", "launch", "submit", "quickstart", "--site", "enroot", "--dry-run")
    assert "sbatch" in run("-m", "launch", "sweep", "lr_and_seed", "--dry-run")
