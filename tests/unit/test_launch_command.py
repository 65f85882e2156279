import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.local.start.command import (
    ACCELERATE_CONFIG,
    INTERFACE_VARIABLES,
    Command,
    Node,
    accelerate_launch,
    command_here,
    config_arguments,
    left_by_another_launch,
    training_arguments,
    training_command,
)

SEVERAL = (
    "TRAINLAUNCH_WORLD_SIZE=2 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=7 accelerate launch --multi_gpu "
    f"--config_file {shlex.quote(str(ACCELERATE_CONFIG))} "
    "--num_processes 2 --num_machines 1 --machine_rank 0 --gpu_ids all --main_process_port 0 --mixed_precision no "
    "--dynamo_backend no -m trainlib.train x.yaml optimizer.lr=0.1"
)


@pytest.mark.parametrize(
    ("processes", "on_cpu", "without", "expected"),
    [
        (1, True, [], "TRAINLAUNCH_WORLD_SIZE=1 python -m trainlib.train x.yaml optimizer.lr=0.1"),
        (1, False, [], "TRAINLAUNCH_WORLD_SIZE=1 python -m trainlib.train x.yaml optimizer.lr=0.1"),
        (2, False, [], SEVERAL),
        (2, True, [], f"ACCELERATE_USE_CPU=true {SEVERAL}"),
        (2, False, ["MASTER_ADDR", "RANK"], f"env -u MASTER_ADDR -u RANK {SEVERAL}"),
    ],
)
def test_training_command_whole(processes: int, on_cpu: bool, without: list[str], expected: str) -> None:
    command = training_command(
        ["x.yaml", "optimizer.lr=0.1"],
        processes,
        on_cpu=on_cpu,
        python="python",
        accelerate=("accelerate", "launch"),
        without=without,
    )
    assert command.shell_text() == expected


def test_accelerate_is_started_with_the_packages_of_this_interpreter(tmp_path: Path) -> None:
    python = str(tmp_path / "python")
    assert accelerate_launch(python) == (python, "-m", "accelerate.commands.launch")
    (tmp_path / "accelerate").touch()
    assert accelerate_launch(python) == (str(tmp_path / "accelerate"), "launch")


@pytest.mark.parametrize(
    ("chosen", "gloo", "nccl"),
    [
        ({}, "eth0", "eth0"),
        ({"NCCL_SOCKET_IFNAME": "ib0,ib1"}, "eth0", "ib0,ib1"),
        ({"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": ""}, "eth1", "eth0"),
    ],
)
def test_ranks_of_several_machines_talk_through_the_interface_to_the_first_one(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], gloo: str, nccl: str
) -> None:
    for name in INTERFACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    command = command_here(["x.yaml"], 2, 2, node=Node(2, 1, ("10.0.0.1", 29500), "eth0"))
    assert [command.environment[name] for name in INTERFACE_VARIABLES] == [gloo, nccl]
    alone = command_here(["x.yaml"], 2, 2)  # its ranks need no network, and NCCL finds its own way within a machine
    assert alone.environment["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert "NCCL_SOCKET_IFNAME" not in alone.environment


def test_what_another_launch_left_is_told_from_the_rest() -> None:
    left = ["GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE"]
    left += ["PET_NNODES", "PMI_SIZE", "RANK", "ROLE_NAME", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"]
    others = ["PATH", "PETER", "MY_RANK", "RANKS", "SLURM_NODEID", "TRAINLAUNCH_WORLD_SIZE", "MASTER", "NCCL_DEBUG"]
    assert left_by_another_launch(dict.fromkeys([*others, *reversed(left)], "1")) == left


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


def test_a_shell_gives_the_words_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    report = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['WORD'], 'RANK' in os.environ]))"
    words = ["a b", "loss={name: MSELoss}", "it's", "$HOME", "", "*", 'say "no"']
    command = Command((sys.executable, "-c", report, *words), {"WORD": "two words; $x"}, ["RANK"])
    printed = subprocess.run(["sh", "-c", command.shell_text()], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [words, "two words; $x", False]
    assert "RANK" not in command.variables(os.environ)
    assert command.variables({"RANK": "1", "WORD": "", "PATH": "/"}) == {"WORD": "two words; $x", "PATH": "/"}
