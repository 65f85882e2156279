"""Opening of files that a stranger may have made: regular files only, without waiting, and through no link.

A pipe makes its reader wait for ever, a device does what its driver does, a link leads to somebody else's file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
_NEVER_WAIT = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_regular(path: Path, flags: int = os.O_RDONLY, *, within: Path | None = None) -> int:
    """Open a regular file as `os.open` does, and return its descriptor.

    within   the folder from which on no part of the path may be a link; by default the file's own folder

    Raises OSError, at once, for anything that is no regular file.
    """
    folder, parents, name = path.parent, [], path.name
    if within is not None and within != folder:
        folder, parents = within, list(path.parent.relative_to(within).parts)
    at = os.open(folder, _FOLDER)
    try:
        for parent in parents:
            inner = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        try:
            _require_regular(os.stat(name, dir_fd=at, follow_symlinks=False), path)  # to open a device can do harm
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        descriptor = os.open(name, flags | _NEVER_WAIT, 0o666, dir_fd=at)
    finally:
        os.close(at)
    try:
        _require_regular(os.fstat(descriptor), path)  # it may be another file by now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, limit: int, *, within: Path | None = None) -> bytes:
    """Return the contents of a regular file. Raises OSError also for one of more than `limit` bytes.

    within   as for `open_regular`
    """
    content, left_out = read_tail(path, limit, within=within)
    if left_out:
        raise OSError(errno.EFBIG, f"has more than the {limit:,} bytes that are read of such a file", str(path))
    return content


def read_tail(path: Path, limit: int, *, within: Path | None = None) -> tuple[bytes, int]:
    """Return the last `limit` bytes of a regular file, all where it has fewer, and the number of bytes before them."""
    descriptor = open_regular(path, within=within)
    try:
        size = os.fstat(descriptor).st_size
        left_out = at = max(0, size - limit)
        pieces = list[bytes]()
        while at < size and (piece := os.pread(descriptor, size - at, at)):  # a list of runs reads thousands of files
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces), left_out
    finally:
        os.close(descriptor)


def _require_regular(status: os.stat_result, path: Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "no file")
        code = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(code, f"is {what}, must be a regular file", str(path))
