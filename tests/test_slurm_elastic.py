"""An elastic job of one or two nodes of a real SLURM: whatever the queue gives it at each start, the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ranks
import tiny
from slurm_cluster import NODES, Cluster
from slurm_jobs import ON_CPUS, Job, submitting
from soak import rounds

EVERY = 4  # steps from checkpoint to checkpoint
INTERRUPTIONS = rounds(2, 10)


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submits jobs to the test's own directories; in the end the cluster has all its nodes again."""
    with submitting(cluster, tmp_path) as submit:
        yield submit
    make_available(cluster, NODES)


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


def test_a_job_goes_on_with_the_nodes_that_there_are(submit: Callable[..., Job], tmp_path: Path) -> None:
    """The result is that of one process which nothing disturbed, and the ledger has the nodes of each start.

    In the end a node fails: without it enough are left, as one would do, so it is excluded.
    """
    choice = random.Random(3)
    tiny.make_images(tmp_path / "images")
    mode = ["train.reproducibility=elastic", "train.virtual_shards=4", "slurm.nodes=1-2", ON_CPUS]
    epochs = 10 * (INTERRUPTIONS + 2)
    training = tiny.arguments(tmp_path / "images", epochs, EVERY, "tracking.wandb.mode=disabled", *mode)
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.train(training, cwd=whole) == [0], ranks.console(whole)

    job = submit("job", training, "--nodes=1-2")
    given = [NODES]
    for number in range(INTERRUPTIONS):
        job.wait_until_it_trains(number)
        others = [nodes for nodes in (NODES, NODES[:1], NODES[1:]) if nodes != given[-1]]
        given.append(NODES if number == INTERRUPTIONS - 1 else choice.choice(others))
        make_available(job.cluster, given[-1])
        interrupt(job, number)
    job.wait_until_it_trains(INTERRUPTIONS)
    job.step_daemon("0", "n1").kill()
    given.append(("n0",))
    assert job.wait(300).exit_code == 0, job.output()

    tiny.assert_same_result(job.cwd, whole)
    assert [tuple(line["nodes"]) for line in job.lines("begin")] == given
    assert [line["world_size"] for line in tiny.attempts(job.cwd, "start")] == [len(nodes) for nodes in given]
    ends = job.lines("end")
    assert [line["cause"] for line in ends] == ["preempted"] * INTERRUPTIONS + ["node_failure", "completed"]
    assert ends[-2]["excluded"] == ["n1"]
