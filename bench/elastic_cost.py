"""Compare the cost of elastic mode with exact mode: time of a step, bytes that a rank sends, memory.

    python bench/elastic_cost.py [--processes 1,2,3,4] [--model '{name: cifar10_cnn}'] [--shards 8] [--rounds 7]

For each number of processes both modes train the same batches in the same processes, a few steps of the one, then of
the other, in turn; a time is the median over the rounds of rank 0's mean step; CPU time, which other programs on the
machine disturb less, is that of all ranks together. Bytes are what the kernel counts on the
ranks' TCP connections (Linux 4.19 or newer) while a step is made, the largest over the ranks, beside what a ring
all-reduce of the gradient sends: 2 (W - 1) / W of its size. Memory is how far the peak of the process rises above what
it had before the first step, measured in processes of their own, with one mode each. All on the CPU, through gloo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import statistics
import struct
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

MODES = ("exact", "elastic")
STEPS = 4  # of one mode, before it is the other's turn
BYTES_SENT = 200  # offset of tcpi_bytes_sent in Linux's struct tcp_info, and of tcpi_bytes_retrans after it


def bytes_sent() -> int:
    """Return the bytes that this process has sent on its open TCP connections, each once however often it was sent."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError, struct.error):  # closed since, or not TCP
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            sent, sent_again = struct.unpack_from("=QQ", info, BYTES_SENT)
            total += sent - sent_again
    return total


def step_function(mode: str, options: argparse.Namespace, accelerator: Any) -> tuple[Callable[[], object], int]:
    """Return a function that makes one step, always on the same batch, and the size of the gradient in bytes."""
    from trainlib.config import load_config
    from trainlib.data import load_data
    from trainlib.training.build.training import build_inputs, build_training
    from trainlib.training.step.train_step import train_step

    overrides = [f"train.reproducibility={mode}", f"train.virtual_shards={options.shards}", f"model={options.model}"]
    config = load_config(["quickstart", *overrides, f"train.batch_size={options.batch_size}", "data.limit=2000"])
    training = build_training(build_inputs(config, load_data(config.data), accelerator, None), None)
    batch = training.plan.batches(0)[0]
    (micro_batches,) = training.samples.train.train_batches([batch], 0, training.samples.augmentation)
    denominator = training.state.objective.denominator(training.samples.train.labels_N[batch])
    size = sum(p.numel() * p.element_size() for p in training.state.classifier.module.parameters() if p.requires_grad)
    return lambda: train_step(training.state, 0, micro_batches, denominator), size


def measure_time(options: argparse.Namespace, accelerator: Any) -> dict[str, Any]:
    """Return seconds and bytes sent of a step in each mode, and the size of the gradient in bytes."""
    import torch.distributed as dist

    steps = {mode: step_function(mode, options, accelerator) for mode in MODES}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu_seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    sent = dict.fromkeys(MODES, 0)
    for round_number in range(options.rounds + 1):
        for mode in MODES:
            step, _ = steps[mode]
            if dist.is_initialized():
                dist.barrier()
            before, began, busy = bytes_sent(), time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                step()
            if round_number:  # the first one opens connections
                seconds[mode].append((time.perf_counter() - began) / STEPS)
                cpu_seconds[mode].append((time.process_time() - busy) / STEPS)
                sent[mode] = (bytes_sent() - before) // STEPS
    return {
        "seconds": {mode: statistics.median(times) for mode, times in seconds.items()},
        "cpu_seconds": {mode: statistics.median(times) for mode, times in cpu_seconds.items()},
        "sent": sent,
        "gradient": steps["exact"][1],
    }


def measure_memory(mode: str, options: argparse.Namespace, accelerator: Any) -> int:
    """Return the bytes by which a few steps raise the peak of resident memory."""
    step, _ = step_function(mode, options, accelerator)
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def in_rank(rank: int, world_size: int, port: int, mode: str | None, options: argparse.Namespace) -> Any:
    """Join the other ranks, and measure the memory of one mode, or the time of both if `mode` is None."""
    os.environ.update(ACCELERATE_USE_CPU="true", TRAINLAUNCH_NUM_THREADS="1", OMP_NUM_THREADS="1")
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
        os.environ.update(LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from trainlib.config import TrainConfig
    from trainlib.distributed import process_group

    with process_group.joined(TrainConfig()) as accelerator:
        return measure_time(options, accelerator) if mode is None else measure_memory(mode, options, accelerator)


def run(world_size: int, mode: str | None, options: argparse.Namespace) -> list[Any]:
    """Start the ranks, and return the result of each, in rank order."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(world_size, mp_context=context) as executor:
        ranks = [executor.submit(in_rank, rank, world_size, port, mode, options) for rank in range(world_size)]
        return [rank.result() for rank in ranks]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the cost of elastic mode with exact mode.")
    parser.add_argument("--processes", default="1,2,3,4")
    parser.add_argument("--model", default="{name: cifar10_cnn}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for world_size in map(int, options.processes.split(",")):
        found = run(world_size, None, options)
        gradient, seconds = found[0]["gradient"], found[0]["seconds"]
        busy = {mode: sum(rank["cpu_seconds"][mode] for rank in found) for mode in MODES}
        ring = 2 * (world_size - 1) / world_size * gradient
        print(f"{world_size} process(es), gradient {gradient / 1e6:.2f} MB, {options.shards} shards: {options.model}")
        for mode in MODES:
            sent = max(rank["sent"][mode] for rank in found)
            memory = max(run(world_size, mode, options))
            print(
                f"  {mode:<8} step {seconds[mode] * 1e3:8.1f} ms ({seconds[mode] / seconds['exact']:.2f})   "
                f"CPU of all ranks {busy[mode] * 1e3:8.1f} ms ({busy[mode] / busy['exact']:.2f})   "
                f"sent {sent / 1e6:8.2f} MB ({f'{sent / ring:.3f} of the ring' if ring else 'nothing to send'})   "
                f"memory +{memory / 1e6:.0f} MB ({memory / gradient:.1f} gradients)",
                flush=True,
            )


if __name__ == "__main__":
    main()
