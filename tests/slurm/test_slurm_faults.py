"""Two nodes of a real SLURM: what they train, and that whatever ends a job on the way changes no bit of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tiny
from paths import REPOSITORY
from slurm_cluster import Cluster
from slurm_jobs import ON_CPUS, Job, submitting
from soak import only_in_soak

from launch.slurm.head import candidate_ports

EVERY = 4  # steps from checkpoint to checkpoint
EPOCHS = 40  # of 4 steps

# In every Python process of a job whose directory holds this: rank 1 ends with 7 as soon as there is the file `fail`.
FAILING = """\
import os, threading, time
if os.environ.get("RANK") == "1":
    def fail():
        while not os.path.exists("fail"):
            time.sleep(0.02)
        os.unlink("fail")  # once
        os._exit(7)
    threading.Thread(target=fail, daemon=True).start()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slurm-images") / "images"
    tiny.make_images(root)
    return root


def training(images: Path, epochs: int = EPOCHS, *more: str) -> list[str]:
    return tiny.arguments(images, epochs, EVERY, ON_CPUS, "tracking.wandb.mode=disabled", *more)


def launch_run(arguments: list[str], cwd: Path) -> None:
    """`launch run --processes 2` on this machine, to its end."""
    cwd.mkdir()
    process = tiny.launch(arguments, cwd)
    assert process.wait(180) == 0, (cwd / "console.txt").read_text()


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on one machine, undisturbed."""
    cwd = tmp_path_factory.mktemp("whole") / "run"
    launch_run(training(images), cwd)
    return cwd


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submits jobs to the test's own directories."""
    with submitting(cluster, tmp_path) as submit:
        yield submit


@pytest.fixture
def listeners() -> Iterator[Callable[[int], None]]:
    """Listens at ports until the test ends."""
    sockets: list[socket.socket] = []

    def listen(port: int) -> None:
        sockets.append(socket.create_server(("", port)))

    yield listen
    for listener in sockets:
        listener.close()


@only_in_soak
def test_two_jobs_on_the_same_nodes_at_once(
    submit: Callable[..., Job], listeners: Callable[[int], None], images: Path, whole: Path
) -> None:
    """Each trains what two processes of one machine train, bit for bit.

    The first job's port is taken before it probes it, the second one's between the probe and its use. The second one
    was submitted from a shell with what an allocation of one CPU left there, and gets the four that it asks for.
    """
    first = submit("first", training(images), "--hold")
    ports = candidate_ports(f"job-{first.id}-restart-0")
    taken = next(ports)
    listeners(taken)
    first.cluster.run(["scontrol", "release", first.id])
    second = submit(
        "second",
        training(images),
        "--cpus-per-task=4",
        SLURM_CPUS_PER_TASK="1",
        SLURM_CPU_BIND="quiet,map_cpu:63",
        SLURM_CPU_BIND_TYPE="map_cpu:",
        SLURM_CPU_BIND_LIST="63",
        SRUN_CPUS_PER_TASK="1",
    )
    second.wait_until(lambda: bool(second.lines("begin")))
    listeners(second.lines("begin")[0]["port"])
    second.wait_until(lambda: tiny.last_step(second.cwd) > 0)
    ranks = [process for process in second.processes() if "RANK" in process.environ()]
    assert len(ranks) == 2
    for rank in ranks:
        assert rank.environ()["SLURM_CPUS_PER_TASK"] == "4"
        assert rank.cpu_affinity() == psutil.Process().cpu_affinity()
    for job in (first, second):
        assert job.wait().exit_code == 0, job.output()
        tiny.assert_same_result(job.cwd, whole)
        assert [line["cause"] for line in job.lines("end")] == ["completed"]
    assert first.lines("begin")[0]["port"] == next(ports)
    assert "another program listens at the port" in second.output()


def test_real_failures_end_the_job_and_preemptions_do_not(
    submit: Callable[..., Job], images: Path, tmp_path: Path
) -> None:
    """A failure, a preemption, a failure: with slurm.max_failures=2 that is the end, FAILED with the rank's own 7."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "sitecustomize.py").write_text(FAILING)
    job = submit("job", training(images, 1000, "slurm.max_failures=2"))

    job.wait_until_it_trains(0)
    (job.cwd / "fail").touch()
    job.wait_until(lambda: len(job.lines("end")) > 0)
    job.wait_until_it_trains(1)
    job.cluster.run(["scancel", "--signal=USR2", "--batch", job.id])
    job.wait_until(lambda: len(job.lines("end")) > 1)
    job.wait_until_it_trains(2)
    (job.cwd / "fail").touch()
    state = job.wait()
    assert (state.state, state.exit_code) == ("FAILED", 7), job.output()
    job.assert_gone()

    ends = job.lines("end")
    assert [(line["cause"], line["exit_code"], line["requeued"]) for line in ends] == [
        ("failure", 7, True),
        ("preempted", 75, True),
        ("failure", 7, False),
    ], job.output()
    for line in (ends[0], ends[2]):
        assert (line["rank"], line["host"], line["log"]) == (1, "n1", "runs/run/logs/rank-1.log")
    words = [sys.executable, "-m", "launch", "status", "run"]
    environment = os.environ | job.cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
    status = subprocess.run(words, cwd=job.cwd, env=environment, capture_output=True, text=True, check=True).stdout
    assert "rank 1 on n1: exit code 7 (log: runs/run/logs/rank-1.log)" in status, status
    log = (job.cwd / "runs/run/logs/rank-1.log").read_text()
    headers = [line for line in log.splitlines() if line.startswith("===")]
    assert headers == [f"=== attempt {k + 1}, job {job.id} restart {k} ===" for k in range(3)]


def cancelled_or_stopped(job: Job, state: str, cause: str, exit_code: int) -> None:
    assert job.wait().state == state, job.output()
    (end,) = job.lines("end")
    assert (end["cause"], end["exit_code"], end["requeued"]) == (cause, exit_code, False), job.output()
    stopped = tiny.attempts(job.cwd, "end")[-1]
    assert stopped["status"] == "stopped"
    assert stopped["step"] == max(int(path.name[5:]) for path in (job.cwd / "runs/run/checkpoints").glob("step-*"))


def test_cancelled_and_stopped_jobs_write_a_checkpoint_and_do_not_come_back(
    submit: Callable[..., Job], images: Path
) -> None:
    jobs = {name: submit(name, training(images, 1000)) for name in ("cancelled", "stopped")}
    for job in jobs.values():
        job.wait_until_it_trains(0)
    jobs["cancelled"].cluster.run(["scancel", jobs["cancelled"].id])
    words = [sys.executable, "-m", "launch", "stop", "run"]
    environment = os.environ | jobs["stopped"].cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(words, cwd=jobs["stopped"].cwd, env=environment, capture_output=True, check=True)
    cancelled_or_stopped(jobs["cancelled"], "CANCELLED", "cancelled", 75)
    cancelled_or_stopped(jobs["stopped"], "FAILED", "stopped", 75)


def interrupt(job: Job, kind: str) -> str | None:
    """Do this to a job that trains; the cause that the ledger has to tell, None where the job goes on."""
    run = job.cluster.run
    match kind:
        case "USR2 to the batch shell":
            run(["scancel", "--signal=USR2", "--batch", job.id])
        case "USR2 to the ranks":
            run(["scancel", "--signal=USR2", job.id])
        case "USR1 to the batch shell":
            run(["scancel", "--signal=USR1", "--batch", job.id])
        case "TERM to the ranks":
            run(["scancel", "--signal=TERM", job.id])
        case "TERM to all":
            run(["scancel", "--signal=TERM", "--full", job.id])
        case "requeue":
            run(["scontrol", "requeue", job.id])
        case "time limit":
            run(["scontrol", "update", f"JobId={job.id}", "TimeLimit=2"])
            return "time_limit"
        case "slurmstepd of n0" | "slurmstepd of n1":
            job.step_daemon("0", kind[-2:]).kill()
            return "node_failure"
        case "slurmstepd of the batch script":  # SLURM does not learn of it, and the run goes on
            job.step_daemon("batch").kill()
            return None
        case "controller is away":  # when the job, asked to stop, wants to go back into the queue
            stopped, ended = len(tiny.attempts(job.cwd, "end")), len(job.lines("end"))
            run(["scancel", "--signal=USR2", "--batch", job.id])
            job.wait_until(lambda: (job.cwd / "runs/run/STOP").exists() or len(tiny.attempts(job.cwd, "end")) > stopped)
            job.cluster.kill("controller")
            time.sleep(15)
            assert len(job.lines("end")) == ended, job.output()
            job.cluster.start_controller()
        case "slurmd of n0" | "slurmd of n1":
            job.cluster.kill(kind[-2:])
            time.sleep(1)
            job.cluster.start_node(kind[-2:])
            return None
        case _:
            raise AssertionError(kind)
    return "preempted"


def interrupt_in_turn(job: Job, kinds: list[str]) -> list[str]:
    """The causes that the ledger has to tell of it."""
    causes: list[str] = []
    for kind in kinds:
        job.wait_until_it_trains(len(causes))
        cause = interrupt(job, kind)
        if cause is not None:
            causes.append(cause)
            job.wait_until(lambda: len(job.lines("end")) == len(causes))
        if cause == "time_limit":
            job.wait_until(lambda: job.state.waiting)
            job.cluster.run(["scontrol", "update", f"JobId={job.id}", "TimeLimit=60"])
    return causes


def assert_completes(job: Job, causes: list[str], whole: Path) -> None:
    assert job.wait(400).exit_code == 0, job.output()
    tiny.assert_same_result(job.cwd, whole)
    ends = job.lines("end")
    assert [line["cause"] for line in ends] == [*causes, "completed"]
    assert all(line["requeued"] for line in ends[:-1])
    assert not ends[-1]["requeued"]
    job.assert_gone()


def test_interrupted_jobs_come_back_and_lose_nothing(submit: Callable[..., Job], images: Path, whole: Path) -> None:
    """Two kinds that other tests do not have; those of elastic jobs and of sweeps have the others that are quick."""
    job = submit("job", training(images))
    assert_completes(job, interrupt_in_turn(job, ["slurmd of n1", "USR2 to the ranks"]), whole)


ALL_KINDS = [
    *["USR2 to the batch shell", "USR2 to the ranks", "slurmstepd of the batch script", "TERM to the ranks", "requeue"],
    *["slurmstepd of n1", "slurmd of n1", "USR1 to the batch shell", "time limit", "controller is away", "TERM to all"],
    *["slurmd of n0", "slurmstepd of the batch script"],
]


@only_in_soak
def test_interruptions_of_every_kind(submit: Callable[..., Job], images: Path, tmp_path: Path) -> None:
    """In the end the batch script's slurmstepd is gone, and SLURM learns from the job itself that it is complete."""
    undisturbed = tmp_path / "undisturbed"
    launch_run(training(images, 400), undisturbed)
    job = submit("job", training(images, 400, "slurm.max_failures=1"))
    again = (kind.replace("slurmstepd of n1", "slurmstepd of n0") for kind in reversed(ALL_KINDS[:-1]))
    rounds = [*again, *ALL_KINDS]
    assert len(rounds) >= 20
    assert_completes(job, interrupt_in_turn(job, rounds), undisturbed)


@only_in_soak
def test_a_job_stops_by_itself_before_its_time_is_over(submit: Callable[..., Job], images: Path) -> None:
    """Without any warning from SLURM; a minute is not enough for the run, and each start makes some of it."""
    job = submit("job", training(images, 1000), "--time=1", "--signal=B:USR2@0")
    job.wait_until(lambda: len(job.lines("end")) == 2, 240)
    assert [(line["cause"], line["requeued"]) for line in job.lines("end")] == [("time_limit", True)] * 2
    ends = tiny.attempts(job.cwd, "end")
    assert [line["reason"] for line in ends] == ["end time"] * 2
    assert 0 < ends[0]["step"] < ends[1]["step"]
