"""progress.json: how far a run has come within the last seconds, renewed with the lease of its directory.

The thread that renews `owner.json` writes it, so a training step pays nothing for it. Nothing is computed from it: the
numbers of record are in metrics.jsonl.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainlib.runs.files.json_records import Record, parse_record, timestamp, to_json
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.shapes import PULSE

PULSE_FILE = "progress.json"
FRESH_SECONDS = 60.0  # a run that stands still, or whose machine is gone, says nothing after that


def write_pulse(directory: Path, now: Mapping[str, Any]) -> None:
    """Replace the file; what cannot be written is left out, as on a full disk."""
    temporary = directory / f".{PULSE_FILE}.{secrets.token_hex(8)}.tmp"
    with suppress(OSError):
        try:
            temporary.write_text(to_json({"time": timestamp()} | dict(now)))
            os.replace(temporary, directory / PULSE_FILE)
        except OSError:
            temporary.unlink()
            raise


def read_pulse(directory: Path) -> Record:
    """Return how far the run in a directory is; empty where that is not known, or too old.

    phase             what the run does, in words
    decoded, pictures while the cache is filled: how many are decoded, and of how many
    step, total       steps done, and of the whole run
    epoch, epochs     the epoch that it is in, from 1, and their number
    loss              mean loss of the last minute, of rank 0's samples; None where the host does not know it
    images_per_second, seconds_left
    gpus              of rank 0's machine: see `gpu_loads`
    slow              which ranks are slower than the others, and how much
    """
    with suppress(ValueError):
        found = parse_record(RunFiles(directory).text(PULSE_FILE).encode(), PULSE)
        age = (datetime.now(UTC) - datetime.fromisoformat(found["time"]).astimezone(UTC)).total_seconds()
        return found if abs(age) < FRESH_SECONDS else {}
    return {}


def remove_pulse(directory: Path) -> None:
    """Remove the file of a run that ends."""
    with suppress(OSError):
        (directory / PULSE_FILE).unlink()
