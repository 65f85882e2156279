"""What a node leaves in the run directory when a rank of it failed: logs/node-<k>.failure.json, until the next start.

Whoever looks at the run from elsewhere, or judges what several nodes report, finds rank, host, exit code and log there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainlib.errors import EXIT_CONNECTION_LOST
from trainlib.runs.status import json_file


@dataclass(frozen=True)
class FailureRecord:
    """The rank whose failure a node saw first.

    time        ISO 8601, UTC
    exit_code   as a shell gives it: 128 + the signal's number where a signal killed it, whose name `signal` then is
    log         its path, as seen from the directory that holds runs/
    error       the last line of its log; empty where it has none
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
        """Whether it ended because another rank did: the reason is to be found there."""
        return self.exit_code == EXIT_CONNECTION_LOST


def save(directory: Path, node_rank: int, record: FailureRecord) -> None:
    """Leave the record; that it cannot be written is not worth an error beside the failure itself."""
    path = _path(directory, node_rank)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")
        temporary.replace(path)


def clear(directory: Path, node_rank: int) -> None:
    """A new start: the record of an earlier one is out of date."""
    with suppress(OSError):
        _path(directory, node_rank).unlink()


def read_all(directory: Path) -> list[FailureRecord]:
    """The records of all nodes. One that another version wrote, or that is damaged, is passed over."""
    names = {field.name for field in fields(FailureRecord)}
    contents = (json_file(path) for path in sorted((directory / "logs").glob("node-*.failure.json")))
    return [FailureRecord(**content) for content in contents if set(content) == names]


def root_cause(records: Sequence[FailureRecord]) -> FailureRecord | None:
    """The failure that brought the others about: the earliest of a rank that did more than lose the others."""
    return min(records, key=lambda record: (record.only_lost_a_peer, record.time), default=None)


def _path(directory: Path, node_rank: int) -> Path:
    return directory / "logs" / f"node-{node_rank}.failure.json"
