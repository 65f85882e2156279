"""A search as a SLURM array: its elements end at rungs, wait there without a node, and go on when they are promoted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import ranks
import tiny
from slurm_cluster import Cluster
from soak import only_in_soak
from sweep_files import written

from launch.cli import main
from launch.slurm import queue, search
from launch.slurm.ending.requeue import Evidence, decide_requeue
from launch.slurm.queue import JobState, job_states
from launch.sweep.file.grid import read_sweep
from launch.sweep.results import results_facts
from launch.sweep.search import journal
from launch.sweep.search.settings import Search
from trainlib.runs.records import jobs
from trainlib.runs.records.reasons import EndCode

NAMES = ("s-000", "s-001", "s-002", "s-003")
FOUND = search.ArraySearch("s", NAMES, Search("val/accuracy", "max", (1, 3), 2))


def rows(name: str, *accuracies: float) -> None:
    directory = Path("runs") / name
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        {"split": "val", "epoch": epoch, "step": epoch, "loss": 1.0, "accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Queue:
    """In place of SLURM's commands: what was asked of it, and the states of the elements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = dict.fromkeys(NAMES, "RUNNING")
        self.asked: list[tuple[str, str]] = []
        for number, name in enumerate(NAMES):
            (Path("runs") / name).mkdir(parents=True)
            jobs.append(Path("runs") / name, {"event": "submitted", "job_id": "7", "array_task": number})
        monkeypatch.setattr(queue, "job_states", self.job_states)
        for verb in ("release", "cancel"):
            monkeypatch.setattr(queue, verb, lambda job, verb=verb: self.asked.append((verb, NAMES[int(job[2:])])))

    def job_states(self, job_ids: list[str]) -> dict[str, JobState]:
        states = {job: self.states[NAMES[int(job[2:])]] for job in job_ids}
        return {
            job: JobState(job, state, "JobHeldUser" if state == "PENDING" else "", 0, None, None, "", 0)
            for job, state in states.items()
        }

    def ends(self, name: str, code: EndCode = EndCode.RUNG, exit_code: int = 0) -> tuple[bool, bool, int]:
        """Whether an element that ends goes back into the queue to run, or held, and its exit code."""
        evidence = Evidence(exit_code, code, "as told")
        decision, held = search.of_trial(FOUND, name, evidence, decide_requeue(evidence, [], 1))
        self.states[name] = "PENDING" if held else "RUNNING" if decision.requeue else "COMPLETED"
        return decision.requeue, held, decision.exit_code


@pytest.mark.usefixtures("workdir")
def test_elements_wait_for_each_other_go_on_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in two goes on. The second to end decides on itself, the third on the first, and so on."""
    fake = Queue(monkeypatch)
    assert FOUND.until("s-000") == "1ep"
    rows("s-000", 0.6)
    assert fake.ends("s-000") == (False, True, 75)
    rows("s-002", 0.9)
    assert fake.ends("s-002") == (False, True, 75)  # the second trial has no result yet
    assert fake.asked == []
    rows("s-001", 0.7)
    assert fake.ends("s-001") == (True, False, 75)  # it is the best of the first two
    assert fake.asked == [("release", "s-002")]  # and this one of the first three
    fake.states["s-002"] = "RUNNING"
    assert FOUND.until("s-001") == "3ep"
    assert fake.ends("s-003", EndCode.ERROR, 1) == (False, False, 1)
    assert journal.failed(journal.read(Path("runs/s"))) == {"s-003": "1 failure, and slurm.max_failures is 1"}
    assert fake.asked[1:] == [("cancel", "s-000")]
    fake.states["s-000"] = "CANCELLED"
    rows("s-001", 0.7, 0.7, 0.8)
    assert fake.ends("s-001") == (False, True, 75)
    rows("s-002", 0.9, 0.9, 0.95)
    assert fake.ends("s-002") == (True, False, 75)
    assert FOUND.until("s-002") == ""
    assert fake.asked[2:] == [("cancel", "s-001")]


@pytest.mark.usefixtures("workdir")
def test_what_others_may_not_know_is_asked_again_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that was killed before it could release another one is started again by SLURM: then it does."""
    fake = Queue(monkeypatch)
    rows("s-000", 0.6)
    rows("s-001", 0.5)
    fake.states["s-000"] = "PENDING"
    search.settle(FOUND, "s-001")
    assert fake.asked == [("release", "s-000")]


@pytest.mark.usefixtures("workdir")
def test_a_search_survives_its_file() -> None:
    written("name: s\nconfigs: [quickstart]\nspace: {seed: [1, 2, 3, 4]}\ntrials: 4\nrungs: [1ep, 3ep]\n")
    sweep = read_sweep(Path("s.yaml"))
    search.write_search(Path(search.SEARCH), sweep)
    assert search.read_search(Path(search.SEARCH)) == search.ArraySearch("s", NAMES, sweep.search or FOUND.search)
    assert search.search_of(["@elements"]) == Path(search.SEARCH)
    assert search.search_of(["quickstart", "@runs/elements"]) is None


def hasten(cluster: Cluster, state: JobState) -> None:
    """After a requeue SLURM waits two minutes; a second does."""
    if state.state == "PENDING" and not state.held and (state.start or 0.0) > time.time() + 5:
        cluster.run(["scontrol", "update", f"JobId={state.job_id}", "StartTime=now+1"])


@only_in_soak
def test_on_a_real_cluster_with_throttle_and_a_drained_node(
    cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at a time, and from the first result on one node alone. Who goes on has the bits of an undisturbed run."""
    for name, value in {**cluster.environment, "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    tiny.make_images(workdir / "images")
    common = [word for word in tiny.arguments(workdir / "images", 3, 100) if not word.startswith("name=")]
    common += ["slurm={gpus_per_node: 0, time: '00:10:00'}", "tracking.wandb.mode=disabled"]
    space = "{optimizer.lr: {min: 1e-4, max: 1e-2, log: true}}"
    written(
        f"configs: [{common[0]}]\nspace: {space}\ntrials: 4\nmetric: train/loss\nrungs: [1ep, 2ep]\n"
        "reduction_factor: 2\nthrottle: 2\n"
    )
    assert main(["sweep", "s.yaml", *common[1:]]) == 0
    job_id = capsys.readouterr().out.strip()
    deadline, drained, most = time.monotonic() + 900, False, 0
    while left := {job: state for job, state in job_states([job_id]).items() if state.active}:
        assert time.monotonic() < deadline, left
        most = max(most, sum(state.state == "RUNNING" for state in left.values()))
        if not drained and (workdir / "runs/s-000/metrics.jsonl").exists():
            cluster.run(["scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test"])
            drained = True
        for state in left.values():
            hasten(cluster, state)
        time.sleep(0.2)
    cluster.run(["scontrol", "update", "NodeName=n1", "State=RESUME"])
    assert drained
    assert most == 2
    sweep = read_sweep(Path("s.yaml"), common[1:])
    facts = results_facts(sweep)
    states = [fact["status"] for fact in facts]
    assert states[0] == "completed", facts
    assert set(states) == {"completed", "out"}
    whole = tiny.in_folder(workdir, "whole")
    for element, fact in ((e, f) for e in sweep.elements for f in facts if f["name"] == e.name):
        if fact["status"] == "completed":
            assert ranks.train(list(element.arguments), cwd=whole) == [0]
            assert tiny.digest(workdir, name=element.name) == tiny.digest(whole, name=element.name)
    assert main(["sweep", "s.yaml", *common[1:]]) == 0
    assert "nothing to start" in capsys.readouterr().err
