"""`launch sweep` on a real SLURM: a job array whose elements are interrupted and requeued, each by itself."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
from paths import REPOSITORY
from slurm_cluster import Cluster
from soak import rounds

from launch.cli import main
from launch.slurm.queue import JobState, job_states

SEEDS = tuple(range(rounds(3, 4)))

# What interrupts element k, whose job the queue knows by this id.
INTERRUPTIONS: tuple[Callable[[str], list[str]], ...] = (
    lambda job: ["scancel", "--batch", "--signal=USR2", job],
    lambda job: ["scontrol", "requeue", job],
    lambda job: ["scancel", "--full", "--signal=USR1", job],
    lambda job: ["scontrol", "requeue", job],
)


@pytest.fixture
def on_cluster(cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with this cluster's commands pointing at it."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return workdir


def lines(name: str, file: str) -> list[dict[str, Any]]:
    path = Path("runs") / name / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(name: str, file: str, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(name, file) if line["event"] == event]


def active(job_id: str) -> dict[str, JobState]:
    """The elements that wait or run, by their ids."""
    return {name: state for name, state in job_states([job_id]).items() if state.active}


def interrupt(words: list[str]) -> subprocess.Popen[bytes]:
    """Of an array's element, this scancel reports an error after it has sent its signal, and would try for minutes."""
    return subprocess.Popen(["timeout", "2", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def hasten(cluster: Cluster, state: JobState) -> None:
    """After a requeue SLURM waits two minutes; two seconds do."""
    if state.state == "PENDING" and (state.start or 0.0) > time.time() + 5 and state.restarts:
        cluster.run(["scontrol", "update", f"JobId={state.job_id}", "StartTime=now+2"])


def test_each_element_is_interrupted_in_turn(
    cluster: Cluster, on_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Array of 3 (4 under `make soak`), at most 2 at a time; each is interrupted once, in one of three ways.

    All end with the bits of undisturbed runs, and none has more starts than its own interruption explains.
    """
    tiny.make_images(on_cluster / "images")
    common = [word for word in tiny.arguments(on_cluster / "images", 40, 20) if not word.startswith("name=")]
    common += ["slurm={gpus_per_node: 0, time: '00:10:00'}", "tracking.wandb.mode=disabled"]
    Path("s.yaml").write_text(f"configs: [{common[0]}]\ngrid: {{seed: {list(SEEDS)}}}\nthrottle: 2\n")
    assert main(["sweep", "s.yaml", *common[1:]]) == 0
    captured = capsys.readouterr()
    job_id = captured.out.strip()
    assert job_id.isdecimal(), captured
    assert main(["sweep", "s.yaml", *common[1:]]) == 0  # all of it is in the queue
    assert f"nothing to start: all {len(SEEDS)} runs are finished or in the queue" in capsys.readouterr().err

    interrupted: dict[int, subprocess.Popen[bytes]] = {}
    most_at_once = 0
    deadline = time.monotonic() + 1200
    while left := active(job_id):
        assert time.monotonic() < deadline, {seed: lines(f"s-seed{seed}", "jobs.jsonl") for seed in SEEDS}
        most_at_once = max(most_at_once, sum(state.state == "RUNNING" for state in left.values()))
        for seed in SEEDS:
            if seed not in interrupted and len(lines(f"s-seed{seed}", "metrics.jsonl")) > 5:
                interrupted[seed] = interrupt(INTERRUPTIONS[seed](f"{job_id}_{seed}"))
        for state in left.values():
            hasten(cluster, state)
        time.sleep(0.1)
    assert sorted(interrupted) == list(SEEDS)
    assert all(process.wait() in (0, 124) for process in interrupted.values())
    assert most_at_once == 2

    whole = tiny.in_folder(on_cluster, "whole")
    for seed in SEEDS:
        name = f"s-seed{seed}"
        ends = events(name, "jobs.jsonl", "end")
        assert [(end["cause"], end["requeued"], end["restart"]) for end in ends] == [
            ("preempted", True, 0),
            ("completed", False, 1),
        ], name
        assert {(line["job_id"], line["array_task"]) for line in lines(name, "jobs.jsonl")} == {(job_id, seed)}
        starts = events(name, "attempts.jsonl", "start")
        assert [start["from_step"] > 0 for start in starts] == [False, True], name
        assert {start["slurm_job_id"] for start in starts} == {f"{job_id}_{seed}"}
        assert ranks.train([*common, f"seed={seed}", f"name={name}"], cwd=whole) == [0]
        ours, expected = (json.loads((cwd / "runs" / name / "summary.json").read_text()) for cwd in (on_cluster, whole))
        assert ours["weights_sha256"] == expected["weights_sha256"]

    assert main(["sweep", "s.yaml", *common[1:], "--results"]) == 0
    assert capsys.readouterr().out.count(" completed ") == len(SEEDS)
    assert main(["sweep", "s.yaml", *common[1:]]) == 0
    assert active(job_id) == {}
    assert [path.name for path in Path("runs/s").iterdir()] == ["submission-1"]


def test_where_sbatch_refuses_nothing_is_left_and_its_call_is_shown(
    cluster: Cluster, on_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--dry-run shows the call of sbatch, which element is which run, and the script; an array that SLURM refuses ends
    with sbatch's code and leaves no folder."""
    tiny.make_images(on_cluster / "images")
    (config, *common) = [word for word in tiny.arguments(on_cluster / "images", 1, 4) if not word.startswith("name=")]
    Path("s.yaml").write_text(f"configs: [{config}]\ngrid: {{seed: [0, 1]}}\n")
    words = ["sweep", "s.yaml", *common, "slurm.gpus_per_node=0", "--throttle", "1"]
    before = sorted(Path().rglob("*"))
    assert main([*words, "--dry-run"]) == 0
    call, elements, script = capsys.readouterr().out.split("\n\n", 2)
    call_words = shlex.split(call.replace("\\\n", " "))
    assert call_words[-2:] == ["runs/s/submission-1/code/slurm/train.sbatch", "@runs/s/submission-1/elements"]
    assert "--array=0-1%1" in call_words
    assert elements == "# runs/s/submission-1/elements\nruns/s-seed0/config.yaml\nruns/s-seed1/config.yaml"
    assert script.endswith((REPOSITORY / "slurm/train.sbatch").read_text())
    assert main([*words, "--sbatch", "constraint=no-such-feature"]) == 1
    assert "sbatch refused the job" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
    assert main([*words, "slurm.partition=mian"]) == 2
    assert "did you mean main?" in capsys.readouterr().err
    assert main([*words, "slurm.nodes=9", "--dry-run"]) == 0
    assert main([*words, "slurm.nodes=9"]) == 2
    assert sorted(Path().rglob("*")) == before
