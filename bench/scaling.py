"""A simple model of data parallelism on many GPUs: prints the tables of bench/scaling.md.

    python bench/scaling.py

A step is the computation of a GPU's share of the batch, and what of the gradients' all-reduce it does not hide. An
all-reduce of S bytes over W GPUs takes the better of two algorithms (NCCL has both):

    ring    2 (W - 1) / W * S / bandwidth  +  2 (W - 1) * latency
    tree    2 S / bandwidth                +  2 log2(W) * latency
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BANDWIDTH = 50e9  # bytes a second, of each GPU to the network: 400 Gbit/s
LATENCY = 5e-6  # seconds a hop
OVERLAP = 2 / 3  # the backward pass's part of the computation, beside which gradients are sent
LAST_BUCKET = 25 * 2**20  # bytes, at most, whose all-reduce begins when there is nothing left to compute
SIZES = (8, 64, 256, 512, 1024, 4096)


@dataclass(frozen=True)
class Model:
    """parameters, in float32; seconds to compute a step of `images` on one GPU, and none the less `floor` seconds."""

    name: str
    parameters: int
    images: int
    seconds: float
    floor: float = 1e-3


# 93 GFLOP an image of VGG16, forward and backward, 0.074 of the CNN, at an assumed 300 TFLOP/s in bfloat16.
MODELS = (
    Model("CNN, 64 images a GPU", 145_578, 64, 64 * 0.074e9 / 300e12),
    Model("CNN, 1,024 images a GPU", 145_578, 1024, 1024 * 0.074e9 / 300e12),
    Model("VGG16 at 224, 64 images a GPU", 138_357_544, 64, 64 * 93e9 / 300e12),
    Model("VGG16 at 224, 256 images a GPU", 138_357_544, 256, 256 * 93e9 / 300e12),
)


def all_reduce(size: float, gpus: int) -> float:
    """Seconds to add up `size` bytes over this many GPUs, by the faster algorithm."""
    ring = 2 * (gpus - 1) / gpus * size / BANDWIDTH + 2 * (gpus - 1) * LATENCY
    tree = 2 * size / BANDWIDTH + 2 * math.ceil(math.log2(gpus)) * LATENCY if gpus > 1 else 0.0
    return min(ring, tree)


def step_seconds(model: Model, gpus: int) -> float:
    """The computation, what of the all-reduce is longer than the backward pass, and the last bucket."""
    size = 4.0 * model.parameters
    compute = max(model.seconds, model.floor)
    last = min(size, LAST_BUCKET)
    exposed = max(0.0, all_reduce(size - last, gpus) - OVERLAP * compute) if size > last else 0.0
    return compute + exposed + (all_reduce(last, gpus) if gpus > 1 else 0.0)


def efficiency(model: Model, gpus: int) -> float:
    """Images a second and GPU, as a part of what one GPU does alone."""
    return step_seconds(model, 1) / step_seconds(model, gpus)


def main() -> None:
    print("| images a second of one GPU's own, kept on | " + " | ".join(f"{gpus:,}" for gpus in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    for model in MODELS:
        print(f"| {model.name} | " + " | ".join(f"{efficiency(model, gpus):.0%}" for gpus in SIZES) + " |")


if __name__ == "__main__":
    main()
