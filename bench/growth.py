"""How cost grows on this machine: prints the measured tables of bench/scaling.md.

    python -m bench.growth [--repeats 5] [--quick]

A step's cost is CPU time of one thread, which other programs on the machine disturb less than wall time: the least of
a few. What ranks wait for each other is wall time, and means what it says only while there is a core for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.distributed as dist
from torch import nn

from bench.loops import free_port, of_rank
from bench.table import machine, rows_table
from trainlib.config import ModelConfig
from trainlib.data.batches.plan import Plan
from trainlib.models import build_model
from trainlib.runs.machine.kept_memory import keep_freed_memory

AGREEMENTS = 200


def step_milliseconds(name: str, batch_size: int, image_size: int, repeats: int, **args: float) -> float:
    """Return the CPU time of a step of plain SGD, channels last, in milliseconds per image."""
    module = build_model(ModelConfig.model_validate({"name": name, **args}), 10, image_size).module
    module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    images_NCHW, labels_N = torch.randn(batch_size, 3, image_size, image_size), torch.arange(batch_size) % 10

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images_NCHW), labels_N).backward()
        optimizer.step()

    return least(step, repeats) * 1e3 / batch_size


def least(act: Callable[[], object], repeats: int) -> float:
    """Return the least CPU time of `repeats` calls, in seconds, after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        act()
        times.append(time.process_time() - began)
    return min(times[1:])


def order_milliseconds(num_images: int, repeats: int) -> float:
    """Return the CPU time to make the order of an epoch and its batches of 64, in milliseconds."""
    plan = Plan(torch.arange(num_images), 0, 64, True, False, 1)
    return least(lambda: plan.batches(1), repeats) * 1e3


def agreement_microseconds(processes: int) -> float:
    """Return the median time of the all-reduce by which ranks agree to stop, through gloo here, in microseconds."""
    port = str(free_port())
    context = get_context("forkserver")
    context.set_forkserver_preload(["bench.growth"])
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        ranks = [executor.submit(_agree, of_rank(rank, processes, port)) for rank in range(processes)]
        return max(rank.result() for rank in ranks) * 1e6


def _agree(environment: dict[str, str]) -> float:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    times = []
    for _ in range(AGREEMENTS):
        began = time.perf_counter()
        dist.all_reduce(torch.tensor([0]), op=dist.ReduceOp.MAX)
        times.append(time.perf_counter() - began)
    dist.destroy_process_group()
    return statistics.median(times)


def series(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:,.{digits}f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smallest two of each: to see that it works")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    torch.set_num_threads(1)
    keep_freed_memory(os.environ)
    some = slice(2) if options.quick else slice(None)
    batch_sizes, sizes, widths = [16, 32, 64, 128, 256][some], [32, 64, 128][some], [0.125, 0.25, 0.5][some]
    counts, processes = [10_000, 100_000, 1_000_000, 10_000_000][some], [2, 4, 8][some]

    def cnn(batch_size: int, size: int) -> float:
        return step_milliseconds("cifar10_cnn", batch_size, size, repeats)

    vgg = [step_milliseconds("vgg16", 8, 64, repeats, width=width) for width in widths]
    rows = {
        f"CNN, batches of {series(batch_sizes, 0)}: ms an image": (series([cnn(size, 32) for size in batch_sizes]),),
        f"CNN, {series(sizes, 0)} pixels a side, batches of 16: ms an image": (series([cnn(16, s) for s in sizes]),),
        f"VGG16 at 64 pixels, width {', '.join(map(str, widths))}, batches of 8: ms an image": (series(vgg, 1),),
        f"order of an epoch of {series(counts, 0)} images: ms": (
            series([order_milliseconds(count, repeats) for count in counts], 1),
        ),
        f"agreement to stop of {series(processes, 0)} processes: us": (
            series([agreement_microseconds(number) for number in processes], 0),
        ),
    }
    print(f"{time.strftime('%Y-%m-%d')}, {machine(1, ('torch',))}\n")
    print(rows_table(("", "measured"), rows))


if __name__ == "__main__":
    main()
