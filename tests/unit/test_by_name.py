"""What is shipped is found by its name from any folder, and the command has two names."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import REPOSITORY

from launch.cli import main
from trainlib.config.load import configs_folder


def launch(
    *words: str, cwd: Path, code: str = "from launch.cli import program; program()", name: str = "launch"
) -> str:
    program = f"import sys; sys.argv[0] = {name!r}; {code}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs/sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweeps_are_found_by_name(file: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", file.stem, "--dry-run", "--local"]) == 0
    assert "launch run" in capsys.readouterr().out


def test_a_sweep_that_there_is_not_is_told_with_those_that_there_are(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "lr_and_sed"]) == 2
    assert "lr_and_sed: no such file; did you mean lr_and_seed? (shipped sweeps: " in capsys.readouterr().err


def test_results_as_json_need_results(workdir: Path) -> None:
    assert main(["sweep", "lr_and_seed", "--json"]) == 2
    assert main(["sweep", "lr_and_seed", "--json", "--results"]) == 0


def test_the_batch_script_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm-script"]) == 0
    script = Path(capsys.readouterr().out.strip())
    assert script.read_text().startswith("#!")
    assert script.samefile(REPOSITORY / "slurm/train.sbatch")


def test_the_command_has_two_names_and_calls_itself_by_the_one_that_was_typed(tmp_path: Path) -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == dict.fromkeys(("launch", "trainlaunch"), "launch.cli:program")
    for name in scripts:
        assert f"Usage: {name} run" in launch("run", cwd=tmp_path, name=f"/usr/bin/{name}")


def test_what_travels_with_the_package_is_in_one_folder() -> None:
    included = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert included["force-include"]["configs"] == "trainlib/configs"
    assert (configs_folder() / "schema.json").is_file()


def test_a_system_without_locks_is_told_in_one_sentence(tmp_path: Path) -> None:
    """As on Windows, where Python has no fcntl."""
    said = launch("list", cwd=tmp_path, code="sys.modules['fcntl'] = None; import launch.cli")
    assert said == "2 error: trainlaunch runs on Linux and macOS; on Windows, install and use it inside WSL 2\n"


def test_the_start_page_is_short_and_its_commands_are_there(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import cli

    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    named = [line.split()[1] for line in told.err.splitlines() if line.startswith("  launch ")]
    assert named == ["run", "init", "run", "report", "predict"]
    assert set(named) <= set(cli.commands)
    assert max(map(len, told.err.splitlines())) <= 120
