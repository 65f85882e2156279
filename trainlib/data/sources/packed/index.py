"""The index beside the shards of `launch pack`: the size and members of each, so that no shard is read to list it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainlib.data.identity.stamp import Stamp
from trainlib.data.sources.packed.members import Archive, Member, open_archive, safe_name
from trainlib.errors import DataError

INDEX_FILE = "index.jsonl"
FORMAT = 1


def read_index(folder: Path, shards: Sequence[Path]) -> list[Archive] | None:
    """Return the members of all shards from the index of their folder; None where it has none.

    Raises DataError where the index is damaged, or where the shards are not those that it names.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r}")
        named = {str(line["shard"]): line for line in lines}
        if len(named) != head["shards"]:
            raise ValueError("some of its lines are lost")
        there = {str(shard.relative_to(folder)): shard for shard in shards}
        missing, extra = sorted(named.keys() - there.keys()), sorted(there.keys() - named.keys())
        if missing or extra:
            told = [f"{name} is missing" for name in missing] + [f"{name} is not of them" for name in extra]
            raise ValueError(f"the shards are not those that were packed: {', '.join(told[:5])}")
        return [_archive(there[name], named[name]) for name in sorted(named)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"data.root: {path} does not fit its shards: {error}. Bring all that `launch pack` made, or pack again"
        ) from error


def dump_index(shards: Sequence[tuple[str, int, Sequence[tuple[str, int, int]]]]) -> str:
    """Return the text of an index of shards: name, size, and name, offset and size of each member."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "shards": len(shards)}]
    lines += [{"shard": name, "size": size, "members": members} for name, size, members in shards]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _archive(path: Path, line: dict[str, Any]) -> Archive:
    descriptor = open_archive(path)
    try:
        stamp = Stamp.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if stamp.size != line["size"]:
        raise ValueError(f"{path.name} has {stamp.size} bytes, and had {line['size']}")
    members = {}
    for name, offset, size in line["members"]:
        if not (0 <= offset <= offset + size <= stamp.size):
            raise ValueError(f"{name} does not lie in {path.name}")
        members[safe_name(name, str(path))] = Member(name, offset, size, size)
    return Archive(str(path), False, stamp, members, [])
