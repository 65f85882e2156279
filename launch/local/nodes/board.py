"""The files through which machines meet: one of each machine, and the numbered entries that all of them obey."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launch.local.nodes.board_records import BoardEntry, Member, entry_from, member_from, to_text
from trainlib.platform.regular_files import read_regular

_MOST_BYTES = 1 << 20
_KEPT = 3  # entries; a machine that was frozen for longer sees that it is not in the newest
_NAME = re.compile(r"entry-(\d{8})\.json")


class Board:
    """The folder of a run, beside its run directory: `runs/.nodes/NAME`. What a reader sees in it is whole."""

    def __init__(self, directory: Path):
        """directory: of the run; the folder is not in it, as `--fresh` moves it aside."""
        self.folder = directory.parent / ".nodes" / directory.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def write_member(self, member: Member) -> None:
        """Replace a machine's own file. Raises OSError where that cannot be written."""
        _replace(self.folder / f"member-{member.id}.json", to_text(member))

    def remove_member(self, name: str) -> None:
        """Remove a machine's file: it takes part no more."""
        with suppress(OSError):
            (self.folder / f"member-{name}.json").unlink()

    def members(self) -> dict[str, Member]:
        """Return all machines that have a file, dead or alive, by id."""
        found = (member_from(_text(path)) for path in self.folder.glob("member-*.json"))
        return {member.id: member for member in found if member is not None}

    def newest(self) -> BoardEntry | None:
        """Return the entry of the highest number; None before the first. Raises OSError where it cannot be read."""
        numbers = self._numbers()
        if not numbers:
            return None
        entry = entry_from(_text(self._path(numbers[-1])))
        if entry is None:
            raise OSError(f"{self._path(numbers[-1])}: damaged")
        return entry

    def add(self, entry: BoardEntry) -> bool:
        """Make this the newest entry; return False where another machine was faster: there is one of each number."""
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        temporary.write_text(to_text(entry))
        try:
            os.link(temporary, self._path(entry.number))  # fails where the name exists, also on NFS
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        for number in self._numbers()[:-_KEPT]:
            with suppress(OSError):
                self._path(number).unlink()
                self._mark(number).unlink()
        return True

    def mark_regrouping(self, number: int) -> None:
        """Note that those who train by an entry are asked to stop, to go on with more machines."""
        self._mark(number).touch()

    def is_regrouping(self, number: int) -> bool:
        """Return True if they were."""
        return self._mark(number).exists()

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for name in os.listdir(self.folder) if (found := _NAME.fullmatch(name)))

    def _path(self, number: int) -> Path:
        return self.folder / f"entry-{number:08d}.json"

    def _mark(self, number: int) -> Path:
        return self.folder / f"regroup-{number:08d}"


def with_beat(member: Member) -> Member:
    """Return the same member, a heartbeat later."""
    return replace(member, beat=member.beat + 1)


def _replace(path: Path, text: str) -> None:
    """Replace a file at once, without waiting for the disk: after a power cut nobody needs it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _text(path: Path) -> str:
    with suppress(OSError):
        return read_regular(path, _MOST_BYTES).decode(errors="replace")
    return ""
