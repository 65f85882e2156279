"""The secret of a run on several machines, in a file that only its user may read.

A machine that knows it has access to the run directory, so it may take part. It never stands on a command line, in an
environment variable or in a log.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from trainlib.errors import RunDirectoryError, not_written

FILE = ".secret"
_BYTES = 32


def secret_file(directory: Path) -> Path:
    """Return the path of the secret of a run directory."""
    return directory / FILE


def make_secret(directory: Path) -> bool:
    """Make the secret of a run directory, and the directory, where they are missing; return True if it was made.

    Raises RunDirectoryError where that cannot be written, or others may read it.
    """
    path = secret_file(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if is_new := read_secret(directory) is None:
            path.unlink(missing_ok=True)  # a link, or what a crash has cut off
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(_BYTES) + "\n")
                file.flush()
                os.fsync(descriptor)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise RunDirectoryError(not_written(path, error)) from error
    return is_new


def read_secret(directory: Path) -> bytes | None:
    """Return the secret of a run directory; None where there is no whole one in a regular file."""
    with suppress(OSError, ValueError):
        descriptor = os.open(secret_file(directory), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                secret = bytes.fromhex(file.read(1024).decode("ascii"))
                return secret if len(secret) == _BYTES else None
    return None


def forget_unused(directory: Path, *, is_refused: bool = False) -> None:
    """Remove a run directory that holds nothing but its secret: nothing was started in it.

    is_refused   remove the secret alone from one that holds more: it was made for a start that was refused
    """
    with suppress(OSError):
        is_empty = os.listdir(directory) == [FILE]
        if is_empty or is_refused:
            secret_file(directory).unlink()
        if is_empty:
            directory.rmdir()
