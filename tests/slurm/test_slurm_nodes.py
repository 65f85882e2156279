"""A job with a range of nodes on a real SLURM of three: a node that is lost inside the allocation requeues nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from needs import need
from slurm_cluster import PROGRAMS, Cluster
from slurm_jobs import ON_CPUS, Job, submitting
from soak import only_in_soak
from unhurried import UNHURRIED

NODES = ("n0", "n1", "n2")
EVERY = 4  # steps from checkpoint to checkpoint
pytestmark = only_in_soak


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM of three nodes on this machine."""
    need(*PROGRAMS, root=True)
    started = Cluster(tmp_path_factory.mktemp("slurm"), NODES)
    try:
        started.start()
        yield started
    finally:
        started.stop()


class Ranged:
    """A job of two or three nodes whose steps are slow until `finish`, and the same run undisturbed, in one process."""

    def __init__(self, cwd: Path, epochs: int):
        tiny.make_images(cwd / "images")
        self.cwd, self.whole = cwd / "job", tiny.in_folder(cwd, "whole")
        mode = ["train.reproducibility=elastic", "train.virtual_shards=4", "checkpoint.best=null"]
        ours = ["slurm.nodes=2:3", ON_CPUS, "tracking.wandb.mode=disabled"]
        self.arguments = tiny.arguments(cwd / "images", epochs, EVERY, *mode, *ours)
        assert ranks.train(self.arguments, cwd=self.whole) == [0], ranks.console(self.whole)
        self.cwd.mkdir()
        (self.cwd / "sitecustomize.py").write_text(UNHURRIED)
        (self.cwd / "SLOW").write_text("0.5")
        self.job: Job

    def wait_for_world(self, size: int) -> None:
        """Wait until so many ranks have finished a step."""

        def is_so() -> bool:
            starts = tiny.attempts(self.cwd, "start")
            newest = starts[-1] if starts else {}
            return newest.get("world_size") == size and tiny.last_step(self.cwd) > newest["from_step"]

        self.job.wait_until(is_so)

    def processes(self, node: str) -> list[psutil.Process]:
        """All of the job on a node, its slurmstepds included."""
        own = [process for process in self.job.processes() if environment(process).get("SLURMD_NODENAME") == node]
        above = {parent for process in own for parent in parents(process) if "slurmstepd" in name(parent)}
        return [*above, *own]

    def lose(self, node: str) -> None:
        """Kill slurmd, slurmstepd, the launcher and the ranks of a node, as a power cut does."""
        self.job.cluster.kill(node)
        kill(self.processes(node))

    def disturb(self, what: str, node: str) -> None:
        """Kill one thing of a node."""
        found = self.processes(node)
        match what:
            case "ranks":
                kill([process for process in found if "RANK" in environment(process)])
            case "launcher":
                kill([process for process in found if "launch run" in name(process) and "bash" not in name(process)])
            case "slurmstepd":
                kill([process for process in found if "slurmstepd" in name(process) and ".batch" not in name(process)])
            case "slurmd":
                self.job.cluster.kill(node)
                self.job.cluster.start_node(node)
            case _:
                raise AssertionError(what)

    def finish(self, causes: list[str]) -> None:
        """Wait until the job has ended; the ledger tells these causes, and the result is that of the other run."""
        (self.cwd / "SLOW").unlink()
        state = self.job.wait(600)
        assert state.exit_code == 0, self.job.output()
        tiny.assert_same_result(self.cwd, self.whole)
        assert [line["cause"] for line in self.job.lines("end")] == causes, self.job.output()
        assert state.restarts == len(causes) - 1


def environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error):
        return process.environ()
    return {}


def name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def parents(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.parents()
    return []


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


@pytest.fixture
def ranged(cluster: Cluster, tmp_path: Path) -> Iterator[Ranged]:
    """A job that runs on all three nodes."""
    run = Ranged(tmp_path, 60)
    with submitting(cluster, tmp_path) as submit:
        run.job = submit("job", run.arguments, "--nodes=2-3", "--no-kill", TRAINLAUNCH_NODE_SECONDS="60")
        yield run
    for node in NODES:
        cluster.kill(node)
        cluster.start_node(node)
        if "down" in cluster.run(["sinfo", "-h", "-n", node, "-o", "%T"]):
            with suppress(AssertionError):  # slurmd has registered meanwhile: the node is up again
                cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"])
    cluster.wait_until_idle()


def test_a_node_is_lost_and_comes_back_without_a_requeue(ranged: Ranged) -> None:
    ranged.wait_for_world(3)
    ranged.lose("n2")
    ranged.wait_for_world(2)
    ranged.job.cluster.start_node("n2")
    ranged.wait_for_world(3)
    ranged.finish(["completed"])


@pytest.mark.parametrize("node", ["n0", "n2"])
@pytest.mark.parametrize("what", ["ranks", "launcher", "slurmstepd", "slurmd"])
def test_what_dies_on_a_node_requeues_nothing(ranged: Ranged, what: str, node: str) -> None:
    """Also on the node of the batch script, as long as the script itself lives."""
    ranged.wait_for_world(3)
    before = len(tiny.attempts(ranged.cwd, "start"))
    ranged.disturb(what, node)
    if what != "slurmd":  # which the run does not notice
        ranged.job.wait_until(lambda: len(tiny.attempts(ranged.cwd, "start")) > before)
    ranged.wait_for_world(3)
    ranged.finish(["completed"])


def test_a_node_that_slurm_takes_for_down_ends_nothing(ranged: Ranged) -> None:
    ranged.wait_for_world(3)
    ranged.job.cluster.run(["scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test"])
    ranged.wait_for_world(2)
    ranged.finish(["completed"])


def test_the_loss_of_the_batch_scripts_node_requeues(ranged: Ranged) -> None:
    """SLURM itself would let the job run on without a batch script, to its time limit."""
    ranged.wait_for_world(3)
    ranged.lose("n0")
    ranged.job.cluster.run(["scontrol", "update", "NodeName=n0", "State=DOWN", "Reason=test"])
    ranged.job.wait_until(lambda: len(ranged.job.lines("begin")) == 2)
    assert ranged.job.lines("begin")[1]["nodes"] == ["n1", "n2"]
    ranged.wait_for_world(2)
    ranged.finish(["node_failure", "completed"])


def test_a_node_that_was_drained_and_returned_takes_part_in_the_next_start(ranged: Ranged) -> None:
    update, job = ["scontrol", "update", "NodeName=n2"], ranged.job
    ranged.wait_for_world(3)
    job.cluster.run([*update, "State=DRAIN", "Reason=test"])
    for number, (nodes, change) in enumerate([(["n0", "n1"], "State=RESUME"), (list(NODES), "")]):
        job.cluster.run(["scancel", "--signal=USR2", "--batch", job.id])
        job.wait_until(lambda number=number: len(job.lines("begin")) == number + 2)  # type: ignore[misc]
        assert job.lines("begin")[-1]["nodes"] == nodes
        ranged.wait_for_world(len(nodes))
        if change:
            job.cluster.run([*update, change])
    ranged.finish(["preempted", "preempted", "completed"])
