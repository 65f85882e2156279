"""A simple model of data parallelism on many GPUs: prints the tables of bench/scaling.md.

    python -m bench.scaling

A step is the computation of a GPU's share of the batch, and what of the gradients' all-reduce it does not hide. An
all-reduce of S bytes over W GPUs takes the better of two algorithms (NCCL has both):

    ring    2 (W - 1) / W * S / bandwidth  +  2 (W - 1) * latency
    tree    2 S / bandwidth                +  2 log2(W) * latency

Beside it ranks agree whether to stop, on the CPU through gloo, whose all-reduce is a ring: 2 (W - 1) hops of TCP. The
steps from one agreement to the next are never shorter than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trainlib.distributed.consensus.stop_consensus import RANKS_AT_EVERY_STEP

NODE = 8  # GPUs of a node
NODE_BANDWIDTH = 300e9  # bytes a second between the GPUs of a node: NVLink
BANDWIDTH = 50e9  # of each GPU to the network: 400 Gbit/s
LATENCY = 5e-6  # seconds a hop
AGREEMENT_HOP = 25e-6  # seconds that a message of gloo takes from a process to the next
OVERLAP = 2 / 3  # the backward pass's part of the computation, beside which gradients are sent
LAST_BUCKET = 25 * 2**20  # bytes, at most, whose all-reduce begins when there is nothing left to compute
SIZES = (8, 64, 256, 512, 1024, 4096)


@dataclass(frozen=True)
class Model:
    """A network: flops of an image, forward and backward; `floor` is the least seconds of a step (kernel launches)."""

    name: str
    parameters: int  # in float32
    images: int  # of a step, on one GPU
    flops: float
    floor: float = 1e-3
    speed: float = 300e12  # operations a second, in bfloat16: assumed

    @property
    def seconds(self) -> float:
        return max(self.images * self.flops / self.speed, self.floor)


CNN = Model("CNN", 145_578, 64, 0.0692e9)
VGG16 = Model("VGG16 at 224", 138_357_544, 64, 92.6e9)
WEAK = tuple(replace(model, images=images) for model, images in ((CNN, 64), (CNN, 1024), (VGG16, 64), (VGG16, 256)))
STRONG = ((CNN, 4096), (VGG16, 4096))  # and the images of a global batch that all GPUs share


def all_reduce(size: float, gpus: int) -> float:
    """Return the seconds to sum `size` bytes over this many GPUs, by the faster algorithm."""
    bandwidth = NODE_BANDWIDTH if gpus <= NODE else BANDWIDTH
    ring = 2 * (gpus - 1) / gpus * size / bandwidth + 2 * (gpus - 1) * LATENCY
    tree = 2 * size / bandwidth + 2 * math.ceil(math.log2(gpus)) * LATENCY if gpus > 1 else 0.0
    return min(ring, tree)


def consensus(gpus: int) -> float:
    """Return the seconds until all ranks know whether one of them was asked to stop."""
    return 2 * (gpus - 1) * AGREEMENT_HOP


def step_seconds(model: Model, gpus: int, *, every_step: bool = False) -> float:
    """Return the seconds of a step: computation, the part of the all-reduce beyond the backward pass, the last bucket.

    every_step   ranks agree at every step, whatever their number
    """
    size = 4.0 * model.parameters
    last = min(size, LAST_BUCKET)
    exposed = max(0.0, all_reduce(size - last, gpus) - OVERLAP * model.seconds) if size > last else 0.0
    seconds = model.seconds + exposed + (all_reduce(last, gpus) if gpus > 1 else 0.0)
    steps = 1 if every_step else max(1, gpus // RANKS_AT_EVERY_STEP)  # from one agreement to the next
    return max(seconds, consensus(gpus) / steps)


def efficiency(model: Model, gpus: int, *, every_step: bool = False) -> float:
    """Return the speed per GPU relative to one GPU alone, where each GPU has a fixed number of images."""
    return model.seconds / step_seconds(model, gpus, every_step=every_step)


def speed(model: Model, global_batch: int, gpus: int) -> float:
    """Return images a second of GPUs that share one batch; with more GPUs than images, some have none."""
    share = replace(model, images=math.ceil(global_batch / gpus))
    return global_batch / step_seconds(share, gpus)


def table(title: str, rows: dict[str, list[str]]) -> str:
    heading = [f"| {title} | {' | '.join(f'{gpus:,}' for gpus in SIZES)} |", "|---|" + "---:|" * len(SIZES)]
    return "\n".join([*heading, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def main() -> None:
    weak = {}
    for model in WEAK:
        name = f"{model.name}, {model.images:,} images a GPU"
        weak[name] = [f"{efficiency(model, gpus):.0%}" for gpus in SIZES]
        weak[f"{name}, agreeing at every step"] = [f"{efficiency(model, gpus, every_step=True):.0%}" for gpus in SIZES]
    print(table("images a second of one GPU's own, kept on", weak))
    print()
    strong = {
        f"{model.name}, {batch:,} images": [f"{speed(model, batch, gpus):,.0f}" for gpus in SIZES]
        for model, batch in STRONG
    }
    print(table("images a second of a batch that is shared by", strong))


if __name__ == "__main__":
    main()
