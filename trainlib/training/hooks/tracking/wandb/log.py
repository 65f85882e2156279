"""Reading back what W&B keeps of a run on disk: one log of protobuf records for each attempt.

The files are `wandb/*run-<time>-<id>/run-<id>.wandb`: after 7 bytes of header a LevelDB log, that is blocks of 32 KiB
with records in them, cut into chunks of (CRC-32, length, kind, data) where they reach over the end of a block.
https://github.com/google/leveldb/blob/main/doc/log_format.md; W&B's checksum is zlib's.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainlib.platform.regular_files import open_regular, read_regular

MAX_BYTES = 1 << 30  # of one log
BLOCK_SIZE = 32768
HEADER = struct.Struct("<4sHB")
MAGIC = (b":W&B", 0xBEE1, 0)
CHUNK = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

RowKey = tuple[int, frozenset[str]]


@dataclass(frozen=True)
class Point:
    """One row of a W&B run's history: its number there, which counts from 0, and its values by name."""

    number: int
    values: dict[str, Any]


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a W&B log, up to its end or to where a crash or a full disk cut it off."""
    return (data for data, _ in _whole(read_regular(path, MAX_BYTES)))


def cut_to_records(path: Path) -> None:
    """Take what is no whole record off the end of a log: W&B calls one that a crash cut off damaged."""
    content = read_regular(path, MAX_BYTES)
    end = max((end for _, end in _whole(content)), default=len(content))
    if end < len(content):
        descriptor = open_regular(path, os.O_RDWR)
        try:
            os.ftruncate(descriptor, end)
        finally:
            os.close(descriptor)


def _whole(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Each record of a log, and where it ends."""
    if content[: HEADER.size] != HEADER.pack(*MAGIC):
        return
    at, parts = HEADER.size, list[bytes]()
    while at + CHUNK.size <= len(content):
        if BLOCK_SIZE - at % BLOCK_SIZE < CHUNK.size:  # too little is left of this block for another chunk
            at += BLOCK_SIZE - at % BLOCK_SIZE
            continue
        checksum, length, kind = CHUNK.unpack_from(content, at)
        at += CHUNK.size
        data = content[at : at + length]
        at += length
        if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            return
        if kind in (FULL, FIRST):
            parts = []
        parts.append(data)
        if kind in (FULL, LAST):
            yield b"".join(parts), at


def history(path: Path) -> Iterator[Point]:
    """Return the rows of history in one log, in the order in which they were logged."""
    for record in wandb_records("history", path):
        try:
            yield Point(int(record.history.step.num), _nested(record.history.item))
        except (ValueError, TypeError, AttributeError, RecursionError):  # no row that W&B wrote
            return


def says_its_run(path: Path) -> bool:
    """Whether a log came so far as to name its run; one of an attempt that was killed at once does not."""
    return id_in(path) is not None


def id_in(path: Path) -> str | None:
    """Return the id of the run that a log says it is of; None where it does not come so far."""
    record = next(wandb_records("run", path), None)
    return None if record is None else str(record.run.run_id)


def record_kinds(path: Path) -> set[str]:
    """Return the kinds of records in a log, by W&B's names for them; "" for one that is none of W&B's."""
    return {record.WhichOneof("record_type") or "" for record in _all_records(path)}


def wandb_records(kind: str, path: Path) -> Iterator[Any]:
    """Yield the records of one kind in a log, as W&B's library reads them."""
    return (record for record in _all_records(path) if record.WhichOneof("record_type") == kind)


def _all_records(path: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data in records(path):
        try:
            yield Record.FromString(data)
        except DecodeError:
            return


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    """Return the values of a row by name; those of a picture, table or histogram one by one, each with its path."""
    values: dict[str, Any] = {}
    for item in items:
        *path, name = item.nested_key or [item.key]
        inner = values
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = json.loads(item.value_json)
    return values


def segments(folder: Path, run_id: str) -> list[Path]:
    """Return the logs of a run below its folder `wandb`, one for each attempt, oldest first.

    The rows that they hold tell the order, as each attempt goes on counting where the one before it ended; of logs
    without rows, the time in them, which is UTC. Their names hold the local time, which means nothing elsewhere. A log
    that was put there under the run's name, and says that it is another run's, is left out.
    """
    named = folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    found = [path for path in named if id_in(path) in (None, run_id)]
    return sorted(found, key=lambda path: (_first_number(path), _start_time(path), path.parent.name))


def ids_in(folder: Path) -> list[str]:
    """Return the ids of the runs that the logs below a folder `wandb` are of, as their names and records say."""
    logs = folder.glob("*run-*/run-*.wandb")
    return sorted({found for path in logs if (found := id_in(path)) is not None and path.stem == f"run-{found}"})


def _first_number(path: Path) -> int:
    """Return the number of the first row in a log; -1 where it has none, so that it comes before those that have."""
    first = next(history(path), None)
    return -1 if first is None else first.number


def _start_time(path: Path) -> float:
    record = next(wandb_records("run", path), None)
    return 0.0 if record is None else float(record.run.start_time.seconds + record.run.start_time.nanos / 1e9)


def key_of(step: int, values: Mapping[str, Any]) -> RowKey:
    """Return the key that tells a row from all others of its run: its step, and the names of its numbers."""
    return step, frozenset(name for name, value in values.items() if "/" in name and isinstance(value, int | float))


def logged_rows(folder: Path, run_id: str) -> dict[RowKey, int]:
    """Return the rows that W&B has on disk, with their number in its history."""
    points = points_of(folder, run_id)
    return {key_of(point.values["step"], point.values): point.number for point in points if "step" in point.values}


def points_of(folder: Path, run_id: str) -> list[Point]:
    """Return all rows of a run's history that are on disk, in the order of its logs."""
    return [point for path in segments(folder, run_id) for point in history(path)]
