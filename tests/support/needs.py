"""What a test needs and a machine may lack: it is skipped there with a reason, but never on CI, which has it."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str, root: bool = False) -> None:
    """Skip the test where a program is missing or it takes root; fail on CI (the variable CI is set)."""
    missing = [name for name in programs if shutil.which(name) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing:
        missing_here(f"needs {', '.join(missing)}")


def need_memory_folder() -> None:
    """Skip the test where there is no folder in memory, /dev/shm, to write to; fail on CI."""
    if not os.access("/dev/shm", os.W_OK):
        missing_here("needs /dev/shm")


def missing_here(reason: str) -> NoReturn:
    """Skip the test; fail on CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
