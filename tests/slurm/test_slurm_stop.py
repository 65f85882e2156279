"""`launch stop` for a job that waits, for its first start or between two starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from paths import REPOSITORY
from slurm_cluster import Cluster
from slurm_jobs import ON_CPUS, submitting

from trainlib.runs.records.jobs import JobStart, append


@pytest.mark.parametrize("when", ["before its first start", "between two starts"])
def test_a_stop_while_the_job_waits_ends_it(cluster: Cluster, tmp_path: Path, when: str) -> None:
    tiny.make_images(tmp_path / "images")
    training = tiny.arguments(tmp_path / "images", 1000, 4, ON_CPUS, "tracking.wandb.mode=disabled")
    with submitting(cluster, tmp_path) as submit:
        job = submit("job", training, *(["--hold"] if when == "before its first start" else []))
        run = job.cwd / "runs/run"
        if when == "between two starts":
            job.wait_until_it_trains(0)
            job.cluster.run(["scontrol", "requeuehold", job.id])
            job.wait_until(lambda: job.state.state == "PENDING" and not job.processes())
        else:
            run.mkdir(parents=True)
            append(run, JobStart(job.id, None, 0).as_record("submitted"))  # as `launch submit` does
        words = [sys.executable, "-m", "launch", "stop", "run"]
        environment = os.environ | job.cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(words, cwd=job.cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"cancelled job {job.id} of run, which was pending: submit it again to continue")
        assert job.wait().state == "CANCELLED"
        last = job.lines("end")[-1]
        assert (last["cause"], last["requeued"]) == ("cancelled", False)
        assert not (run / "STOP").exists()
