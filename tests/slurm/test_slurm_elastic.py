"""An elastic job of one or two nodes of a real SLURM: whatever the queue gives it at each start, the same bits."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ranks
import tiny
from slurm_cluster import NODES, Cluster
from slurm_jobs import ON_CPUS, Job, submitting
from soak import rounds

from launch.report.facts.run_facts import read_facts
from launch.report.page import page
from launch.runs.show import run_details
from trainlib.runs.attempt.status import read_run

EVERY = 4  # steps from checkpoint to checkpoint
INTERRUPTIONS = rounds(2, 10)


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submits jobs to the test's own directories; in the end the cluster has all its nodes again."""
    with submitting(cluster, tmp_path) as submit:
        yield submit
    make_available(cluster, NODES)


def training(cwd: Path, epochs: int) -> list[str]:
    mode = ["train.reproducibility=elastic", "train.virtual_shards=4", "slurm.nodes=1-2", ON_CPUS]
    return tiny.arguments(cwd / "images", epochs, EVERY, "tracking.wandb.mode=disabled", *mode)


def undisturbed(cwd: Path, arguments: list[str]) -> Path:
    """The directory of the same training in one process."""
    tiny.make_images(cwd / "images")
    whole = tiny.in_folder(cwd, "whole")
    assert ranks.train(arguments, cwd=whole) == [0], ranks.console(whole)
    return whole


def make_available(cluster: Cluster, nodes: tuple[str, ...]) -> None:
    """Drain all other nodes: what runs there goes on, nothing new starts."""
    for node in NODES:
        (state,) = cluster.run(["sinfo", "-h", "-n", node, "-o", "%T"]).split()
        if node in nodes and state.startswith("drain"):
            cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"])
        elif node not in nodes and not state.startswith("drain"):
            cluster.run(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test"])


def interrupt(job: Job, number: int) -> None:
    """A warning to the batch script, or a requeue by SLURM itself; until the job says that it has ended."""
    words = ["scontrol", "requeue"] if number % 2 else ["scancel", "--signal=USR2", "--batch"]
    job.cluster.run([*words, job.id])
    job.wait_until(lambda: len(job.lines("end")) > number)


def assert_completes(job: Job, whole: Path, given: list[tuple[str, ...]], causes: list[str]) -> None:
    """With the bits of one process; ledger, attempts, status and report tell the nodes and ranks of each start."""
    assert job.wait(300).exit_code == 0, job.output()
    tiny.assert_same_result(job.cwd, whole)
    assert [line["cause"] for line in job.lines("end")] == [*causes, "completed"]
    assert [tuple(line["nodes"]) for line in job.lines("begin")] == given
    attempts = tiny.attempts(job.cwd, "start")
    sizes = {line["slurm_restart_count"]: line["world_size"] for line in attempts}  # in the end: a node may come later
    assert list(sizes.values()) == [len(nodes) for nodes in given]
    directory, now = job.cwd / "runs/run", datetime.now(UTC)
    status, report = run_details(read_run(directory), now), page([read_facts(directory)], now)
    assert re.findall(r"begun on ([n01 ]+)", status) == [" ".join(nodes) for nodes in given]
    assert re.findall(r"started.* at step \d+, (\d) rank", status) == [str(line["world_size"]) for line in attempts]
    assert re.findall(r", on ([n01 ]+)<", report) == [" ".join(nodes) for nodes in given]


def test_a_job_goes_on_with_the_nodes_that_there_are(submit: Callable[..., Job], tmp_path: Path) -> None:
    """Both at first, and others than before at each later start: both, or one of them."""
    choice = random.Random(7)
    arguments = training(tmp_path, 10 * (INTERRUPTIONS + 2))
    whole = undisturbed(tmp_path, arguments)
    job = submit("job", arguments, "--nodes=1-2")
    given: list[tuple[str, ...]] = [NODES]
    for number in range(INTERRUPTIONS):
        job.wait_until_it_trains(number)
        given.append(choice.choice([nodes for nodes in (NODES, NODES[:1], NODES[1:]) if nodes != given[-1]]))
        make_available(job.cluster, given[-1])
        interrupt(job, number)
    assert_completes(job, whole, given, ["preempted"] * INTERRUPTIONS)
