"""Checks of a few seconds before a run on several machines: does each device multiply, and the network add, rightly?

Whole numbers in float32 have one right result in any order of adding, so every bit is known.
"""

from __future__ import annotations

import logging
import time

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from trainlib.distributed.devices.named_device import NamedDevice
from trainlib.distributed.process_group import barrier, gather_objects
from trainlib.errors import WrongDeviceError
from trainlib.platform.accelerators import synchronize
from trainlib.runs.machine import launch_variables

logger = logging.getLogger("trainlib")

CHECK_SECONDS = 120.0  # for all of it, before it counts as a hang; it takes one or two
_ROUNDS = 3
_SIZES = {"cpu": (512, 2 << 20)}  # rows of a matrix, and numbers that are added up
_SIZES_GPU = (2048, 16 << 20)


def is_on_several_machines() -> bool:
    """Return True if the ranks of this run are on more than one machine."""
    return launch_variables.world_size() > launch_variables.local_world_size()


def check_devices(accelerator: Accelerator) -> None:
    """Compute a product of known bits on each device, then a sum over all of them; log the bandwidth. A collective.

    Raises WrongDeviceError, on every rank, that names the devices whose result is wrong.
    """
    rank, device = accelerator.process_index, accelerator.device
    size, count = _SIZES.get(device.type, _SIZES_GPU)
    problem = "multiplies two matrices wrongly" if not multiplies_rightly(size, device) else ""
    _refuse_wrong(problem, rank, device)
    is_right, bytes_per_second = _add_up(accelerator, count)
    _refuse_wrong("" if is_right else "got a wrong sum over all ranks", rank, device)
    if rank == 0:
        logger.info(
            "checked %d devices on several machines: products and sums are right, all-reduce at %.2f GB/s",
            accelerator.num_processes,
            bytes_per_second / 1e9,
        )


def multiplies_rightly(size: int, device: torch.device) -> bool:
    """Return True if the device multiplies two matrices of whole numbers, [N, N], without an error.

    No sum is larger than 9 N, so each is exact in float32, in any order, also where factors are rounded to TF32. The
    product times a vector is compared with what whole numbers give: (A B) v = A (B v).
    """
    index_N = torch.arange(size, device=device)
    a_NN = (index_N[:, None] * 5 + index_N * 3 + index_N[:, None] * index_N) % 7 - 3
    b_NN = (index_N[:, None] * 2 + index_N * 11 + index_N[:, None] * index_N) % 7 - 3
    v_N = index_N * 7919 % 1009 + 1
    expected_N = _times(a_NN, _times(b_NN, v_N))
    for _ in range(_ROUNDS):
        if not torch.equal(_times(multiply(a_NN.float(), b_NN.float()).long(), v_N), expected_N):
            return False
    return True


def multiply(a_NN: Tensor, b_NN: Tensor) -> Tensor:
    """Return the product of two matrices, as a layer of a model computes it."""
    return a_NN @ b_NN


def _times(matrix_NN: Tensor, vector_N: Tensor) -> Tensor:
    """Return the product of a matrix and a vector of whole numbers, in int64."""
    return (matrix_NN * vector_N).sum(dim=1)


def _add_up(accelerator: Accelerator, count: int) -> tuple[bool, float]:
    """Add up numbers over all ranks; return whether the sum is right here, and the bytes a second. A collective."""
    world_size, device = accelerator.num_processes, accelerator.device
    pattern_N = torch.arange(count, device=device) % 97
    fastest, is_right = float("inf"), True
    for _ in range(_ROUNDS):
        values_N = (pattern_N + accelerator.process_index + 1).float()
        synchronize(device)
        barrier(accelerator)
        began = time.perf_counter()
        dist.all_reduce(values_N)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
        expected_N = pattern_N * world_size + world_size * (world_size + 1) // 2
        is_right = torch.equal(values_N.long(), expected_N) and is_right  # and goes on: others wait for this rank
    return is_right, 2 * (world_size - 1) / world_size * values_N.nbytes / fastest


def _refuse_wrong(problem: str, rank: int, device: torch.device) -> None:
    """Raise WrongDeviceError, on every rank, where one of them has a problem. A collective."""
    every = gather_objects((problem, NamedDevice.of_this_rank(rank, device)))
    if wrong := [(text, named) for text, named in every if text]:
        text = "; ".join(f"{named} {text}" for text, named in wrong)
        raise WrongDeviceError(
            f"checked before the start, nothing was trained: {text}", wrong[0][1].rank, wrong[0][1].uuid
        )
