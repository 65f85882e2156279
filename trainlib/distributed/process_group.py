"""Joining the other ranks of a run through Accelerate, the same way under every launcher, and exchanging objects."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn

from trainlib.config import TrainConfig
from trainlib.distributed.devices.choice import choose_device, choose_device_type, on_device, variable
from trainlib.distributed.rendezvous.keys import init_method
from trainlib.errors import ConnectionLostError, DeviceLostError, TrainlaunchError, UserError
from trainlib.runs.machine import launch_variables
from trainlib.runs.machine.kept_memory import keep_freed_memory
from trainlib.runs.machine.limits import usable_cores

logger = logging.getLogger("trainlib")

T = TypeVar("T")

PLAIN_DATA_PARALLEL = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)

# What gloo and NCCL say when a rank at the other end is gone. Both raise a RuntimeError.
_LOST_CONNECTION = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|Socket closed|Timed out waiting \d+ms"
    r"|ncclRemoteError|ncclSystemError|communicator was aborted",
    re.IGNORECASE,
)
_SHARED_GPU = re.compile(r"Duplicate GPU detected[^\n]*")  # NCCL's words
# torch's words for an operation of a GPU whose kernel adds in an order that changes from run to run.
_NOT_DETERMINISTIC = re.compile(
    r"(?P<operation>.*?) does not have a deterministic implementation|Deterministic behavior was enabled.*?CuBLAS"
)

# What CUDA says when a device is gone or broken, and no program is to blame for it.
_LOST_DEVICE = re.compile(
    r"uncorrectable (ECC|NVLink) error|device\(s\) is/are busy or unavailable|no CUDA-capable device is detected"
    r"|unspecified launch failure|hardware stack error|the launch timed out and was terminated|driver shutting down"
    r"|GPU is lost|fallen off the bus|CUDA error: unknown error",
    re.IGNORECASE,
)


def start(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> Accelerator:
    """Join the other ranks and settle device, precision, threads and determinism.

    Every setting is given explicitly, so that neither a user's Accelerate configuration nor a variable of the
    environment changes what is computed. Raises UserError for a wrong world size, and for a device that torch cannot
    use, or that ranks would share.
    """
    device = choose_device(choose_device_type(config.device, environ), environ)
    if device.type == "cpu":
        keep_freed_memory(environ)
    torch.set_num_threads(num_threads(environ, is_elastic=config.reproducibility == "elastic"))
    _set_determinism(config)
    try:
        with _without_accelerate_variables(environ), on_device(device):
            accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision="no" if config.precision == "fp32" else config.precision,
                dynamo_backend="no",
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                    InitProcessGroupKwargs(init_method=init_method(), timeout=collective_timeout(config)),
                ],
            )
    except ValueError as error:  # a precision that this device does not have
        raise UserError(f"train.precision: got {config.precision}: {error}") from error
    assert accelerator.distributed_type in PLAIN_DATA_PARALLEL
    asked = launch_variables.whole_number(launch_variables.WORLD_SIZE_ASKED, environ, accelerator.num_processes)
    if accelerator.num_processes != asked:
        raise UserError(f"asked for {asked} processes, but {accelerator.num_processes} came up; nothing was trained")
    return accelerator


@contextmanager
def _without_accelerate_variables(environ: Mapping[str, str]) -> Iterator[None]:
    """Context manager: hide Accelerate's variables from it, as every setting is given explicitly; tell of those lost.

    Raises UserError where they ask for another kind of training.
    """
    launch_variables.refuse_other_training(environ)
    if (lost := launch_variables.not_obeyed(environ)) and launch_variables.rank(environ) == 0:
        logger.warning("not used: %s (the configuration decides, and ACCELERATE_USE_CPU)", ", ".join(lost))
    hidden = {name: os.environ.pop(name) for name in launch_variables.of_accelerate(os.environ)}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def joined(config: TrainConfig) -> Iterator[Accelerator]:
    """Join the other ranks inside the context; on exit leave the group, so that another run can start in this process.

    After an error with other ranks alive the group is not left: that could wait for ranks that wait for this one.
    Raises ConnectionLostError where a collective failed because another rank went away, DeviceLostError where this
    rank's device did.
    """
    accelerator = start(config)
    world_size = accelerator.num_processes
    try:
        yield accelerator
    except BaseException as error:
        if world_size == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
        if (fault := fault_of_machine(error, world_size)) is not None:
            raise fault from error
        if isinstance(error, RuntimeError):
            _refuse(error)
        raise
    barrier(accelerator)
    accelerator.end_training()
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def fault_of_machine(error: BaseException, world_size: int) -> TrainlaunchError | None:
    """Return the error to raise in place of torch's, where that tells that a device or another rank is gone.

    torch raises a RuntimeError for nearly everything: only its text tells.
    """
    if not isinstance(error, RuntimeError):
        return None
    if found := _LOST_DEVICE.search(str(error)):
        return DeviceLostError(f"lost the device of this rank ({found[0]}): look at `dmesg` and `nvidia-smi -q`")
    if world_size > 1 and (found := _LOST_CONNECTION.search(str(error))):
        return ConnectionLostError(f"lost the connection to another rank ({found[0]}): see its log")
    return None


def _refuse(error: RuntimeError) -> None:
    """Raise UserError for an error of torch's that the user can mend."""
    text = str(error)
    if found := _SHARED_GPU.search(text):
        raise UserError(f"ranks would share one GPU ({found[0]}): start one process for each GPU at most") from error
    if found := _NOT_DETERMINISTIC.search(text):
        operation = (found["operation"] or "a matrix product by cuBLAS").strip()
        raise UserError(
            f"train.reproducibility: {operation} has no deterministic kernel on this GPU, so that the same run would "
            "have other bits each time: use another layer, or allow it with train.reproducibility=fast"
        ) from error


def barrier(accelerator: Accelerator) -> None:
    """Block until every rank has called this. Accelerate's own would look for the GPU with the rank's number."""
    if accelerator.num_processes > 1:
        index = accelerator.device.index
        dist.barrier(device_ids=None if index is None else [index])


def all_gather(gathered: Tensor, mine: Tensor) -> None:
    """Fill a tensor with those of all ranks, one after the other along the first dimension. A collective."""
    # The name since torch 2.14; the older one warns there.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, mine)


@contextmanager
def first_of_machine_first(accelerator: Accelerator) -> Iterator[None]:
    """Context manager: one rank of each machine runs what is inside, then the others do. A synchronisation point."""
    if not accelerator.is_local_main_process:
        barrier(accelerator)
    yield
    if accelerator.is_local_main_process:
        barrier(accelerator)


def wrap_model(accelerator: Accelerator, module: nn.Module, *, add_up_gradients: bool) -> nn.Module:
    """Return the module, which is on its device already, wrapped for precision and by DistributedDataParallel.

    add_up_gradients   False leaves out DistributedDataParallel
    """
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.broadcast_buffers = not has_only_statistics(module)
    # Else DistributedDataParallel would look for the GPU with the rank's number, also where a rank sees only its own.
    with variable("ACCELERATE_BYPASS_DEVICE_MAP", "true"), warnings.catch_warnings():
        # Its successor since torch 2.14, forward_sync_buffers, cannot be asked for through Accelerate 1.15.
        warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated", FutureWarning)
        # To find out by itself where the module is, Accelerate would import torch's sharded tensors: half a second.
        wrapped: nn.Module = accelerator.prepare_model(
            module, device_placement=False, evaluation_mode=not add_up_gradients
        )
    return wrapped


def has_only_statistics(module: nn.Module) -> bool:
    """Return True if all buffers are statistics of BatchNorm, which no training step reads.

    Then each rank may keep its own. Rank 0's, which count, never depended on the others', and evaluations take them.
    """
    layers = [layer for layer in module.modules() if next(layer.buffers(recurse=False), None) is not None]
    return all(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)


def check_device(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for a device that torch cannot use, and for fp16 without one; asked before any data is loaded."""
    kind = choose_device_type(config.device, environ)
    choose_device(kind, environ)
    if config.precision == "fp16" and kind == "cpu":
        raise UserError("train.precision: got fp16, which needs a GPU, and none was found; use bf16 or fp32")


def num_threads(environ: Mapping[str, str], *, is_elastic: bool = False) -> int:
    """Return the number of intra-op threads of this rank: its share of the physical cores that it may use.

    A container's or job's limit of CPU time counts like so many cores.
    It is the same under every launcher. torchrun sets OMP_NUM_THREADS to 1 unasked, so that variable says nothing of
    what a user wants. In elastic mode it is 1, as kernels add in another order with another number, and there may be
    any number of ranks.
    """
    if (asked := launch_variables.num_threads(environ)) is not None:
        return asked
    if is_elastic:
        return 1
    return max(1, usable_cores(physical=True) // launch_variables.local_world_size(environ))


def collective_timeout(config: TrainConfig) -> timedelta:
    """Return how long torch itself waits for other ranks: longer than the watchdog, which says more about a hang."""
    return timedelta(seconds=config.hang_seconds + 600) if config.hang_seconds is not None else timedelta(days=7)


def broadcast_object(value: T) -> T:
    """Return rank 0's value on every rank; it travels pickled. A synchronisation point."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[no-any-return]


def gather_objects(value: T) -> list[T]:
    """Return every rank's value on every rank, in rank order; they travel pickled. A synchronisation point."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0's module to every rank. A synchronisation point."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def _set_determinism(config: TrainConfig) -> None:
    """Ask for deterministic kernels, unless `reproducibility: fast`; an operation that has none raises RuntimeError.

    Where torch only warns, it takes the attention's fast backward pass, which is not deterministic.
    """
    deterministic = config.reproducibility != "fast"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    # Not `use_deterministic_algorithms`, which does the same but imports torch's compiler to tell it: a second.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
