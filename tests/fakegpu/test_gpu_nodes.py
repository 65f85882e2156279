"""Two machines with two emulated GPUs each train as one machine with four, and in elastic mode as one CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from gpu_ranks import Gpus
from patience import HANG

pytestmark = pytest.mark.slow

TRAINING = [
    "cifar10_cnn",
    "data={name: synthetic, limit: 64, val_fraction: 0, augment: {flip: true}}",
    "optimizer.fused=true",  # on the CPU as well, where torch's loop rounds in another way
    "train={steps: 3, batch_size: 16}",
    "tracking={log_every: 1, tensorboard: false}",
]
ELASTIC = "train={steps: 3, batch_size: 16, reproducibility: elastic, virtual_shards: 4}"


def train(environment: Mapping[str, str], name: str, *more: str, nodes: int = 1) -> str:
    """Train a run with the real launcher, one for each node; return the SHA-256 of its weights."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
    words = [sys.executable, "-m", "launch", "run", *TRAINING, f"name={name}", *more]
    started = [
        subprocess.Popen(
            [*words, *_place(node, nodes, head)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    said = [launcher.communicate(timeout=HANG)[0] for launcher in started]
    assert [launcher.returncode for launcher in started] == [0] * nodes, "\n".join(said)
    assert "Warning" not in "".join(said)
    return str(json.loads(Path(f"runs/{name}/summary.json").read_text())["weights_sha256"])


def _place(node: int, nodes: int, head: str) -> Sequence[str]:
    return () if nodes == 1 else ("--nodes", str(nodes), "--node-rank", str(node), "--head", head)


@pytest.mark.usefixtures("workdir")
def test_two_nodes_of_two_gpus_give_the_bits_of_four_gpus(gpus: Gpus) -> None:
    assert train(gpus.environment(FAKE_CUDA_DEVICES="2"), "nodes", nodes=2) == train(
        gpus.environment(FAKE_CUDA_DEVICES="4"), "one"
    )
    ranks = [json.loads(line) for line in Path("runs/nodes/attempts.jsonl").read_text().splitlines()]
    assert ranks[0]["world_size"] == 4


@pytest.mark.usefixtures("workdir")
def test_in_elastic_mode_they_give_the_bits_of_one_cpu(gpus: Gpus) -> None:
    on_gpus = train(gpus.environment(FAKE_CUDA_DEVICES="2"), "nodes", ELASTIC, nodes=2)
    assert on_gpus == train(os.environ | {"ACCELERATE_USE_CPU": "true"}, "cpu", ELASTIC)
