"""Writing of the page to disk, whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from trainlib.errors import UserError


def write_page(path: Path, text: str) -> None:
    """Replace a page, so that a browser sees the old one or the new one; UserError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: {error.strerror}; name a file that can be written with --output") from error
