"""A terminal of the kernel's, for programs that print other things there than into a pipe."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def on_terminal(words: Sequence[str], variables: Mapping[str, str], cwd: Path | None = None) -> tuple[int, str]:
    """Return the exit code of a program, and all that it prints on a terminal that is its three standard streams."""
    ours, theirs = os.openpty()
    child = subprocess.Popen(words, cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    with suppress(OSError):  # its end, on Linux
        while chunk := os.read(ours, 1 << 16):
            text += chunk
    os.close(ours)
    return child.wait(), text.decode().replace("\r\n", "\n")
