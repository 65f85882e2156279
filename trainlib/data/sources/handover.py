"""Listing by one rank of a machine, which passes the list to the others: they ask the file system for nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trainlib.runs.files.locks import exclusive_lock

T = TypeVar("T")


def made_once(
    folder: Path | None, what: str, make: Callable[[], T], *, stop_requested: Callable[[], bool], is_main: bool
) -> T:
    """Return what `make` returns: the first of this machine's ranks that comes makes it, the others read it.

    folder    one that the ranks of one start on this machine share, and nobody else can write to; None for a rank that
              makes it for itself
    what      names what is made, with all that it depends on
    is_main   the rank that should be the first where it can, as its user is shown more

    Raises what `make` raises, on every rank; StoppedError when asked to stop while waiting.
    """
    if folder is None:
        return make()
    # The agent's number tells a start from another one in a folder that was left in the environment.
    name = hashlib.sha256(f"{os.getppid()} {what}".encode()).hexdigest()[:24]
    path = folder / f"listing-{name}"
    with exclusive_lock(path.with_suffix(".lock"), stop_requested=stop_requested, delay=0.0 if is_main else 0.1):
        if path.exists():
            found: T = pickle.loads(path.read_bytes())
            return found
        made = make()
        partial = path.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(made, protocol=pickle.HIGHEST_PROTOCOL))
        partial.rename(path)
        return made
