"""Global settings of torch and Accelerate: a fresh process's inside a `with` block, and the caller's again after it.

A notebook may have changed any of them, and most change the bits of a training, or make it fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import backends

KEEP = object()  # in place of a value: training sets it itself

# Attributes of torch.backends, with their values in a fresh process. A precision that is set after a more general one
# overrides it, so the order matters.
_BACKENDS: dict[str, Any] = {
    "fp32_precision": "none",
    "cuda.matmul.fp32_precision": "none",
    "cudnn.fp32_precision": "none",
    "cudnn.conv.fp32_precision": "tf32",
    "cudnn.rnn.fp32_precision": "tf32",
    "mkldnn.fp32_precision": "none",
    "mkldnn.matmul.fp32_precision": "none",
    "mkldnn.conv.fp32_precision": "none",
    "mkldnn.rnn.fp32_precision": "none",
    "mkldnn.enabled": True,
    "mkldnn.deterministic": False,
    "cudnn.enabled": True,
    "cudnn.deterministic": False,
    "cudnn.benchmark": False,
    "cudnn.benchmark_limit": 10,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "cuda.matmul.allow_bf16_reduced_precision_reduction": True,
    "cuda.matmul.allow_fp16_accumulation": False,
}
_AUTOCAST_TYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}


class Setting(NamedTuple):
    """A global setting of torch's: how it is read and changed, and its value in a fresh process."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    fresh: Any


@contextmanager
def fresh_torch_settings() -> Iterator[None]:
    """Context manager: give torch the settings of a fresh process; on exit restore all that was there before.

    The states of torch's random generators are restored too, and an Accelerator that the caller has made.
    """
    with ExitStack() as at_exit:
        at_exit.enter_context(torch.inference_mode(False))
        is_elsewhere = torch.get_default_device().type != "cpu"
        at_exit.enter_context(torch.device("cpu") if is_elsewhere else nullcontext())
        for setting in [*_settings(), *map(_backend, _BACKENDS)]:
            before = setting.get()
            at_exit.callback(_restore, setting, before)
            if setting.fresh is not KEEP and before != setting.fresh:
                setting.set(setting.fresh)
        at_exit.enter_context(_outside_of_autocast())
        at_exit.enter_context(_without_accelerators())
        yield


def _settings() -> Iterator[Setting]:
    yield Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
    yield Setting(torch.is_grad_enabled, torch.set_grad_enabled, True)
    yield Setting(torch.get_num_threads, torch.set_num_threads, KEEP)
    yield Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, KEEP)
    deterministic: Any = torch.utils.deterministic
    fill = "fill_uninitialized_memory"
    yield Setting(partial(getattr, deterministic, fill), partial(setattr, deterministic, fill), KEEP)
    yield Setting(_denormals_are_flushed, torch.set_flush_denormal, False)
    yield Setting(torch.is_anomaly_enabled, torch.set_anomaly_enabled, False)
    yield Setting(backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled, True)
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        enabled, enable = (getattr(backends.cuda, name) for name in (f"{kernel}_sdp_enabled", f"enable_{kernel}_sdp"))
        yield Setting(enabled, enable, True)
    for device, dtype in _AUTOCAST_TYPES.items():
        yield Setting(partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device), False)
        yield Setting(partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device), dtype)
    yield Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True)
    yield Setting(torch.get_rng_state, torch.set_rng_state, KEEP)
    if torch.cuda.is_initialized():
        yield Setting(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, KEEP)


def _backend(path: str) -> Setting:
    """Return the setting at a dotted path below torch.backends."""
    parent, _, name = path.rpartition(".")
    owner = attrgetter(parent)(backends) if parent else backends
    return Setting(partial(getattr, owner, name), partial(setattr, owner, name), _BACKENDS[path])


def _restore(setting: Setting, before: Any) -> None:
    """Set what was there before; not where that is still so, as setting some of them has effects of its own."""
    if isinstance(before, torch.Tensor | list) or setting.get() != before:
        setting.set(before)


def _denormals_are_flushed() -> bool:
    smallest = torch.tensor(2.0**-149, dtype=torch.float32, device="cpu")
    return bool(smallest * 1.0 == 0)


@contextmanager
def _outside_of_autocast() -> Iterator[None]:
    """Context manager: as if no `torch.autocast` block were around this one.

    Inside of one, torch would keep the narrow copies of weights that a step made for the next one.
    """
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for _ in range(depth):
            torch.autocast_increment_nesting()


@contextmanager
def _without_accelerators() -> Iterator[None]:
    """Context manager: as if no Accelerator had been made in this process, unless it has joined others already.

    All Accelerators of a process share one state, and a second one may not have another precision.
    """
    if dist.is_initialized():
        yield
        return
    states = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)
