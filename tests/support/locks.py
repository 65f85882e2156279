"""Other processes beside a run: one that owns it, as a training does, and one that merely holds its lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN = """
import fcntl, sys, time
from pathlib import Path
from trainlib.runs.attempt.owner import Ownership
lock = open(sys.argv[1] + "/lock", "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
Path(sys.argv[1], "owner.json").unlink(missing_ok=True)
owner = Ownership(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""
HOLD_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1] + "/lock")
fcntl.flock(lock, getattr(fcntl, sys.argv[2]))
print("held", flush=True)
time.sleep(3600)
"""


@contextmanager
def owning(directory: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the run and holds its lock, with `words` on its command line."""
    with _process(OWN, str(directory), *words) as process:
        yield process


@contextmanager
def holding_lock(directory: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that reads the lock file and holds a lock on it, LOCK_SH or LOCK_EX, but does not train."""
    with _process(HOLD_LOCK, str(directory), kind) as process:
        yield process


@contextmanager
def _process(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
