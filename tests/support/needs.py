"""Programs that a test needs and a machine may lack: skipped there with a reason, but never on CI, which has them."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*programs: str, root: bool = False) -> None:
    """Skip the test where a program is missing or it takes root; fail on CI (the variable CI is set)."""
    missing = [name for name in programs if shutil.which(name) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing:
        reason = f"needs {', '.join(missing)}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
