import json
import shlex
import subprocess
import sys

import pytest

from launch.command import ACCELERATE_CONFIG, Command, config_arguments, training_arguments, training_command

SEVERAL = (
    f"TRAINLAUNCH_WORLD_SIZE=2 accelerate launch --multi_gpu --config_file {shlex.quote(str(ACCELERATE_CONFIG))} "
    "--num_processes 2 --num_machines 1 --machine_rank 0 --gpu_ids all --main_process_port 0 --mixed_precision no "
    "--dynamo_backend no -m trainlib.train x.yaml optimizer.lr=0.1"
)


@pytest.mark.parametrize(
    ("processes", "on_cpu", "expected"),
    [
        (1, True, "TRAINLAUNCH_WORLD_SIZE=1 python -m trainlib.train x.yaml optimizer.lr=0.1"),
        (1, False, "TRAINLAUNCH_WORLD_SIZE=1 python -m trainlib.train x.yaml optimizer.lr=0.1"),
        (2, False, SEVERAL),
        (2, True, f"ACCELERATE_USE_CPU=true {SEVERAL}"),
    ],
)
def test_training_command_whole(processes: int, on_cpu: bool, expected: str) -> None:
    assert training_command(["x.yaml", "optimizer.lr=0.1"], processes, on_cpu=on_cpu).shell_text() == expected


@pytest.mark.parametrize(
    ("fresh", "resume", "expected"),
    [
        (False, None, ["x.yaml", "seed=1"]),
        (True, None, ["x.yaml", "seed=1", "--fresh"]),
        (False, "", ["x.yaml", "seed=1", "--resume"]),
        (False, "step-00000003", ["x.yaml", "seed=1", "--resume", "step-00000003"]),
    ],
)
def test_options_become_arguments(fresh: bool, resume: str | None, expected: list[str]) -> None:
    assert training_arguments(["x.yaml", "seed=1"], fresh=fresh, resume=resume) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [(None, ["x.yaml"]), ("y", ["x.yaml", 'name="y"']), ("2024", ["x.yaml", 'name="2024"'])],
)
def test_the_name_becomes_an_override(name: str | None, expected: list[str]) -> None:
    assert config_arguments(["x.yaml"], name) == expected


def test_a_shell_gives_the_words_back() -> None:
    report = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['WORD']]))"
    words = ["a b", "loss={name: MSELoss}", "it's", "$HOME", "", "*", 'say "no"']
    command = Command((sys.executable, "-c", report, *words), {"WORD": "two words; $x"})
    printed = subprocess.run(["sh", "-c", command.shell_text()], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [words, "two words; $x"]
