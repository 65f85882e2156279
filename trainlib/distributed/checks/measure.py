"""Measure all-reduce and report the hardware: `python -m trainlib.distributed.checks.measure FILE`.

Started by `launch doctor` like a training. Rank 0 appends JSON lines to FILE: {"facts": ...}, then {"reduced": ...} for
each size, so that what came before a crash is there. Bus bandwidth is that of nccl-tests, which can be compared across
numbers of ranks: what each link carries, 2 (n - 1) / n of the bytes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainlib.config import TrainConfig
from trainlib.distributed import process_group
from trainlib.distributed.devices.choice import choose_device_type
from trainlib.errors import EXIT_OK, UserError
from trainlib.platform.accelerators import synchronize
from trainlib.runs.files.json_records import append_line
from trainlib.runs.machine.cache_folder import cache_folder

CPU_SIZES = (4 << 10, 1 << 20, 32 << 20)  # bytes of float32
GPU_SIZES = (4 << 10, 1 << 20, 256 << 20)
_SECONDS = 0.5  # for each size
_MAX_ROUNDS = 200


@dataclass(frozen=True)
class Measurement:
    """One size, all-reduced many times.

    seconds         of one all-reduce, the mean
    bus_bandwidth   bytes a second
    correct         whether every element that this rank got is exactly the sum over all ranks
    """

    bytes: int
    seconds: float
    bus_bandwidth: float
    correct: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, as one of the ranks; returns the exit code."""
    (output,) = sys.argv[1:] if arguments is None else arguments
    with process_group.joined(_on_any_device()) as accelerator:
        is_main = accelerator.is_main_process
        if is_main:
            append_line(Path(output), {"facts": facts(accelerator.device)})
        if accelerator.num_processes > 1:
            for size in GPU_SIZES if accelerator.device.type != "cpu" else CPU_SIZES:
                measured = measure(size, accelerator.device)
                if is_main:
                    append_line(Path(output), {"reduced": asdict(measured) | {"backend": dist.get_backend()}})
    return EXIT_OK


def _on_any_device() -> TrainConfig:
    """Return a configuration on a GPU, or on the CPU; also where torch cannot use the GPUs, which the facts tell."""
    try:
        return TrainConfig(device=choose_device_type("auto"))  # type: ignore[arg-type]  # one of those that there are
    except UserError:
        return TrainConfig(device="cpu")


def facts(device: torch.device) -> dict[str, Any]:
    """Return what this rank would train on, as plain values. NCCL and CUDA are those that torch was built with."""
    cuda = torch.version.cuda
    nccl = torch.cuda.nccl.version() if cuda and dist.is_nccl_available() else None
    return {
        "torch": torch.__version__,
        "cuda": cuda,
        "nccl": nccl and ".".join(map(str, nccl)),
        "device": device.type,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        "torchvision": _torchvision_fault(),
        "cache": str(cache_folder()),
    }


def measure(size: int, device: torch.device) -> Measurement:
    """All-reduce `size` bytes on all ranks, which all call this. A synchronisation point."""
    world_size = dist.get_world_size()
    values_N = torch.zeros(size // 4, device=device)

    def reduce_rounds(rounds: int) -> float:
        synchronize(device)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(rounds):
            dist.all_reduce(values_N)
        synchronize(device)
        return (time.perf_counter() - start) / rounds

    reduce_rounds(2)  # connections are made at the first
    rounds = int(_SECONDS / max(reduce_rounds(2), 1e-9))
    seconds = reduce_rounds(max(1, min(process_group.broadcast_object(rounds), _MAX_ROUNDS)))
    values_N.fill_(float(dist.get_rank() + 1))
    dist.all_reduce(values_N)
    correct = bool((values_N == world_size * (world_size + 1) / 2).all())
    return Measurement(size, seconds, 2 * (world_size - 1) / world_size * size / seconds, correct)


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _torchvision_fault() -> str | None:
    """Why torchvision does not work with this torch; None where it does. Its compiled operators tell."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
