"""Jobs of the test cluster that train with slurm/train.sbatch: submitted, watched, and disturbed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import tiny
from paths import REPOSITORY
from patience import HANG
from slurm_cluster import Cluster

from launch.slurm.queue import JobState, parse_states
from trainlib.runs.files.json_records import read_lines

SCRIPT = REPOSITORY / "slurm" / "train.sbatch"
ON_CPUS = "slurm.gpus_per_node=0"  # the cluster's GPUs are files


class Job:
    """One job that trains into `cwd/runs/run`."""

    def __init__(
        self,
        cluster: Cluster,
        cwd: Path,
        arguments: list[str],
        *options: str,
        environment: Mapping[str, str] | None = None,
    ):
        self.cluster, self.cwd = cluster, cwd
        words = ["sbatch", "--parsable", f"--chdir={cwd}", f"--output={cwd}/slurm.out", "--time=30", *options]
        variables = {
            "PYTHONPATH": f"{cwd}{os.pathsep}{REPOSITORY}",  # where a sitecustomize.py can disturb it
            "TRAINLAUNCH_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        assignments = [f"{name}={value}" for name, value in variables.items()]
        self.id = cluster.run(["env", *assignments, *words, str(SCRIPT), *arguments]).strip()

    @property
    def state(self) -> JobState:
        from launch.slurm import queue

        columns = ",".join(f"{field}:|" for field in queue._FIELDS)
        text = self.cluster.run(
            ["env", "SLURM_TIME_FORMAT=%s", "squeue", "-h", "-r", "-t", "all", "-j", self.id, "-O", columns]
        )
        return parse_states(text)[self.id]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of the ledger of this kind."""
        return [line for line in read_lines(self.cwd / "runs/run/jobs.jsonl") if line["event"] == event]

    def output(self) -> str:
        """All that the job printed, for a test that fails."""
        paths = [self.cwd / "slurm.out", *sorted((self.cwd / "runs/run/logs").glob("*.out"))]
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in paths if path.exists())

    def wait_until(self, condition: Callable[[], bool], seconds: float = 2 * HANG) -> None:
        """Fails where the job ends for good before that."""
        deadline = time.monotonic() + seconds
        while not condition():
            state = self.state
            assert time.monotonic() < deadline, f"{state}\n{self.output()}"
            assert state.active, f"{state}\n{self.output()}"
            self._hasten(state)
            time.sleep(0.2)

    def wait_until_it_trains(self, restart: int, steps: int = 3) -> None:
        """Until this start of the job has written some rows."""

        def trains() -> bool:
            starts = tiny.attempts(self.cwd, "start")
            begun = [line for line in self.lines("begin") if line["restart"] == restart]
            if not begun or not starts or starts[-1]["time"] < begun[-1]["time"]:
                return False
            rows = read_lines(self.cwd / "runs/run/metrics.jsonl")
            return len([row for row in rows if row["time"] > starts[-1]["time"]]) >= steps

        self.wait_until(trains)

    def wait(self, seconds: float = 2 * HANG) -> JobState:
        """Until it has ended for good; its last state."""
        deadline = time.monotonic() + seconds
        while (state := self.state).active:
            assert time.monotonic() < deadline, f"{state}\n{self.output()}"
            self._hasten(state)
            time.sleep(0.2)
        return state

    def _hasten(self, state: JobState) -> None:
        """After a requeue SLURM waits two minutes; two seconds do, as a node refuses a job that it ended just now."""
        if state.state == "PENDING" and (state.start or 0.0) > time.time() + 5:
            self.cluster.run(["scontrol", "update", f"JobId={self.id}", "StartTime=now+2"])

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in this job, on either node."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == self.id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_gone(self, seconds: float = HANG) -> None:
        """None of its processes is left on either node, soon after its end."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []

    def step_daemon(self, step: str, node: str = "n0") -> psutil.Process:
        """The slurmstepd of a step, `batch` or `0`, on a node."""
        for process in self.processes():
            if process.environ().get("SLURMD_NODENAME") != node:
                continue
            for parent in process.parents():
                if " ".join(parent.cmdline()).startswith(f"slurmstepd: [{self.id}.{step}"):
                    return parent
        raise AssertionError(f"no slurmstepd of step {step} on {node}")


@contextmanager
def submitting(cluster: Cluster, folder: Path) -> Iterator[Callable[..., Job]]:
    """A function that submits a job of two nodes, `submit(name, arguments, *options, **environment)`, in `folder/name`.

    What is left of the jobs in the end is cancelled.
    """
    jobs: list[Job] = []

    def submit(name: str, arguments: list[str], *options: str, **environment: str) -> Job:
        cwd = folder / name
        cwd.mkdir(exist_ok=True)
        jobs.append(Job(cluster, cwd, arguments, "--nodes=2", *options, environment=environment))
        return jobs[-1]

    yield submit
    for job in jobs:
        cluster.run(["scancel", job.id])
        for process in job.processes():  # those whose slurmstepd was killed
            with suppress(psutil.Error):
                process.kill()
