"""What W&B has written of a run, read through its own protobuf definitions, and what it should have written.

The reader is not the one under test: it joins the chunks of the LevelDB log block by block.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainlib.runs.files.json_records import read_lines

BLOCK = 32768


def records(path: Path) -> list[Any]:
    """The records of one log; a chunk that is not whole ends it."""
    from wandb.proto import wandb_internal_pb2

    read: Callable[[bytes], Any] = vars(wandb_internal_pb2)["Record"].FromString  # made when the module loads

    content = path.read_bytes()
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    found, joined = [], b""
    for index, block in enumerate(blocks):
        at = 7 if index == 0 else 0
        while len(block) - at >= 7:
            length, kind = struct.unpack_from("<HB", block, at + 4)
            data = block[at + 7 : at + 7 + length]
            if kind == 0 or len(data) < length:
                break
            joined = data if kind in (1, 2) else joined + data
            if kind in (1, 4):
                found.append(read(joined))
            at += 7 + length
    return found


def logs(run: Path) -> list[Path]:
    """The logs of all attempts, oldest first."""
    return sorted(run.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.parent.name.removeprefix("offline-"))


def history(run: Path) -> list[dict[str, Any]]:
    """The rows of all attempts; pictures and tables, whose names are nested, are left out."""
    rows = []
    for path in logs(run):
        for record in records(path):
            if record.HasField("history"):
                items = [(item.key or "/".join(item.nested_key), item) for item in record.history.item]
                rows.append({name: json.loads(item.value_json) for name, item in items if len(item.nested_key) < 2})
    return rows


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What is shown of a row of metrics.jsonl, written out again."""
    prefix, suffix = f"{row['split']}/", "_step" if row.get("scope") == "step" else ""
    evaluated = ("loss", "accuracy", "top5", "macro_f1", "balanced_accuracy", "images_per_second")
    names = ("loss", "accuracy", "images_per_second", "lr") if row["split"] == "train" else evaluated
    return {f"{prefix}{name}{suffix}": row[name] for name in names}


def expected(run: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of metrics.jsonl: step and numbers."""
    return [(row["step"], numbers(row)) for row in read_lines(run / "metrics.jsonl")]


def assert_same_rows(run: Path) -> None:
    """W&B holds exactly the rows of metrics.jsonl, in their order, none doubled, none lost, numbers in every bit."""
    found = [(row["step"], {name: row[name] for name in row if "/" in name}) for row in history(run)]
    assert found == expected(run)
    assert [row["_step"] for row in history(run)] == list(range(len(found)))
    assert len({path.name for path in logs(run)}) == 1


def tensorboard_points(run: Path) -> list[tuple[int, str, float]]:
    """Every scalar of the run's event files, raw: nothing that a later file takes back is left out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    points = []
    for path in sorted(run.glob("tensorboard/events.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            scalars = [value for value in event.summary.value if value.HasField("simple_value")]
            points += [(event.step, value.tag, value.simple_value) for value in scalars]
    return points


def assert_same_in_tensorboard(run: Path) -> None:
    """The event files hold exactly the rows of metrics.jsonl, as the 32-bit floats that they are made of."""
    points = [(step, name, value) for step, row in expected(run) for name, value in row.items()]
    assert sorted(tensorboard_points(run)) == sorted(
        (step, name, struct.unpack("f", struct.pack("f", value))[0]) for step, name, value in points
    )


def record() -> Any:
    """An empty record of W&B."""
    return pytest.importorskip("wandb.proto.wandb_internal_pb2").Record()  # here: importing it takes a second


def of_run(seconds: int, run: str = "abc") -> Any:
    """The record with which a log names its run."""
    made = record()
    made.run.run_id = run
    made.run.start_time.seconds = seconds
    return made


def row(number: int, **values: float) -> Any:
    """The record of a row, of the step that is its number."""
    made = record()
    made.history.step.num = number
    for name, value in {"step": number, **values}.items():
        item = made.history.item.add()
        item.key, item.value_json = name, str(value)
    return made


def write_log(folder: Path, name: str, *records: Any) -> Path:
    """A log as W&B writes it, of records that fit into one block."""
    path = folder / name / "run-abc.wandb"
    path.parent.mkdir(parents=True)
    content = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    for data in (made.SerializeToString() for made in records):
        content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(b"\1")), len(data), 1) + data
    path.write_bytes(content)
    return path
