"""Real child processes: a few under the real `accelerate launch`, those about signals under one that starts fast."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from paths import REPOSITORY
from patience import HANG, wait_until
from tiers import slow_but

from launch.local.start import command as start
from launch.local.start.command import Command

# Accelerate's own settings of a user, each of which would change how the ranks are started if it were read.
HOSTILE_SETTINGS = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: fp16
num_processes: 1
num_machines: 3
machine_rank: 2
gpu_ids: "0"
main_process_port: 1
debug: true
use_cpu: true
enable_cpu_affinity: true
dynamo_config: {dynamo_backend: INDUCTOR}
fsdp_config: {fsdp_sharding_strategy: 1}
"""

# What a launch of four ranks on two other machines would leave in a shell; the PET_ ones make torchrun wait for ever.
OTHER_LAUNCH = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "other",
    "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "node: ",
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "192.0.2.1",
}

LAUNCHER = """\
import json, sys
from pathlib import Path
from launch.local.start.command import Command
from launch.local.ranks.supervise import run_ranks
words, environment, without, directory = json.loads(sys.argv[1])
sys.exit(run_ranks(Command(tuple(words), environment, without), Path(directory)))
"""

# A training that can be asked to stop. It writes what the launcher waits for: its owner, and the attempt's start.
TRAINING = """\
import json, sys, time
from pathlib import Path
from trainlib.runs.attempt.owner import Ownership
directory, delay = Path(sys.argv[1]), float(sys.argv[2])
(directory.parent / "up").touch()
time.sleep(delay)
(directory / "logs").mkdir(parents=True, exist_ok=True)
owner = Ownership(directory)
(directory / "attempts.jsonl").write_text(json.dumps({"event": "start", "attempt": 2, "time": "now"}) + "\\n")
(directory.parent / "training").touch()
while not (directory / "STOP").exists():
    time.sleep(0.02)
(directory / "STOP").unlink()
print("stopped at a step", file=sys.stderr)
"""


@pytest.mark.parametrize("part", ["launcher.log", "logs"])
def test_what_the_launcher_writes_and_shows_is_in_the_run_directory_alone(tmp_path: Path, part: str) -> None:
    from launch.local import console

    outside, logs = tmp_path / "outside", tmp_path / "run/logs"
    (outside / "logs").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (outside / "logs/launcher.log").write_text("secret\n")
    if part == "logs":
        logs.symlink_to(outside / "logs")
    else:
        logs.mkdir()
        (logs / part).symlink_to(outside / "logs" / part)
    console.append(logs / "launcher.log", ["line\n"])
    assert console.last_lines(logs / "launcher.log") == []
    assert (outside / "logs/launcher.log").read_text() == "secret\n"
    logs.unlink() if part == "logs" else (logs / part).unlink()
    console.append(logs / "launcher.log", [f"{number}\n" for number in range(20)])
    assert console.last_lines(logs / "launcher.log") == [str(number) for number in range(5, 20)]


def start_launcher(
    command: Command, directory: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    arguments = json.dumps([command.words, dict(command.environment), command.without, str(directory)])
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, arguments],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{directory.parent}", **(environment or {})},
        cwd=directory.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_training(directory: Path, delay: float = 0.0) -> subprocess.Popen[str]:
    return start_launcher(Command((sys.executable, "-c", TRAINING, str(directory), str(delay)), {}), directory)


def under_accelerate(program: str, directory: Path, without: Sequence[str] = ()) -> Command:
    """The real command for two ranks, with `program` in place of the training."""
    (directory.parent / "probe.py").write_text(program)
    words = start.accelerate_launch(sys.executable)
    command = start.training_command(["a b"], 2, on_cpu=True, python=sys.executable, accelerate=words, without=without)
    words = tuple("probe" if word == start.TRAINING_MODULE else word for word in command.words)
    return Command(words, command.environment, command.without)


def test_both_ranks_come_up_whatever_the_users_settings_and_shell_say(tmp_path: Path) -> None:
    settings = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(HOSTILE_SETTINGS)
    program = """\
import json, os, sys
names = ("RANK", "WORLD_SIZE", "TRAINLAUNCH_WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION",
         "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY")
with open(f"rank-{os.environ['RANK']}.json", "w") as file:
    json.dump([sys.argv[1:], {name: os.environ[name] for name in names if name in os.environ}], file)
"""
    command = under_accelerate(program, tmp_path / "run", start.left_by_another_launch(OTHER_LAUNCH))
    launcher = start_launcher(command, tmp_path / "run", OTHER_LAUNCH | {"HF_HOME": str(tmp_path / "hf")})
    stdout, stderr = launcher.communicate(timeout=HANG)
    assert (launcher.returncode, stdout, stderr) == (0, "", "")
    for rank in ("0", "1"):
        arguments, environment = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert arguments == ["a b"]
        assert environment == {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "TRAINLAUNCH_WORLD_SIZE": "2",
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_MIXED_PRECISION": "no",
            "ACCELERATE_DYNAMO_BACKEND": "NO",
        }


@pytest.mark.slow
@pytest.mark.parametrize("code", [2, 7])
def test_a_failing_rank_gives_its_code_and_is_named(code: int, tmp_path: Path) -> None:
    program = f"""\
import os, sys, time
from pathlib import Path
if os.environ["RANK"] == "0":
    Path("run/logs").mkdir(parents=True)
    Path("run/logs/rank-1.log").write_text("loading\\nRuntimeError: no more memory\\n")
    Path("run/attempts.jsonl").write_text('{{"event": "start", "attempt": 1}}\\n')
    print("a warning of rank 0", file=sys.stderr, flush=True)
    time.sleep(3600)
while not Path("run/attempts.jsonl").exists():
    time.sleep(0.02)
time.sleep(0.3)
sys.exit({code})
"""
    launcher = start_launcher(under_accelerate(program, tmp_path / "run"), tmp_path / "run")
    stdout, stderr = launcher.communicate(timeout=HANG)
    assert (launcher.returncode, stdout) == (code, "")
    warning, message, *tail = stderr.splitlines()
    assert warning == "a warning of rank 0"
    assert message.startswith(f"error: rank 1 on {socket.gethostname()} ")
    assert message.endswith(f"ended with exit code {code}; its log is {tmp_path}/run/logs/rank-1.log, which ends with:")
    assert tail == ["  loading", "  RuntimeError: no more memory"]
    log = (tmp_path / "run" / "logs" / "launcher.log").read_text()
    assert "a warning of rank 0" in log
    assert "ChildFailedError" in log


@pytest.mark.slow
def test_a_refused_run_ends_at_once_and_says_nothing_more(tmp_path: Path) -> None:
    """Rank 1 waits for a rank 0 that never comes, deaf to SIGTERM as it would be inside a collective."""
    program = """\
import os, signal, sys, time
from pathlib import Path
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("deaf").touch()
    time.sleep(3600)
while not Path("deaf").exists():
    time.sleep(0.02)
print("error: run is in use", file=sys.stderr)
Path("refused").touch()
sys.exit(2)
"""
    launcher = start_launcher(under_accelerate(program, tmp_path / "run"), tmp_path / "run")
    _, stderr = launcher.communicate(timeout=HANG)
    assert (launcher.returncode, stderr) == (2, "error: run is in use\n")
    assert time.time() - (tmp_path / "refused").stat().st_mtime < 29  # the agent alone would wait for 30 s
    assert not (tmp_path / "run").exists()


ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", slow_but(ASKING[:2], ASKING))
def test_a_signal_asks_the_run_to_stop(number: int, tmp_path: Path) -> None:
    launcher = start_training(tmp_path / "run")
    wait_until((tmp_path / "training").exists)
    launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=HANG)
    assert launcher.returncode == 0
    assert f"{signal.Signals(number).name}: stopping at the next step" in stderr
    assert stderr.endswith("stopped at a step\n")


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, and as the launcher inherits it
    try:
        launcher = start_training(tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until((tmp_path / "training").exists)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    _, stderr = launcher.communicate(timeout=HANG)
    assert "SIGHUP" not in stderr


def test_a_signal_before_the_run_begins_is_not_lost(tmp_path: Path) -> None:
    """The directory is there already, with an earlier attempt: a STOP file in it now might be cleared away."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "attempts.jsonl").write_text('{"event": "start", "attempt": 1}\n')
    launcher = start_training(tmp_path / "run", delay=1.0)
    wait_until((tmp_path / "up").exists)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert not (tmp_path / "run" / "STOP").exists()
    _, stderr = launcher.communicate(timeout=HANG)
    assert launcher.returncode == 0
    assert stderr.endswith("stopped at a step\n")


def test_a_second_ctrl_c_kills_all_processes(tmp_path: Path) -> None:
    """The ranks are in sessions of their own, as under torchrun."""
    rank = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    agent = (
        "import pathlib, subprocess, sys\n"
        f"ranks = [subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True) for _ in range(2)]\n"
        "path = pathlib.Path('pids.new')\n"
        "path.write_text(' '.join(str(rank.pid) for rank in ranks))\n"
        "path.rename('pids')\n"
        "ranks[0].wait()\n"
    )
    launcher = start_launcher(Command((sys.executable, "-c", agent), {}), tmp_path / "run")
    wait_until((tmp_path / "pids").exists)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    _, stderr = launcher.communicate(timeout=HANG)
    assert launcher.returncode == 130
    assert "killed" in stderr
    for pid in (tmp_path / "pids").read_text().split():
        wait_until(lambda pid=pid: not _is_alive(int(pid)))  # type: ignore[misc]


def test_a_stop_that_came_too_late_does_not_stop_the_next_run(tmp_path: Path) -> None:
    program = """\
import sys, time
from pathlib import Path
from trainlib.runs.attempt.owner import Ownership
Path("run").mkdir()
owner = Ownership(Path("run"))
Path("run/attempts.jsonl").write_text('{"event": "start"}')
while not Path("run/STOP").exists():
    time.sleep(0.02)
"""
    launcher = start_launcher(Command((sys.executable, "-c", program), {}), tmp_path / "run")
    wait_until((tmp_path / "run" / "attempts.jsonl").exists)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=HANG)
    assert launcher.returncode == 0
    assert not (tmp_path / "run" / "STOP").exists()


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
