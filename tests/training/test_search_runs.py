"""A trial that is stopped at rungs and continued is, bit for bit, the one that was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
from paths import REPOSITORY
from patience import HANG, wait_until
from sweep_files import written

from launch.sweep.file.grid import read_sweep
from launch.sweep.results import results_facts, results_table
from trainlib.runs.files.json_records import read_json, read_lines
from trainlib.runs.machine.launch_variables import NUM_THREADS, STOP_AT
from trainlib.runs.records.checkpoints import steps_in


def train_to(duration: str, arguments: list[str]) -> int:
    """In each rank: train as `launch sweep` has it done."""
    os.environ[STOP_AT] = duration
    return ranks.main(arguments)


def train_with(threads: int, arguments: list[str]) -> int:
    """In each rank: train with so many threads."""
    os.environ[NUM_THREADS] = str(threads)
    return ranks.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_stopped_at_rungs_and_continued_no_bit_is_other(tmp_path: Path, world_size: int) -> None:
    """A start that is to end where the run is already trains nothing; one beyond the end completes the run."""
    tiny.make_images(tmp_path / "images")
    arguments = tiny.arguments(tmp_path / "images", 3, 100)
    cwd, whole = tiny.in_folder(tmp_path, "stopped"), tiny.in_folder(tmp_path, "whole")
    assert ranks.train(arguments, world_size=world_size, cwd=whole) == [0] * world_size, ranks.console(whole)
    for duration, step in (("1ep", 4), ("1ep", 4), ("6st", 6)):
        codes = ranks.run(train_to, duration, arguments, world_size=world_size, cwd=cwd)
        assert codes == [75] * world_size, ranks.console(cwd)
        assert max(steps_in(cwd / "runs/run/checkpoints")) == step
        end = read_lines(cwd / "runs/run/attempts.jsonl")[-1]
        assert (end["status"], end["code"], end["step"]) == ("stopped", "rung", step)
    assert ranks.run(train_to, "3ep", arguments, world_size=world_size, cwd=cwd) == [0] * world_size
    assert tiny.digest(cwd) == tiny.digest(whole)
    assert tiny.rows(cwd) == tiny.rows(whole)


@pytest.mark.soak
def test_a_search_whose_tuner_is_killed(workdir: Path) -> None:
    """Its trial goes on, and the next tuner waits for it; every trial that is promoted ends with the bits of a plain
    run of its command."""
    tiny.make_images(workdir / "images")
    common = [word for word in tiny.arguments(workdir / "images", 2, 100) if not word.startswith("name=")]
    space = "{optimizer.lr: {min: 1e-4, max: 1e-2, log: true}}"
    written(f"configs: [{common[0]}]\nspace: {space}\ntrials: 3\nmetric: train/loss\nrungs: [1ep]\n")
    words = [sys.executable, "-m", "launch", "sweep", "s.yaml", *common[1:], "--local", "--parallel", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}

    with subprocess.Popen(words, env=environment) as killed:
        wait_until(lambda: any(Path("runs").glob("*/owner.json")) or killed.poll() is not None)
        killed.send_signal(signal.SIGKILL)
    subprocess.run([*words[:-1], "1"], env=environment, check=True, timeout=HANG)

    sweep = read_sweep(Path("s.yaml"), common[1:])
    assert [fact["status"] for fact in results_facts(sweep)] == ["completed", "out", "out"], results_table(sweep)
    best = next(element for element in sweep.elements if element.name == results_facts(sweep)[0]["name"])
    threads = read_json(Path("runs") / best.name / "environment.json")["num_threads"]
    whole = tiny.in_folder(workdir, "whole")
    assert ranks.run(train_with, threads, list(best.arguments), cwd=whole, world_size=1) == [0], ranks.console(whole)
    assert tiny.digest(workdir, name=best.name) == tiny.digest(whole, name=best.name)
    assert tiny.rows(workdir, name=best.name) == tiny.rows(whole, name=best.name)
