"""Right numbers on the stand-in for CUDA: the CPU's kernels compute every operation, on the same memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# Operations that torch's own CUDA code does right without kernels: views, empty tensors, streams, communication.
NATIVE_SPACES = ("c10d", "profiler", "prim", "_c10d_functional")
NATIVE = {
    f"aten::{name}"
    for name in (
        *("record_stream", "_pin_memory", "is_pinned", "lift_fresh", "set_", "resize_", "detach_", "requires_grad_"),
        *("_has_compatible_shallow_copy_type", "_unsafe_view"),
    )
}
NATIVE_PREFIXES = ("aten::empty", "aten::new_empty", "aten::sym_")
# Operations that may get tensors of the CPU beside those of a GPU.
MIXED = {
    f"aten::{name}"
    for name in ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "_foreach_copy_", "set_")
}


# Operations whose result decides what the host does next: while a graph is captured, CUDA refuses them.
WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")}


class Emulation(TorchDispatchMode):
    """Computes what operations on CUDA tensors would, and refuses tensors of several devices as CUDA does.

    recorded   the operations of the graph that is being captured; None outside of a capture
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[Callable[[], None]] | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
        asked = kwargs.get("device")
        is_native = name.partition("::")[0] in NATIVE_SPACES or name in NATIVE or name.startswith(NATIVE_PREFIXES)
        if is_native or function.is_view or not (on_gpu or (asked is not None and torch.device(asked).type == "cuda")):
            return function(*args, **kwargs)
        _require_one_device(name, tensors, on_gpu)
        target = torch.device(asked) if asked is not None else on_gpu[0].device
        aliases: list[tuple[Tensor, Tensor]] = []

        def to_cpu(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_cuda:
                aliases.append((_alias(value), value))
                return aliases[-1][0]
            if isinstance(value, torch.device) and value.type == "cuda":
                return torch.device("cpu")
            if isinstance(value, torch.Generator) and value.device.type == "cuda":
                return torch.default_generator
            return value

        cpu_args, cpu_kwargs = pytree.tree_map(to_cpu, (args, kwargs))
        if name != "aten::_to_copy":
            cpu_kwargs.pop("pin_memory", None)
        if self.recorded is not None:
            _require_no_wait(name, tensors)
        result = function(*cpu_args, **cpu_kwargs)
        on_device = pytree.tree_map(lambda value: _to_gpu(value, aliases, target), result)
        if self.recorded is not None:
            known = {alias.untyped_storage().data_ptr() for alias, _ in aliases}
            outputs = {
                i: _alias(value)
                for i, value in enumerate(pytree.tree_leaves(on_device))
                if isinstance(value, Tensor) and value.is_cuda and value.untyped_storage().data_ptr() not in known
            }
            self.recorded.append(partial(_again, function, cpu_args, cpu_kwargs, outputs))
        return on_device


def enter() -> None:
    """Compute right numbers from here on, in this thread and the threads of its backward passes."""
    torch.backends.cudnn.enabled = False  # cuDNN's and the fused attention's operations have no kernels on CPUs
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)
    mode = Emulation()
    mode.__enter__()  # type: ignore[no-untyped-call]
    _emulate_graphs(mode)
    os.environ.pop("FAKE_CUDA_EMULATE", None)


def _emulate_graphs(mode: Emulation) -> None:
    """Let graphs record operations while they are captured, which changes nothing, and run them when replayed."""
    library = ctypes.CDLL(f"{os.environ['FAKEGPU']}/libfakecuda.so")
    graph: Any = torch.cuda.CUDAGraph
    begin, end, replay = graph.capture_begin, graph.capture_end, graph.replay

    def capture_begin(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        library.fakecuda_keep()
        mode.recorded = []

    def capture_end(self: Any) -> None:
        self.recorded, mode.recorded = mode.recorded, None
        library.fakecuda_put_back()
        end(self)

    def replay_recorded(self: Any) -> None:
        replay(self)
        with torch.no_grad(), _disable_current_modes():
            for operation in self.recorded:
                operation()

    graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replay_recorded


def _again(function: Any, args: Any, kwargs: Any, outputs: Mapping[int, Tensor]) -> None:
    """Compute a recorded operation again, into the memory that its results had."""
    results = pytree.tree_leaves(function(*args, **kwargs))
    for i, output in outputs.items():
        if output.numel():
            output.copy_(results[i])


def _require_no_wait(name: str, tensors: Sequence[Tensor]) -> None:
    """Raise RuntimeError for an operation that CUDA cannot capture."""
    copies_from_host = any(not tensor.is_cuda and tensor.dim() and not tensor.is_pinned() for tensor in tensors)
    by_flags = name.startswith("aten::index") and any(tensor.dtype is torch.bool for tensor in tensors[1:])
    if name in WAITING or copies_from_host or by_flags:
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


def _require_one_device(name: str, tensors: Sequence[Tensor], on_gpu: Sequence[Tensor]) -> None:
    """Raise RuntimeError where an operation gets tensors of several devices; numbers of the CPU go with any."""
    on_cpu = any(not tensor.is_cuda and tensor.dim() for tensor in tensors)
    if on_gpu and on_cpu and name not in MIXED:
        raise RuntimeError(f"{name}: tensors of the CPU and of a GPU")
    devices = {tensor.device for tensor in on_gpu}
    if len(devices) > 1 and name != "aten::copy_":
        raise RuntimeError(f"{name}: tensors of {devices}")


def _alias(tensor: Tensor) -> Tensor:
    """Return a CPU tensor with the same memory."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    construct: Any = torch._C._construct_storage_from_data_pointer
    same = construct(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(same, tensor.storage_offset(), tensor.size(), tensor.stride())


def _to_gpu(value: Any, aliases: Sequence[tuple[Tensor, Tensor]], target: torch.device) -> Any:
    """Return the CUDA tensor for a result: an argument, a view of one, or a new one."""
    if not isinstance(value, Tensor):
        return value
    for alias, original in aliases:
        if value is alias:
            return original
    bytes_of_result = value.untyped_storage().nbytes()
    for alias, original in aliases:
        if bytes_of_result and alias.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
            return original.as_strided(value.size(), value.stride(), value.storage_offset())
    if target.type == "cpu":
        return value
    result = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=target)
    if value.numel():
        _alias(result).copy_(value)
    return result
