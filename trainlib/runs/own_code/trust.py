"""The list of code that the user has named on a command line, and so trusts: one file of the user's own.

Each line is a SHA-256 and the name of the code, as `sha256sum` writes them. No run directory holds such a list, as it
may come from somebody else.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from trainlib.errors import UserError
from trainlib.platform.regular_files import open_regular

logger = logging.getLogger("trainlib")

MAX_BYTES = 16 << 20


def trust_file() -> Path:
    """Return $TRAINLAUNCH_TRUSTED_CODE or, by the XDG specification, trainlaunch/trusted-code in the user's folder."""
    if own := os.environ.get("TRAINLAUNCH_TRUSTED_CODE"):
        return Path(os.path.expanduser(own)).absolute()
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if folder.startswith("~"):
        raise UserError(
            "there is no place for the list of trusted code, as this user has no home directory: set HOME, or "
            "TRAINLAUNCH_TRUSTED_CODE to a file"
        )
    return Path(folder).absolute() / "trainlaunch" / "trusted-code"


def trust(code: Mapping[str, str]) -> None:
    """Add code, its SHA-256 by name, to the list. Where that cannot be written, a warning says what follows."""
    try:
        known = _lines()
        new = [line for name, digest in code.items() if (line := _line(name, digest)) not in known]
        if not new:
            return
        file = trust_file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = open_regular(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if os.fstat(descriptor).st_size == 0:
                os.fchmod(descriptor, 0o600)
            os.write(descriptor, "".join(f"{line}\n" for line in new).encode())  # at once: others append, too
        finally:
            os.close(descriptor)
    except (OSError, UserError) as error:
        logger.warning("the code is not remembered as trusted, so that later commands need --code, too: %s", error)


def is_trusted(name: str, digest: str) -> bool:
    """Return True if this code was named on a command line before."""
    return _line(name, digest) in _lines()


def _line(name: str, digest: str) -> str:
    return f"{digest}  {name}"


def _lines() -> set[str]:
    """Return the lines of the list; none where it is missing, or where others than the user can write to it."""
    try:
        descriptor = open_regular(trust_file())
    except (OSError, UserError):
        return set()
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            logger.warning("%s is not believed, as others can write to it: chmod 600 it, and look at it", trust_file())
            return set()
        return set(file.read(MAX_BYTES).decode("utf-8", "replace").splitlines())
