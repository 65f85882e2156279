"""VGG16 and ResNet-50 at 224 pixels in bfloat16: images a second, and the share of the GPU's peak matrix speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.arms import ARMS_ON_GPU, BARE, FAST, OURS
from bench.intervals import Seconds
from bench.loops import available, time_arms
from bench.table import rows_table
from bench.workload import Workload
from trainlib.models import build_model

LOOPS = (OURS, FAST, BARE, "Accelerate, tensors", "Lightning, tensors")


def time_vgg(workload: Workload, directory: Path, names: Collection[str]) -> dict[str, list[float]]:
    """Return the seconds, in each round, of the loops with these names; all get images of noise from our loader."""
    return time_arms(workload, available({name: ARMS_ON_GPU[name] for name in LOOPS if name in names}), directory)


def step_flops(workload: Workload) -> int:
    """Return the floating-point operations of a step, forward and backward, in matrix products and convolutions."""
    size = workload.image_size
    with torch.device("meta"):
        network = build_model(workload.config.model, 10, size).module
        images_NCHW = torch.empty(workload.batch_size, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images_NCHW).sum().backward()
    flops: int = counter.get_total_flops()
    return flops


def peak_flops(device: torch.device, size: int, repeats: int = 20) -> float:
    """Return operations a second of a product of two bfloat16 matrices [size, size]: the median of five tries."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    speeds = []
    for number in range(6):
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        if number:
            speeds.append(2 * size**3 * repeats / (time.perf_counter() - began))
    return statistics.median(speeds)


def vgg_table(seconds: Seconds, workload: Workload, flops: int, peak: float) -> str:
    """Return the table of the loops as Markdown."""
    rows = {}
    for name, times in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        step = statistics.median(times) / workload.steps
        rows[name] = (f"{workload.batch_size / step:,.0f}", f"{flops / step / 1e12:,.1f}", f"{flops / step / peak:.1%}")
    heading = (
        f"{flops / workload.batch_size / 1e9:.1f} GFLOP an image; a large product runs at {peak / 1e12:,.1f} TFLOP/s"
    )
    return f"{heading}\n\n{rows_table(('arm', 'images/s', 'TFLOP/s', 'of the product'), rows)}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
