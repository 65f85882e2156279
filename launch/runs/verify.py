"""Compares the records of the same steps, made with several numbers of ranks by `trainlib.training.programs.verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainlib.runs.files.json_records import Record, read_lines

Line = Mapping[str, Any]

_SHOWN = 12  # digits of a digest


def read_records(folder: Path, world_size: int) -> list[list[Record]]:
    """Return the lines that each rank recorded, in rank order; none for a rank that recorded nothing."""
    return [read_lines(folder / f"{world_size}-{rank}.jsonl") for rank in range(world_size)]


def difference(records: Mapping[int, Sequence[Sequence[Line]]]) -> str | None:
    """Return a sentence on the first difference between records; None where every bit of every step is the same.

    records   each rank's lines, by number of ranks; all are compared with the first rank of the first number
    """
    (first_size, (expected, *_)) = next(iter(records.items()))
    failure = next(_failures(records), None)
    ends = [len(lines) for size in records.values() for lines in size]
    for index in range(min(ends)):
        for world_size, ranks in records.items():
            for rank, lines in enumerate(ranks):
                found = _differs(expected[index], lines[index])
                if found is not None:
                    what, theirs, ours = found
                    here, there = _place(world_size, rank), _place(first_size, 0)
                    threads = _threads(lines[index], expected[index], here, there)
                    return f"{what} is {theirs} {here}, and {ours} {there}{threads}"
    if failure is not None:
        return failure
    shortest, longest = min(ends), max(ends)
    return None if shortest == longest else f"some ranks recorded {shortest - 1} steps, others {longest - 1}"


def _failures(records: Mapping[int, Sequence[Sequence[Line]]]) -> Iterator[str]:
    for world_size, ranks in records.items():
        for rank, lines in enumerate(ranks):
            if not lines:
                yield f"nothing was recorded {_place(world_size, rank)}"
            elif "error" in lines[-1]:
                yield f"{_place(world_size, rank)}: {lines[-1]['error']}"


def _differs(ours: Line, theirs: Line) -> tuple[str, Any, Any] | None:
    """Return the first difference between two lines, in the order of the computation: its name and both values."""
    if "error" in ours or "error" in theirs:
        return None
    if "from_step" in ours:
        return _value("the step that it began from", ours["from_step"], theirs["from_step"])
    step = f"step {ours['step']}"
    for kind, what in (("gradients", "the gradient of"), ("weights", "the value of")):
        mine, others = ours.get(kind, {}), theirs.get(kind, {})
        for name in {**mine, **others}:
            if mine.get(name) != others.get(name):
                there, here = ((digests.get(name) or "absent")[:_SHOWN] for digests in (others, mine))
                return f"{step}: {what} {name}", there, here
    rows = _value(f"{step}: what was reported", ours.get("rows"), theirs.get("rows"))
    return rows or _value(f"{step}: the number of threads", ours["num_threads"], theirs["num_threads"])


def _value(what: str, ours: Any, theirs: Any) -> tuple[str, Any, Any] | None:
    return None if ours == theirs else (what, theirs, ours)


def _threads(theirs: Line, ours: Line, here: str, there: str) -> str:
    """Return numbers of threads that explain a difference; empty where they are equal."""
    counts = theirs.get("num_threads"), ours.get("num_threads")
    return "" if counts[0] == counts[1] else f" (threads: {counts[0]} {here}, {counts[1]} {there})"


def _place(world_size: int, rank: int) -> str:
    return "with 1 process" if world_size == 1 else f"with {world_size} processes on rank {rank}"
