"""Another process that holds the lock of a run, as a training does."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(3600)
"""


@contextmanager
def holding_lock(directory: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run's lock, with `words` on its command line."""
    command = [sys.executable, "-c", HOLD_LOCK, str(directory / "lock"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
