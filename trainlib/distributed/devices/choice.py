"""The device that a rank trains on: chosen as `train.device` says, and never a CPU in place of a GPU that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from trainlib.errors import UserError
from trainlib.runs.machine import launch_variables
from trainlib.runs.machine.gpus import count_gpus

_ON_CPU = f"or use the CPU: train.device=cpu, or for other commands the variable {launch_variables.USE_CPU}=true"
_REMEDY = {
    "cuda": "Install the build of torch for this machine's driver (pytorch.org/get-started), or a newer driver",
    "xpu": "Install the build of torch for Intel GPUs (pytorch.org/get-started), and their driver",
    "mps": "Install the build of torch for macOS on Apple silicon",
}

_AUTOMATIC = ("cuda", "xpu")  # not mps, which nobody has tried yet


def choose_device_type(asked: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the type of the device to train on: cpu, cuda, mps or xpu.

    asked   `train.device`; auto takes a GPU of NVIDIA, AMD or Intel where there is one, else the CPU

    Raises UserError, with torch's reason, where torch cannot use the device that is asked for, or for auto a GPU that
    the machine has.
    """
    if launch_variables.uses_cpu(environ):
        if asked not in ("auto", "cpu"):
            raise UserError(
                f"train.device: got {asked}, and the variable {launch_variables.USE_CPU} asks for the CPU: unset the "
                "variable, or leave the key out"
            )
        return "cpu"
    if asked != "auto":
        if asked != "cpu" and not _is_usable(asked):
            raise UserError(
                f"train.device: got {asked}, which torch {torch.__version__} cannot use here: {_reason(asked)}. "
                f"{_REMEDY[asked]}, {_ON_CPU}"
            )
        return asked
    found = next((kind for kind in _AUTOMATIC if _is_usable(kind)), "cpu")
    if found == "cpu" and (gpus := count_gpus()):
        raise UserError(
            f"train.device: this machine has {gpus} GPU{'s' * (gpus > 1)}, which torch {torch.__version__} cannot use: "
            f"{_reason('cuda')}. {_REMEDY['cuda']}, {_ON_CPU}"
        )
    return found


def choose_device(kind: str, environ: Mapping[str, str] = os.environ) -> torch.device:
    """Return this rank's device of a type: one of its own where all ranks see all devices, or the only one it sees.

    Raises UserError where ranks would have to share devices.
    """
    if kind in ("cpu", "mps"):
        return torch.device(kind)
    count, ranks = torch.get_device_module(kind).device_count(), launch_variables.local_world_size(environ)
    local_rank = launch_variables.whole_number("LOCAL_RANK", environ, 0, least=0)
    if count == 1 < ranks:  # as with srun --gpus-per-task=1, or one part of a divided GPU for each task
        return torch.device(kind, 0)
    if local_rank >= count:
        raise UserError(
            f"{ranks} processes were started on this machine, and rank {launch_variables.rank(environ)} sees {count} "
            "GPUs: start one process for each GPU at most, or let each process see exactly one "
            "(CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1)"
        )
    return torch.device(kind, local_rank)


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Context manager: let an Accelerator that is made inside use this device, whatever it would choose itself."""
    if device.type == "cpu":
        yield
        return
    if device.index is not None:
        torch.accelerator.set_device_index(device)
    with variable("ACCELERATE_TORCH_DEVICE", str(device)):  # one that a user has set is hidden by now
        yield


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Context manager: set an environment variable; on exit it is as before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _is_usable(kind: str) -> bool:
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
    return bool(module.is_available())


def _reason(kind: str) -> str:
    """Return what torch says when it is asked for a device of this type."""
    try:
        torch.zeros(1, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which one depends on the build
        return str(error).strip().split("\n")[0].rstrip(".")
    return "torch does not say why"
