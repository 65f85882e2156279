"""The record that a node leaves in the run directory when one of its ranks failed: logs/node-<k>.failure.json.

It tells rank, host, exit code and log to whoever reads the run directory elsewhere, and to the SLURM job, which decides
from the records of all its nodes. The next start of the run removes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainlib.errors import EXIT_CONNECTION_LOST
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import to_json
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.shapes import FAILURE


@dataclass(frozen=True)
class FailureRecord:
    """The failed rank that a node noticed first, and how it ended.

    time        ISO 8601, UTC
    exit_code   as a shell gives it: 128 + the number of a signal that killed the rank, whose name `signal` then is
    log         the path of its log, as seen from the directory that holds runs/
    error       the last line of its log; empty where the log has none
    """

    time: str
    rank: int
    host: str
    exit_code: int
    signal: str | None
    log: str
    error: str

    @property
    def only_lost_a_peer(self) -> bool:
        """Return True if the rank ended because another one did, which then is the one to look at."""
        return self.exit_code == EXIT_CONNECTION_LOST


def save(directory: Path, node_rank: int, record: FailureRecord) -> None:
    """Write the record of a node; where that is not possible, go on without one, as the failure itself matters more."""
    path = _path(directory, node_rank)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(asdict(record)) + "\n")


def clear(directory: Path, node_rank: int) -> None:
    """Remove the record that a node left at an earlier start of the run."""
    with suppress(OSError):
        _path(directory, node_rank).unlink()


def clear_all(directory: Path) -> None:
    """Remove the records of all nodes, before another start of the run."""
    for path in (directory / "logs").glob("node-*.failure.json"):
        with suppress(OSError):
            path.unlink()


def read_all(directory: Path) -> list[FailureRecord]:
    """Return the records of all nodes, without those that are damaged or that another version wrote."""
    names = {field.name for field in fields(FailureRecord)}
    files = RunFiles(directory)
    contents = (files.record(name, FAILURE) for name in files.names("logs/node-*.failure.json"))
    return [FailureRecord(**content) for content in contents if set(content) == names]


def root_cause(records: Sequence[FailureRecord]) -> FailureRecord | None:
    """Return the failure that caused the others: the earliest of a rank that did not merely lose another rank."""
    return min(records, key=lambda record: (record.only_lost_a_peer, record.time), default=None)


def _path(directory: Path, node_rank: int) -> Path:
    return directory / "logs" / f"node-{node_rank}.failure.json"
