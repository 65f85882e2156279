"""Code of the user's own on a real SLURM: a preempted job goes on with the copy, whatever becomes of the file."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
import ranks
from paths import REPOSITORY
from slurm_cluster import Cluster

from launch.cli import main
from launch.slurm.queue import job_states

PAGE = (REPOSITORY / "docs/own_code.md").read_text()
CODE, CONFIG = (
    re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)[0] for kind in ("python", "yaml")
)
CHANGES = [
    "data.count=90",
    "train={epochs: 60, batch_size: 16}",
    "checkpoint.every=20st",
    "tracking={tensorboard: false, log_every: 1, wandb: {mode: disabled}}",
    "slurm={gpus_per_node: 0, time: '00:10:00'}",
]


def _launch(words: list[str]) -> int:
    return main(words)


def test_a_preempted_job_goes_on_with_the_copy(
    cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submitted, the file changed, preempted once, completed: with the weights of an undisturbed run."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (workdir / "own.yaml").write_text(CONFIG)
    (workdir / "own.py").write_text(CODE)
    assert ranks.run(
        _launch, ["run", "own.yaml", "--code", "own.py", "name=whole", *CHANGES], world_size=1, cwd=workdir
    ) == [0]
    assert main(["submit", "own.yaml", "--code", "own.py", *CHANGES]) == 0
    job = capsys.readouterr().out.strip()
    assert job.isdecimal()
    (workdir / "own.py").write_text("raise RuntimeError('nobody imports this')\n")
    rows, preempted, deadline = Path("runs/own/metrics.jsonl"), False, time.monotonic() + 600
    while (state := job_states([job]).get(job)) is not None and state.active:
        assert time.monotonic() < deadline, state
        if not preempted and rows.exists() and len(rows.read_text().splitlines()) > 5:
            cluster.run(["scontrol", "requeue", job])
            preempted = True
        if state.state == "PENDING" and (state.start or 0.0) > time.time() + 5 and state.restarts:
            cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"])
        time.sleep(0.1)
    ends = [
        line for line in map(json.loads, Path("runs/own/jobs.jsonl").read_text().splitlines()) if line["event"] == "end"
    ]
    assert [end["cause"] for end in ends] == ["preempted", "completed"], os.listdir("runs/own/logs")
    summaries = [json.loads(Path("runs", name, "summary.json").read_text()) for name in ("own", "whole")]
    assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]
