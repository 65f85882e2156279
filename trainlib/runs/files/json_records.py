"""JSON objects and lines of JSON in files: appended to, and read so that damage in them does no harm."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainlib.errors import ConfigError
from trainlib.platform.regular_files import open_regular, read_regular, read_tail

Record = dict[str, Any]
Fits = Callable[[Record], str | None]  # what is wrong with a record, in words; None where it fits

RECORD_BYTES = 1 << 26  # of a file that holds one JSON object; the largest are evaluations of thousands of classes
LINES_BYTES = 1 << 27  # of a file of JSON lines, about half a million rows
MAX_DEPTH = 32
NAMED_AT_MOST = 5  # damaged lines of a file
_MOST_DIGITS = 20
_TOO_DEEP = "values inside each other, too deeply"


def anything(record: Record) -> str | None:
    """Return None: every record fits."""
    return None


def timestamp() -> str:
    """Return the time now, as ISO 8601 in UTC to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return a record as JSON, with null for NaN and infinity, which JSON does not have, at any depth."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line of JSON and flush it to disk, after ending a line that a crash cut off.

    Lines of several processes do not mix, as each is written by one call.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(descriptor, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write(to_json(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Lines:
    """The records of a file of JSON lines, and a sentence about each of the first lines that are damaged.

    damaged   the number of damaged lines; a last line without its end is none, as it may be being written
    """

    records: list[Record]
    damaged: int = 0
    problems: tuple[str, ...] = ()


def read_lines(path: Path, *, strict: bool = False, fits: Fits = anything) -> list[Record]:
    """Return the JSON objects of a file, one a line; empty where there is no file.

    Lines that are no whole object are left out, as the last one may be while it is being written or after a crash.
    strict   raise OSError for a file that is there but cannot be read, which is otherwise taken for empty
    fits     lines that do not fit are left out, too
    """
    return parse_lines(_read(path, LINES_BYTES, strict), fits).records


def scan_lines(path: Path, fits: Fits = anything, *, limit: int = LINES_BYTES) -> Lines:
    """Return the records of a file of JSON lines, and what is wrong with the others; none where there is no file.

    limit   of a longer file only so many bytes are read, the newest ones
    Raises OSError where the file is there and cannot be read.
    """
    try:
        content, left_out = read_tail(path, limit)
    except FileNotFoundError:
        return Lines([])
    if left_out:
        content = content[content.find(b"\n") + 1 :]
    return parse_lines(content, fits)


def parse_lines(content: bytes, fits: Fits = anything) -> Lines:
    """Return the records of a text of JSON lines, and what is wrong with the others."""
    records: list[Record] = []
    damaged, problems = 0, list[str]()
    *whole, rest = content.split(b"\n")
    for number, line in enumerate((*whole, rest), 1):
        try:
            records.append(parse_record(line, fits))
        except ValueError as error:
            if number > len(whole) or not line.strip():
                continue
            damaged += 1
            if damaged <= NAMED_AT_MOST:
                problems.append(f"line {number}: {error}")
    return Lines(records, damaged, tuple(problems))


def read_json(path: Path, *, strict: bool = False) -> Record:
    """Return the JSON object in a file; empty where there is no file, or no whole object in it.

    strict   as for `read_lines`
    """
    with suppress(ValueError):
        return parse_record(_read(path, RECORD_BYTES, strict))
    return {}


def read_yaml(path: Path) -> Record:
    """Return the mapping in a YAML file; empty where there is no file that can be read, or no mapping in it."""
    from trainlib.config.reading.yaml_source import read_file  # takes time, and `launch list` does without it

    with suppress(ConfigError):
        return read_file(path, path.name, links=False).values
    return {}


def parse_record(content: bytes, fits: Fits = anything) -> Record:
    """Return the JSON object in a text. Raises ValueError, in words, for anything else.

    Refused are also a name that is there twice, whole numbers of more than 64 bits, NaN and infinity, and values inside
    each other to more than MAX_DEPTH: nothing that this software writes, and what would break the one who reads it.
    """
    text = content.decode("utf-8", errors="replace")
    try:
        found = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no whole JSON ({error.msg})") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(found)
    if wrong := fits(found):
        raise ValueError(wrong)
    return found


def _read(path: Path, limit: int, strict: bool) -> bytes:
    """Return a file's bytes; none where there is no file."""
    try:
        return read_regular(path, limit)
    except FileNotFoundError:
        return b""
    except OSError:
        if strict:
            raise
        return b""


def _mapping(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS or not -(1 << 63) <= (value := int(text)) < 1 << 64:
        raise ValueError(f"a number of {len(text)} digits")
    return value


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number too large to hold")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text}, which JSON does not have")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, depth + 1)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_mapping, parse_int=_whole_number, parse_float=_float, parse_constant=_constant
)
