"""Which files of a run its mirror holds, and how they are told apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainlib.runs.attempt.record import ATTEMPTS_FILE
from trainlib.runs.files.json_records import Record, parse_lines
from trainlib.runs.own_code.sources import FOLDER as OWN_CODE
from trainlib.runs.records.checkpoints import PREFIX, name_of
from trainlib.runs.records.rows import METRICS_FILE
from trainlib.runs.records.shapes import ATTEMPT

MANIFEST = "manifest.json"
# In the order in which they are copied: what a run is first, its rows and its end last.
RECORDS = (
    "config.yaml",
    "environment.json",
    "data.jsonl",
    "content-*.jsonl",
    "evaluation-*.json",
    "health.jsonl",
    METRICS_FILE,
    ATTEMPTS_FILE,
    "summary.json",
)
_PASSING = ("summary.json", "evaluation-*.json", "content-*.jsonl")  # which a new attempt may remove
_CHECKPOINT = re.compile(rf"checkpoints/{PREFIX}(\d{{8,}})/([\w.]+)")
_OWN_CODE = re.compile(rf"{OWN_CODE}(/[^/\\]+)+")


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name).replace(r"\*", r"[\w-]+") for name in patterns))


_IS_RECORD, _IS_PASSING = _any_of(RECORDS), _any_of(_PASSING)


def records_in(run: Path) -> list[str]:
    """Return the names of the files beside the checkpoints that the mirror is to hold."""
    found = [path.name for pattern in RECORDS for path in sorted(run.glob(pattern)) if _is_plain(path)]
    code = sorted(path for path in (run / OWN_CODE).rglob("*") if _is_plain(path) and "__pycache__" not in path.parts)
    return [path.relative_to(run).as_posix() for path in code] + found


def is_record(name: str) -> bool:
    """Return True for a file beside the checkpoints that a run goes on with; its name leads nowhere else."""
    if _IS_RECORD.fullmatch(name):
        return True
    return _OWN_CODE.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def may_be_removed(name: str) -> bool:
    """Return True for a record that a new attempt may remove; any other is missing only where a directory is lost."""
    return _IS_PASSING.fullmatch(name) is not None


def checkpoint_files(names: Iterable[str]) -> dict[int, set[str]]:
    """Return the files of each checkpoint among the names of a mirror's files, by step, ascending."""
    found: dict[int, set[str]] = {}
    for name in names:
        if (match := _CHECKPOINT.fullmatch(name)) and name_of(int(match[1])) == name.split("/")[1]:
            found.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(found.items()))


def place_of(step: int, file: str) -> str:
    """Return the name of a checkpoint's file in the run."""
    return f"checkpoints/{name_of(step)}/{file}"


def starts(attempts: bytes) -> list[Record]:
    """Return the lines with which attempts began, of the text of an attempts.jsonl."""
    return [line for line in parse_lines(attempts, ATTEMPT).records if line.get("event") == "start"]


def files_of(manifest: Mapping[str, object]) -> dict[str, dict[str, int | str]]:
    """Return size and SHA-256 of each file of a checkpoint, as its manifest says. ValueError where it says nothing."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise ValueError("its manifest names no files")
    if wrong := [name for name in files if not re.fullmatch(r"[\w][\w.]*", name) or name == MANIFEST]:
        raise ValueError(f"its manifest names a file {wrong[0]!r}")
    return {name: {"size": facts.get("size"), "sha256": facts.get("sha256")} for name, facts in files.items()}


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
