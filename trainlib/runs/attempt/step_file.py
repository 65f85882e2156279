"""The last step that a rank has finished, in a small file of its launcher's that outlives the rank.

The launcher reads it after the rank was killed, to see if the run came further than before. Rows and checkpoints do not
tell: they come every some steps. The file is mapped into memory, so that a step costs no call of the system.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STEP_FILES = "TRAINLAUNCH_STEP_FILES"  # the folder, set by the launcher

_WRONG_DEVICE = "wrong-device.json"
_NUMBERS = struct.Struct("<qq")
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Steps:
    """How far a rank has come: the step from which it began to train, and the last one that it has finished."""

    begun_from: int
    finished: int


class StepFile:
    """The file of one rank, which it writes."""

    def __init__(self, folder: Path, rank: int, step: int):
        """Make the file; `step` is the one that the training begins from. Raises OSError where that fails."""
        descriptor = os.open(folder / f"step-{rank}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, _NUMBERS.pack(step, step))
            self._memory = mmap.mmap(descriptor, _NUMBERS.size)
        finally:
            os.close(descriptor)
        self._from_step = step

    def write(self, step: int) -> None:
        """Note that this many steps are done."""
        _NUMBERS.pack_into(self._memory, 0, self._from_step, step)

    def close(self) -> None:
        """Write no more; the file stays."""
        self._memory.close()


def report_wrong_device(rank: int | None, uuid: str | None, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the launcher which device computed wrongly: that of this rank, and its UUID if it is a GPU."""
    if (folder := environ.get(STEP_FILES)) and rank is not None:
        with suppress(OSError):
            (Path(folder) / _WRONG_DEVICE).write_text(json.dumps({"rank": rank, "uuid": uuid}))


def read_wrong_device(folder: Path | None) -> tuple[int | None, str | None]:
    """Return which device computed wrongly: its rank, and the UUID of a GPU, empty for another; None where unknown."""
    with suppress(OSError, ValueError):
        if folder is not None:
            found = json.loads((folder / _WRONG_DEVICE).read_text())
            return int(found["rank"]), str(found["uuid"] or "")
    return None, None


def read_step_files(folder: Path | None) -> dict[int, Steps]:
    """Return how far each rank has come, by its number, of those that have begun to train."""
    found = {}
    with suppress(OSError):
        for path in folder.iterdir() if folder else ():
            if name := _NAME.fullmatch(path.name):
                content = path.read_bytes()
                if len(content) == _NUMBERS.size:
                    found[int(name[1])] = Steps(*_NUMBERS.unpack(content))
    return found
