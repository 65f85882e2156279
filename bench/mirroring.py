"""What a step costs with and without a mirror: `python -m bench.mirroring`.

One process trains. The process that copies its checkpoints is stopped and continued in turns, between blocks of steps,
and the CPU time of the training's own thread for each step is compared, so that other load on the machine counts less.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch

from trainlib.config import load_config
from trainlib.runs.directory import RunDirectory
from trainlib.runs.mirror.process import MirrorProcess
from trainlib.training.checkpoints import checkpoint

BLOCKS, STEPS, WARM_UP = 24, 10, 5


def main() -> None:
    """Print the median CPU time of a step in either case, and what the other process took."""
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    config = load_config(["quickstart", "mirror=copies"])
    run = RunDirectory.open(config)
    run.begin(config)
    mirror = MirrorProcess("copies", run, 0)
    mirror.start()
    process = mirror._process
    assert process is not None
    weights = torch.zeros(4_000_000)
    layer = torch.nn.Linear(512, 512)
    optimizer, images = torch.optim.SGD(layer.parameters(), 1e-3), torch.randn(256, 512)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for block in range(BLOCKS):
        copies = block % 2 == 0
        os.kill(process.pid, signal.SIGCONT if copies else signal.SIGSTOP)
        checkpoint.save(run.checkpoints, block + 1, {"weights": weights + block}, {}, {})
        checkpoint.prune(run.checkpoints, 3, (), set())
        for step in range(WARM_UP + STEPS):
            began = time.thread_time()
            for _ in range(10):
                optimizer.zero_grad()
                layer(images).square().mean().backward()
                optimizer.step()
            if step >= WARM_UP:
                seconds[copies].append(time.thread_time() - began)
            time.sleep(0.05)
    os.kill(process.pid, signal.SIGCONT)
    mirror.close(60)
    run.close()
    there = sum(path.stat().st_size for path in Path("copies").rglob("*") if path.is_file())
    for copies, of_steps in seconds.items():
        quartiles = statistics.quantiles(of_steps, n=4)
        print(
            f"{'with' if copies else 'without'} a mirror: median {quartiles[1] * 1e3:.2f} ms of CPU time a step, "
            f"quartiles {quartiles[0] * 1e3:.2f} to {quartiles[2] * 1e3:.2f}"
        )
    print(f"{there / 1e6:.0f} MB are at the mirror")


if __name__ == "__main__":
    main()
