"""Writing of the page to disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from trainlib.errors import UserError
from trainlib.runs.files.durable import write_atomically


def write_page(path: Path, text: str) -> None:
    """Replace a page, so that a browser sees the old one or the new one; UserError where it cannot be written."""
    try:
        write_atomically(path, text.encode(errors="replace"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that can be written with --output") from error
