"""The arms: each trains the workload in its own way, and calls `rounds.step` after every step.

documented   as the documentation of the framework shows it
tuned        with what makes it faster and leaves the mathematics alone: channels last, memory kept, its fastest feed
tensors      tuned, and fed the tensors of our own loader: loops are compared, not loaders
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Arm(NamedTuple):
    place: str  # module:function
    options: dict[str, Any]
    needs: str | None = None  # a package that may be missing


OURS, BARE, FLOOR = "ours", "bare loop", "one repeated batch"

ARMS: dict[str, Arm] = {
    OURS: Arm("bench.arms.ours:train", {}),
    BARE: Arm("bench.arms.limits:bare", {}),
    FLOOR: Arm("bench.arms.limits:bare", {"repeat": True}),
    "tutorial, 0 workers": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 0}),
    "tutorial, 1 worker": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 1}),
    "tutorial, 2 workers": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 2}),
    "tutorial, tuned": Arm("bench.arms.tutorial:train", {"feed": "pictures", "workers": 1, "tuned": True}),
    "tutorial, tensors": Arm("bench.arms.tutorial:train", {"feed": "tensors", "tuned": True}),
    "Accelerate, documented": Arm("bench.arms.accelerate_loop:train", {"feed": "pictures"}),
    "Accelerate, tuned": Arm("bench.arms.accelerate_loop:train", {"feed": "pictures", "workers": 1, "tuned": True}),
    "Accelerate, tensors": Arm("bench.arms.accelerate_loop:train", {"feed": "tensors", "tuned": True}),
    "Lightning, documented": Arm("bench.arms.lightning_loop:train", {"feed": "pictures"}, "lightning"),
    "Lightning, barebones": Arm(
        "bench.arms.lightning_loop:train", {"feed": "pictures", "barebones": True}, "lightning"
    ),
    "Lightning, tuned": Arm(
        "bench.arms.lightning_loop:train",
        {"feed": "pictures", "workers": 1, "barebones": True, "tuned": True},
        "lightning",
    ),
    "Lightning, tensors": Arm(
        "bench.arms.lightning_loop:train", {"feed": "tensors", "barebones": True, "tuned": True}, "lightning"
    ),
}
