"""A sweep that runs on this machine: interrupted and continued, and with runs that fail or are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
from paths import REPOSITORY
from patience import HANG
from sweep_files import written

from launch.cli import main
from launch.sweep.file.grid import read_sweep
from launch.sweep.shares import Begun, Shares
from trainlib.errors import UserError

SHARES = Shares(1, None, (), 2)


def sweep_here(*more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "launch", "sweep", "s.yaml", "--local", *more]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def attempts(name: str) -> list[dict[str, Any]]:
    path = Path("runs") / name / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_sweep_here_is_interrupted_and_continued(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C stops the run under way with a checkpoint and begins no other. The second start continues it, runs the
    rest, and ends with the bits of undisturbed runs; the third finds nothing to do."""
    tiny.make_images(workdir / "images")
    common = [word for word in tiny.arguments(workdir / "images", 12, 4) if not word.startswith("name=")]
    written(f"configs: [{common[0]}]\ngrid: {{seed: [3, 4]}}\n")
    first = sweep_here(*common[1:])
    rows = workdir / "runs/s-seed3/metrics.jsonl"
    deadline = time.monotonic() + HANG
    while not (rows.exists() and rows.read_text().count("\n") > 5):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=HANG)
    assert first.returncode == 75, err
    assert [line.get("status") for line in attempts("s-seed3")] == [None, "stopped"]
    assert attempts("s-seed4") == []
    assert "stopped" in out.splitlines()[-2]

    second = sweep_here(*common[1:])
    out, err = second.communicate(timeout=HANG)
    assert second.returncode == 0, err
    assert [line.get("status") for line in attempts("s-seed3")] == [None, "stopped", None, "completed"]
    assert attempts("s-seed3")[2]["from_step"] > 0
    assert [line.get("status") for line in attempts("s-seed4")] == [None, "completed"]
    assert "[1/2] s-seed3: seed=3\n" in err

    assert main(["sweep", "s.yaml", "--local", *common[1:]]) == 0
    captured = capsys.readouterr()
    assert captured.err == "nothing to start: all 2 runs are finished or in the queue\n"
    assert captured.out.splitlines() == out.splitlines()[-3:]
    assert (len(attempts("s-seed3")), len(attempts("s-seed4"))) == (4, 2)

    whole = tiny.in_folder(workdir, "whole")
    for seed in (3, 4):
        assert ranks.train([*common, f"seed={seed}", f"name=s-seed{seed}"], cwd=whole) == [0]
        shas = [
            json.loads((cwd / f"runs/s-seed{seed}/summary.json").read_text())["weights_sha256"]
            for cwd in (workdir, whole)
        ]
        assert shas[0] == shas[1]


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code is the first failing run's own. What is prepared is what is run: runs/<name>/config.yaml."""
    from launch.sweep import local

    program = (
        "import sys; open('ran', 'a').write(sys.argv[1] + ' '); sys.exit({1: 7, 2: 75, 3: 0}[int(sys.argv[1][-1])])"
    )
    command = local.run_command
    sweep = read_sweep(written("configs: [quickstart]\ngrid: {seed: [1, 2, 3]}\n"))
    assert command(sweep.elements[0], ["--processes", "2"])[1:] == [
        *("-m", "launch", "run", "runs/s-seed1/config.yaml", "--processes", "2")
    ]
    monkeypatch.setattr(local, "run_command", lambda element, more: [sys.executable, "-c", program, element.name])
    assert local.run_here(sweep.elements, SHARES) == 7
    assert Path("ran").read_text().split() == ["s-seed1", "s-seed2", "s-seed3"]
    assert "error: s-seed1 ended with exit code 7: launch status s-seed1\n" in capsys.readouterr().err
    assert local.run_here(sweep.elements[1:], SHARES) == 75
    assert local.run_here(sweep.elements[2:], SHARES) == 0


# A run that is asked to stop by its first Ctrl-C, and ends at once at the second one.
STUBBORN = """
import pathlib, signal, sys, time
asked = []
def handle(number, frame):
    asked.append(number)
    pathlib.Path("asked").touch()
    if len(asked) == 2:
        sys.exit(130)
signal.signal(signal.SIGINT, handle)
pathlib.Path("ready").touch()
time.sleep(3600)
"""


@pytest.mark.usefixtures("workdir")
def test_a_second_ctrl_c_ends_the_run_and_the_sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.sweep import local

    def press_twice() -> None:
        for file in ("ready", "asked"):
            while not Path(file).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    sweep = read_sweep(written("configs: [quickstart]\ngrid: {seed: [1, 2]}\n"))
    commands: list[str] = []

    def command_of(element: Any, more: Any) -> list[str]:
        commands.append(element.name)
        return [sys.executable, "-c", STUBBORN]

    monkeypatch.setattr(local, "run_command", command_of)
    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=press_twice, daemon=True).start()
    assert local.run_here(sweep.elements, SHARES) == 130
    assert commands == ["s-seed1"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("workdir")
def test_where_one_run_is_refused_none_is_begun_and_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The second run's directory holds another configuration: the first one's is made, and removed again."""
    written("configs: [quickstart]\ngrid: {seed: [0, 1]}\n")
    other = Path("runs/s-seed1")
    (other / "logs").mkdir(parents=True)
    other_config = "name: s-seed1\nseed: 5\n"
    (other / "config.yaml").write_text(other_config)
    assert main(["sweep", "s.yaml", "--local"]) == 2
    assert "holds a run of a different configuration" in capsys.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["s-seed1"]
    assert (other / "config.yaml").read_text() == other_config
    assert not (other / "attempts.jsonl").exists()


@pytest.mark.parametrize(
    ("parallel", "processes", "gpus", "expected"),
    [
        (1, None, [], [([], {})]),
        (1, 2, [], [(["--processes", "2"], {})]),
        (2, None, [], [([], {"TRAINLAUNCH_NUM_THREADS": "4"})] * 2),
        (2, 2, [], [(["--processes", "2"], {"TRAINLAUNCH_NUM_THREADS": "2"})] * 2),
        (1, None, ["0", "1"], [([], {})]),
        (
            2,
            None,
            ["0", "1", "2", "3"],
            [
                (["--processes", "2"], {"CUDA_VISIBLE_DEVICES": gpus, "TRAINLAUNCH_NUM_THREADS": "2"})
                for gpus in ("0,1", "2,3")
            ],
        ),
        (
            4,
            None,
            ["a", "b"],
            [
                (["--processes", "1"], {"CUDA_VISIBLE_DEVICES": gpu, "TRAINLAUNCH_NUM_THREADS": "2"})
                for gpu in ("a", "b", "a", "b")
            ],
        ),
    ],
)
def test_the_machine_is_shared_out(
    parallel: int, processes: int | None, gpus: list[str], expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINLAUNCH_NUM_THREADS", raising=False)
    shares = Shares(parallel, processes, gpus, 8)
    assert [shares.take(f"r{i}", None, is_elastic=False) for i in range(parallel)] == expected


def test_a_run_keeps_what_it_began_with_whatever_is_asked_later() -> None:
    first = Begun(num_threads=3, world_size=2)
    assert Shares(1, None, [], 8).take("r", first, is_elastic=False) == (
        ["--processes", "2"],
        {"TRAINLAUNCH_NUM_THREADS": "3"},
    )
    options, variables = Shares(4, None, ["0", "1", "2", "3"], 8).take("r", first, is_elastic=False)
    assert (options, variables["CUDA_VISIBLE_DEVICES"]) == (["--processes", "2"], "0,1")
    with pytest.raises(UserError, match="r: began with 2 processes, and 1 GPUs are visible here"):
        Shares(1, None, ["0"], 8).take("r", first, is_elastic=False)
