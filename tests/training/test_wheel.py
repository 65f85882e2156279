"""The wheel and the sdist are built, installed outside the clone, and hold everything that is used by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from soak import only_in_soak

pytestmark = pytest.mark.slow


class Installed:
    """What was built from this clone, installed into a folder of its own, and used from another one."""

    def __init__(self, kind: str, folder: Path):
        self.there, self.elsewhere = folder / "installed", folder / "elsewhere"
        self.elsewhere.mkdir()
        self.run("-m", "hatchling", "build", "-t", kind, "-d", str(folder / "dist"), cwd=REPOSITORY)
        [built] = (folder / "dist").iterdir()
        pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target")
        self.run(*pip, str(self.there), str(built))
        told = self.run("-c", "import launch, trainlib; print(launch.__file__, trainlib.__file__)")
        assert told.count(str(self.there)) == 2

    def run(self, *words: str, cwd: Path | None = None) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.there)}
        command = [sys.executable, "-P", *words]
        done = subprocess.run(command, cwd=cwd or self.elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_works_outside_the_clone(kind: str, tmp_path: Path) -> None:
    installed = Installed(kind, tmp_path)
    script = Path(installed.run("-m", "launch", "slurm-script").strip())
    assert script.is_relative_to(installed.there)
    assert (script.parent / "sites/apptainer.sh").is_file()
    assert "trainlib.train" in installed.run("-m", "launch", "run", "finetune", "--dry-run")
    assert "sbatch" in installed.run("-m", "launch", "submit", "quickstart", "--site", "enroot", "--dry-run")
    assert "sbatch" in installed.run("-m", "launch", "sweep", "lr_and_seed", "--dry-run")


@only_in_soak
def test_every_command_of_the_documentation_works_from_the_wheel(tmp_path: Path) -> None:
    pages = REPOSITORY / "tests/docs/test_docs_commands.py"
    said = Installed("wheel", tmp_path).run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(pages))
    assert " passed" in said
    assert "failed" not in said
    print(said.splitlines()[-1])
