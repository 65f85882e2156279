"""Build what ranks tell each other besides gradients: statistics of synchronised BatchNorm, audits, their speed."""

from __future__ import annotations

from functools import partial

from accelerate import Accelerator
from torch import nn

from trainlib.config import Config
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.distributed.allreduce import elastic
from trainlib.distributed.devices.named_device import NamedDevice
from trainlib.distributed.pace.pace import NoPace, Pace
from trainlib.distributed.pace.stopwatch import GpuMarks, HostMarks
from trainlib.distributed.process_group import gather_objects, wrap_model
from trainlib.distributed.shards.pieces import PieceGather
from trainlib.errors import UserError
from trainlib.models.forward.synchronized_batchnorm import join_moments, synchronize, synchronized_layers
from trainlib.training.step.audit import Audit
from trainlib.training.step.together import ShardsTogether


def build_pace(config: Config, accelerator: Accelerator, rank_slice: RankSlice) -> Pace | NoPace:
    """Return what compares the speed of ranks, where there are several. A collective."""
    device, world_size = accelerator.device, accelerator.num_processes
    if world_size == 1 or config.model.sync_batchnorm or device.type not in ("cpu", "cuda"):
        return NoPace()
    devices = gather_objects(str(NamedDevice.of_this_rank(accelerator.process_index, device)))
    marks = HostMarks() if device.type == "cpu" else GpuMarks()
    is_even = rank_slice.num_shards % world_size == 0
    return Pace(accelerator.process_index, devices, marks, counts_fetching=is_even)


def build_audit(config: Config, accelerator: Accelerator, module: nn.Module) -> Audit | None:
    """Return the second computation of some micro-batches, where one is configured. A collective.

    Raises UserError where devices are no equals, or a layer would wait for other ranks.
    """
    if config.train.audit is None:
        return None
    if accelerator.device.type not in ("cpu", "cuda"):
        kind = accelerator.device.type
        raise UserError(f"train.audit: got {config.train.audit}, must be null on {kind}: only CPU and CUDA are known")
    if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
        raise UserError(
            f"train.audit: got {config.train.audit}, must be null with a SyncBatchNorm, which one rank cannot compute"
        )
    elastic.require_equal_devices(accelerator, "train.audit: compares what ranks compute")
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return Audit(config.train.audit, rank, world_size, accelerator.device, dict(module.named_parameters()))


def synchronized(
    config: Config, whole: nn.Module, trained: nn.Module, accelerator: Accelerator
) -> ShardsTogether | None:
    """Synchronise BatchNorm layers over the pieces of a global batch; return what computes those of elastic mode."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if config.train.reproducibility != "elastic":
        gather = partial(PieceGather(world_size, world_size, rank), pieces=[rank])
        synchronize(whole, lambda piece: join_moments(gather, [piece])[0])
        return None
    synchronize(whole, None)
    pieces = PieceGather(config.train.virtual_shards, world_size, rank)
    wrap = partial(wrap_model, accelerator, add_up_gradients=False)
    return ShardsTogether(trained, pieces, accelerator.device, wrap) if synchronized_layers(trained) else None
