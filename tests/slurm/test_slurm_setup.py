"""What a job does before Python starts (`slurm.setup`), and the scripts that start ranks in a container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from paths import REPOSITORY

SCRIPT = REPOSITORY / "slurm/train.sbatch"
RECORD = """#!/usr/bin/env bash
printf '%s\\n' "$0" "$@" > said.txt
export -p > variables.txt
echo exit 0
"""


def program(folder: Path, name: str) -> Path:
    """A program that records its words and variables; as the interpreter, it ends the batch script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(RECORD)
    (folder / name).chmod(0o755)
    return folder / name


def run(words: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{cwd / 'bin'}:{os.environ['PATH']}", "HOME": str(cwd), **variables}
    return subprocess.run(["bash", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_lines_of_setup_run_in_order_before_python_and_reach_it(tmp_path: Path) -> None:
    program(tmp_path / "bin", "python")
    lines = ["export A='two words'", 'B="$A twice"; export B', "cat > nothing.txt", "ours() { true; }; ours"]
    done = run([str(SCRIPT), "x.yaml"], tmp_path, TRAINLAUNCH_SETUP="\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert 'declare -x B="two words twice"' in (tmp_path / "variables.txt").read_text()
    assert (tmp_path / "said.txt").read_text().splitlines()[1:] == ["-m", "launch.slurm.job", "begin", "x.yaml"]


def test_setup_may_choose_the_interpreter(tmp_path: Path) -> None:
    other = program(tmp_path / "environment", "python")
    setup = f"PATH={other.parent}:$PATH\nexport TRAINLAUNCH_PYTHON=python"
    done = run([str(SCRIPT), "x.yaml"], tmp_path, TRAINLAUNCH_SETUP=setup, TRAINLAUNCH_PYTHON="/not/there")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said.txt").read_text().splitlines()[0] == str(other)


@pytest.mark.parametrize(("line", "code"), [("(exit 7)", 7), ("conda-is-not-here activate x", 127), ("false", 1)])
def test_a_line_that_fails_ends_the_job_and_is_named(tmp_path: Path, line: str, code: int) -> None:
    program(tmp_path / "bin", "python")
    done = run([str(SCRIPT), "x.yaml"], tmp_path, TRAINLAUNCH_SETUP=f"true\n{line}\ntouch after")
    assert done.returncode == code
    assert f"error: slurm.setup: '{line}' failed with exit code {code}" in done.stderr
    assert not (tmp_path / "after").exists()
    assert not (tmp_path / "said.txt").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apptainer", "exec --nv --bind {cwd} --pwd {cwd} {cwd}/image python3.12 -m launch run --x"),
        ("enroot", "start --env TRAINLAUNCH_CONTAINER_PYTHON --env TRAINLAUNCH_IMAGE --mount {cwd}:{cwd} {cwd}/image"),
    ],
)
def test_a_container_gets_the_command_with_its_own_interpreter(tmp_path: Path, name: str, expected: str) -> None:
    program(tmp_path / "bin", name)
    words = [str(REPOSITORY / f"slurm/sites/{name}.sh"), "/env/bin/python", "-m", "launch", "run", "--x"]
    image = {"TRAINLAUNCH_IMAGE": f"{tmp_path}/image", "TRAINLAUNCH_CONTAINER_PYTHON": "python3.12"}
    done = run(words, tmp_path, **image)
    assert done.returncode == 0, done.stderr
    said = " ".join((tmp_path / "said.txt").read_text().splitlines()[1:])
    assert said.startswith(expected.format(cwd=tmp_path))
    assert said.endswith("python3.12 -m launch run --x")
    without = run(words, tmp_path)
    assert without.returncode != 0
    assert "TRAINLAUNCH_IMAGE" in without.stderr
