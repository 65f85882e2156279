import json
import shlex
import subprocess
import sys

import pytest

from launch.command import ACCELERATE_CONFIG, Command, mark_bare_resume, training_arguments, training_command

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
    ("name", "fresh", "resume", "expected"),
    [
        (None, False, None, ["x.yaml", "seed=1"]),
        ("y", False, None, ["x.yaml", "seed=1", "name=y"]),
        (None, True, None, ["x.yaml", "seed=1", "--fresh"]),
        (None, False, "", ["x.yaml", "seed=1", "--resume"]),
        ("y", False, "step-00000003", ["x.yaml", "seed=1", "name=y", "--resume", "step-00000003"]),
    ],
)
def test_options_become_arguments(name: str | None, fresh: bool, resume: str | None, expected: list[str]) -> None:
    assert training_arguments(["x.yaml", "seed=1"], name=name, fresh=fresh, resume=resume) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x.yaml --resume", "x.yaml --resume="),
        ("--resume x.yaml", "--resume= x.yaml"),
        ("--resume dir/x.yml", "--resume= dir/x.yml"),
        ("--resume quickstart", "--resume= quickstart"),
        ("x.yaml --resume train.epochs=30", "x.yaml --resume= train.epochs=30"),
        ("x.yaml --resume data.root=/images", "x.yaml --resume= data.root=/images"),
        ("x.yaml --resume --dry-run", "x.yaml --resume= --dry-run"),
        ("x.yaml --resume step-00000123", "x.yaml --resume step-00000123"),
        ("--resume runs/x/checkpoints/step-00000123 x.yaml", "--resume runs/x/checkpoints/step-00000123 x.yaml"),
        ("--resume=copy x.yaml", "--resume=copy x.yaml"),
        ("x.yaml --fresh", "x.yaml --fresh"),
    ],
)
def test_resume_takes_only_a_checkpoint(words: str, expected: str) -> None:
    assert mark_bare_resume(words.split()) == expected.split()


def test_a_shell_gives_the_words_back() -> None:
    report = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['WORD']]))"
    words = ["a b", "loss={name: MSELoss}", "it's", "$HOME", "", "*", 'say "no"']
    command = Command((sys.executable, "-c", report, *words), {"WORD": "two words; $x"})
    printed = subprocess.run(["sh", "-c", command.shell_text()], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [words, "two words; $x"]
