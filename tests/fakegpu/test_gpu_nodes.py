"""Two machines with two GPUs each train what one machine with four trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
from gpu_ranks import Gpus
from patience import HANG
from soak import only_in_soak

from trainlib.runs.directory import RunDirectory

pytestmark = pytest.mark.slow
TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 80, val_fraction: 0.2, augment: {flip: true}}",
    "train={epochs: 1, batch_size: 16}",
    "tracking={log_every: 1, tensorboard: false}",
]


@only_in_soak
def test_two_machines_of_two_gpus_train_what_four_gpus_train(gpus: Gpus, tmp_path: Path) -> None:
    digests = set()
    for num_nodes in (1, 2):
        cwd, processes = tmp_path / str(num_nodes), str(4 // num_nodes)
        cwd.mkdir()
        head = ["--nodes", str(num_nodes), "--head", f"127.0.0.1:{ranks.free_port()}"] if num_nodes > 1 else []
        started = []
        for rank in range(num_nodes):
            words = [sys.executable, "-m", "launch", "run", *TRAINING, "--processes", processes, *head]
            words += ["--node-rank", str(rank)] if head else []
            with (cwd / f"node-{rank}.txt").open("w") as output:
                environment = gpus.environment(FAKE_CUDA_DEVICES=processes)
                started.append(subprocess.Popen(words, cwd=cwd, env=environment, stdout=output, stderr=output))
        codes = [node.wait(HANG) for node in started]
        assert codes == [0] * num_nodes, (cwd / "node-0.txt").read_text()
        run = RunDirectory(cwd / "runs/run")
        digests.add(run.summary()["weights_sha256"])
        facts = json.loads(run.environment_file.read_text())
        assert (facts["device"], facts["world_size"]) == ("cuda", 4)
    assert len(digests) == 1
