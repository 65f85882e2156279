"""`launch doctor` on SLURM: what its commands tell, and a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_checks import verdicts
from paths import REPOSITORY
from slurm_cluster import Cluster

from launch.doctor import cluster as cluster_checks


def fake_commands(folder: Path, names: tuple[str, ...], sinfo: str) -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{sinfo}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("names", "sinfo", "verdict", "said"),
    [
        ((), "", "note", "not found; launch run works without it, launch submit needs sbatch"),
        (("sinfo", "sbatch"), "", "problem", "srun, squeue, scontrol, scancel not found, but others of its commands"),
        (cluster_checks._COMMANDS, "echo slurm_load: down >&2; exit 1", "problem", "sinfo -h failed: slurm_load: down"),
        (
            cluster_checks._COMMANDS,
            "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1",
            "note",
            "its commands are here, but no cluster is configured: no slurm.conf, SLURM_CONF unset",
        ),
        (cluster_checks._COMMANDS, "", "problem", "no partition is up (there are none)"),
        (
            cluster_checks._COMMANDS,
            "printf '%s\\n' 'cpu*|up|3|idle|(null)|1' 'cpu*|up|1|down*|(null)|1' 'h100|up|2|mixed|gpu:h100:8(S:0)|1'",
            "ok",
            "cpu (default): 3 of 4 nodes usable; h100: 2 of 2 nodes usable, 8 GPUs each",
        ),
    ],
    ids=["none", "half", "down", "unconfigured", "no partition", "two partitions"],
)
def test_slurm_as_its_commands_tell(
    names: tuple[str, ...],
    sinfo: str,
    verdict: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    fake_commands(tmp_path, names, sinfo)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = cluster_checks.check_cluster()
    assert (finding.verdict, finding.text) == (verdict, said)


def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_commands(tmp_path, cluster_checks._COMMANDS, "sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    assert verdicts(cluster_checks.check_cluster()) == [("SLURM", "problem")]


def test_a_real_cluster_and_an_allocation_of_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """Inside an allocation, both nodes see the file that is made, the lock on it keeps them out, and one rank of each
    adds up what it has with the other's."""
    program = """
from launch.doctor import cluster, ranks
for finding in [*cluster.check_cluster(), *ranks.check_ranks(None)]:
    print(finding.topic, finding.verdict, finding.text)
"""
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    words = ["salloc", "--quiet", "--nodes=2", sys.executable, "-c", program]
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    slurm, shared, *_, all_reduce, _ = done.stdout.splitlines()
    assert slurm == "SLURM ok main (default): 2 of 2 nodes usable, 4 GPUs each"
    assert shared == f"shared ok {tmp_path} is the same on 2 nodes, and locks hold between them"
    assert all_reduce.startswith("all-reduce ok 2 ranks on 2 nodes through gloo: 4 KiB in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ("n0 shared w\nn1 shared w\n", "ok", "/x is the same on 2 nodes, and locks hold between them"),
        ("n0 shared w\nn1 missing No such file or directory\n", "problem", "n1 cannot see a file made here"),
        ("n0 shared w\nn1 shared \n", "problem", "n1 cannot see a file made here"),
        ("n0 shared w\n", "problem", "1 of 2 nodes cannot see a file made here"),
        ("n0 shared w\nn1 unlocked w\n", "note", "locks do not hold between them"),
    ],
)
def test_a_folder_that_the_nodes_do_not_share(answers: str, verdict: str, said: str) -> None:
    finding = cluster_checks.judge_shared(answers, Path("/x"), 2, "w")
    assert finding.verdict == verdict
    assert said in finding.text
