"""The arms: each trains the workload in its own way, and calls `rounds.step` after every step.

documented   as the documentation of the framework shows it
tuned        with what makes it faster and leaves the mathematics alone: channels last, as many workers as leave half of
             the cores to the training, and memory that is kept as our trainer keeps it
tensors      channels last, and fed the tensors of our own loader: loaders are not compared
tensors, tuned   the same, and memory kept: loops are compared, and nothing else
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple


class Arm(NamedTuple):
    """A training loop to time."""

    place: str  # module:function
    options: dict[str, Any]
    needs: str | None = None  # a package that may be missing
    processes: int = 1  # which share the threads of an arm


OURS, BARE, FLOOR = "ours", "bare loop", "one repeated batch"
FAST = "ours, fast"  # on GPUs
ONE, TWO = "1 process", "2 processes"  # of `of_ranks`
OURS_OVER_GLOO, DDP = "ours, over gloo", "DistributedDataParallel over gloo"  # of `beside_gloo`
WORKERS = max(1, (os.cpu_count() or 1) // 2)
TUNED = {"tuned": True, "keep_memory": True}
OF_EXAMPLES = 4  # workers in Accelerate's example, and by default in timm's script


def _peer(name: str, module: str, package: str | None, workers: int = 0) -> dict[str, Arm]:
    """Return the four arms of a framework.

    workers   processes of the loader of the documented arm
    """
    place = f"bench.arms.{module}:train"
    return {
        f"{name}, documented": Arm(place, {"feed": "pictures", "workers": workers}, package),
        f"{name}, tuned": Arm(place, {"feed": "pictures", "workers": WORKERS} | TUNED, package),
        f"{name}, tensors": Arm(place, {"feed": "tensors", "tuned": True}, package),
        f"{name}, tensors, tuned": Arm(place, {"feed": "tensors"} | TUNED, package),
    }


ARMS: dict[str, Arm] = {
    OURS: Arm("bench.arms.ours:train", {}),
    BARE: Arm("bench.arms.limits:bare", {}),
    FLOOR: Arm("bench.arms.limits:bare", {"repeat": True}),
    "tutorial, 0 workers": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 0}),
    "tutorial, 1 worker": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 1}),
    "tutorial, 2 workers": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 2}),
    **{name: arm for name, arm in _peer("tutorial", "tutorial", None).items() if "documented" not in name},
    **_peer("Accelerate", "accelerate_loop", None, OF_EXAMPLES),
    **_peer("Lightning", "lightning_loop", "lightning"),
    "Lightning, barebones": Arm(
        "bench.arms.lightning_loop:train", {"feed": "pictures", "barebones": True}, "lightning"
    ),
    **_peer("timm", "timm_loop", "timm", OF_EXAMPLES),
}

# Where kernels that give other bits each time may be faster.
ARMS_ON_GPU = ARMS | {FAST: Arm("bench.arms.ours:train", {"reproducibility": "fast"})}

TUTORIALS = ("tutorial, 0 workers", "tutorial, 1 worker", "tutorial, 2 workers")
DOCUMENTED = ("Accelerate, documented", "Lightning, documented", "Lightning, barebones", "timm, documented")
TENSORS = ("Accelerate, tensors", "Lightning, tensors", "timm, tensors")


def of_ranks(numbers: Iterable[int]) -> dict[str, Arm]:
    """Return trainlib's training with one process, and with these numbers of processes that share its threads."""
    several = {f"{number} processes": Arm(ARMS[OURS].place, {}, processes=number) for number in numbers}
    return {ONE: ARMS[OURS]} | several


def beside_gloo(number: int) -> dict[str, Arm]:
    """Return trainlib's training in this number of processes, the same through gloo, and a bare loop through gloo."""
    return {
        OURS: Arm(ARMS[OURS].place, {}, processes=number),
        OURS_OVER_GLOO: Arm(ARMS[OURS].place, {"gloo": True}, processes=number),
        DDP: Arm("bench.arms.ddp:train", {}, processes=number),
    }
