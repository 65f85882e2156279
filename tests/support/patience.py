"""A time that only a hang takes, on however loaded a machine: what tests wait for at the longest."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 300.0  # seconds
FOREVER = 3600  # seconds that a program of a test sleeps, where it stands for one that would never end


def wait_until(condition: Callable[[], bool], seconds: float = HANG) -> None:
    """Wait for a condition, asked often; fail where it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.02)
