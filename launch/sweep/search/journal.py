"""The journal of a search: what was sampled, started and has ended, appended line by line and flushed to disk.

What is decided follows from the rows of the trials (see `halving`); the journal holds what cannot be read there: the
samples of TPE and the trials that have failed. Its other lines are for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlib.errors import UserError
from trainlib.runs.files.json_records import Record, append_line, read_lines, timestamp

JOURNAL = "journal.jsonl"
HEADER, SAMPLE, START, END, FAILED = "search", "sample", "start", "end", "failed"


def note(folder: Path, event: str, **facts: Any) -> None:
    """Append a line, which is on disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    append_line(folder / JOURNAL, {"event": event, "time": timestamp(), **facts})


def read(folder: Path) -> list[Record]:
    """Return the whole lines of the journal; empty where there is none."""
    return read_lines(folder / JOURNAL, strict=True)


def set_aside(folder: Path) -> None:
    """Keep the journal of an earlier search under another name."""
    path, number = folder / JOURNAL, 1
    while (aside := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    if path.exists():
        path.rename(aside)


def sampled(folder: Path) -> list[dict[str, Any]]:
    """Return the samples that the journal holds, in their order. Raises UserError where one of them is lost."""
    lines = [line for line in read(folder) if line.get("event") == SAMPLE]
    for number, line in enumerate(lines):
        if line.get("number") != number or not isinstance(line.get("values"), dict):
            raise UserError(
                f"{folder / JOURNAL} is damaged: sample {number} is missing; put back a whole copy, or begin again "
                "with --fresh"
            )
    return [line["values"] for line in lines]


def failed(lines: list[Record]) -> dict[str, str]:
    """Return why trials have failed, by their names."""
    return {line["trial"]: line["why"] for line in lines if line.get("event") == FAILED}


def require_same_search(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new search; raise UserError where the journal is that of a search with others."""
    earlier = [line for line in read(folder) if line.get("event") == HEADER]
    if not earlier:
        note(folder, HEADER, settings=settings)
        return
    before = earlier[-1].get("settings") or {}
    changed = [f"{key} was {before.get(key)}, is {now}" for key, now in settings.items() if before.get(key) != now]
    if changed:
        raise UserError(
            f"{folder / JOURNAL} is that of a search with other settings: {'; '.join(changed)}. Go on with the earlier "
            "ones, give the sweep another name, or begin again with --fresh"
        )
