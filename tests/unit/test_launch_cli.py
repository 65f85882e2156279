"""The `launch` command from outside: as a process where that matters, through click where it does not."""

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from paths import REPOSITORY

from launch.cli import main
from launch.local.ranks.agent import AGENT_MODULE
from trainlib.platform.isolation import child_variables

# Stands in for the training program: tells what it was given, and ends with 75.
PROGRAM = """\
import os, sys
assert "torch" not in sys.modules

def main(arguments, config=None):
    print(os.environ["TRAINLAUNCH_WORLD_SIZE"], arguments)
    return 75
"""


def isolated() -> str:
    """The variables that keep the current folder off the module search path, as a shell takes them."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in child_variables(os.environ).items())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid config in the working directory, on a machine without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "x.yaml"
    path.write_text("data: {name: synthetic}\n")
    return path


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        env={**os.environ, "PYTHONPATH": path.lstrip(os.pathsep), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["run", "--help"], ["--version"], []])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from launch.cli import main\n"
        f"code = main({words!r})\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'rich', 'yaml', 'trainlib.config'} & sys.modules.keys()), code)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[] 2\n" if not words else "[] 0\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rn"], "No such command 'rn'"),
        (["run"], "Missing argument 'CONFIG... [key=value ...]'"),
        (["run", "x.yaml", "--proceses", "2"], "No such option"),
        (["run", "x.yaml", "--processes", "0"], "got 0, must be auto or a whole number from 1 on"),
        (["run", "x.yaml", "--processes", "two"], "got two, must be auto or a whole number from 1 on"),
        (["run", "x.yaml", "--fresh", "--resume"], "error: --fresh and --resume: one starts over"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "x.yaml", "optimizer.lr=-1"], "optimizer.lr: got -1"),
        (["check", "x.yaml", "sead=1"], "sead"),
        (["status", "no-such-run"], "error: no run 'no-such-run'"),
        (["logs", "no-such-run"], "error: no run 'no-such-run'"),
        (["stop", "no-such-run"], "error: no run 'no-such-run'"),
        (["cancel", "no-such-run"], "error: no run 'no-such-run'"),
    ],
)
@pytest.mark.usefixtures("config")
def test_a_users_mistake_is_one_message_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("config")
def test_an_error_of_the_configuration_comes_without_torch() -> None:
    program = (
        "import sys; from launch.cli import main\n"
        "print(main(['run', 'x.yaml', 'optimizer.lr=-1']), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "2 False\n"
    assert result.stderr.startswith("error: optimizer.lr: got -1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x.yaml", "x.yaml"),
        ("--name y x.yaml --resume seed=1", "x.yaml seed=1 'name=\"y\"' --resume"),
        ("x.yaml --processes auto --fresh", "x.yaml --fresh"),
    ],
)
@pytest.mark.usefixtures("config")
def test_dry_run_prints_the_command_alone(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", *words.split()]) == 0
    python = shlex.quote(sys.executable)
    assert capsys.readouterr() == (f"{isolated()} TRAINLAUNCH_WORLD_SIZE=1 {python} -m trainlib.train {expected}\n", "")
    assert not Path("runs").exists()


def test_dry_run_of_several_processes_prints_what_is_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter and the `accelerate` beside it are programs here that tell how they were started.

    `accelerate launch` is started inside of an agent that reports how its ranks end; the printed command is without it.
    """
    program = f"#!{sys.executable}\nimport json, os, sys\njson.dump(sys.argv, open('started', 'w'))\n"
    for name in ("python", "accelerate"):
        (config.parent / name).write_text(program)
        (config.parent / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(config.parent / "python"))
    monkeypatch.setenv("MASTER_ADDR", "node1")
    words = ["run", "x.yaml", "--processes", "3"]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{config.parent}/accelerate launch --multi_gpu " in printed
    assert not (config.parent / "started").exists()
    assert main(words) == 0
    started = json.loads((config.parent / "started").read_text())
    prefix = f"env -u MASTER_ADDR ACCELERATE_USE_CPU=true {isolated()} GLOO_SOCKET_IFNAME=lo TRAINLAUNCH_WORLD_SIZE=3"
    prefix += " TORCH_ELASTIC_SHUTDOWN_TIMEOUT=7"
    assert started[1:4] == ["-P", "-m", AGENT_MODULE]
    assert shlex.split(printed) == [*prefix.split(), f"{config.parent}/accelerate", "launch", *started[5:]]
    assert started[started.index("--num_processes") + 1] == "3"
    assert started[-3:] == ["-m", "trainlib.train", "x.yaml"]


def test_one_process_trains_in_this_interpreter(config: Path) -> None:
    """The training program's exit code passes through, and only that torch is being loaded is printed beside it."""
    (config.parent / "program.py").write_text(PROGRAM)
    (config.parent / "sitecustomize.py").write_text("import sys, program; sys.modules['trainlib.train'] = program\n")
    result = launch("run", "x.yaml", "--name", "y", PYTHONPATH=str(config.parent))
    assert (result.returncode, result.stdout, result.stderr) == (
        75,
        "1 ['x.yaml', 'name=\"y\"']\n",
        "loading torch ...\n",
    )


@pytest.mark.usefixtures("config")
def test_one_process_is_no_rank_of_another_launch_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK and its like in the shell would make it wait for other ranks for ever."""

    def train(arguments: list[str], config: object) -> int:
        inside.update(os.environ)
        os.environ["SET_BY_THE_TRAINING"] = "1"
        raise KeyboardInterrupt

    inside: dict[str, str] = {}
    program = types.ModuleType("trainlib.train")
    program.main = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainlib.train", program)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "of another launch")
    before = dict(os.environ)
    assert main(["run", "x.yaml"]) == 130
    assert dict(os.environ) == before
    assert inside["TRAINLAUNCH_WORLD_SIZE"] == "1"
    assert not [name for name in inside if inside[name] == "of another launch"]


@pytest.mark.usefixtures("config")
def test_list_without_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == f"no runs in {Path('runs').resolve()}\n"


@pytest.mark.usefixtures("config")
def test_list_status_and_logs_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    logs = Path("runs/x/logs")
    logs.mkdir(parents=True)
    (logs / "rank-0.log").write_text("a line\n")
    Path("runs/x/attempts.jsonl").write_text('{"event": "end", "attempt": 1, "status": "completed", "step": 3}\n')
    assert main(["list"]) == 0
    assert "x     completed" in capsys.readouterr().out
    assert main(["status", "runs/x"]) == 0
    assert "status:      completed" in capsys.readouterr().out
    assert main(["logs", "x", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "a line\n"


def test_a_current_folder_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list"]) == main(["status", "x"]) == main(["run", "quickstart", "--dry-run"]) == 2
    told = "error: the current folder does not exist any more: change to another one (cd)\n"
    assert capsys.readouterr() == ("", 3 * told)


def test_the_start_page_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 79
    assert any(line.startswith("  launch run quickstart ") for line in lines)
