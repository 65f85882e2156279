"""The members of a zip file, from its directory: stored ones, and those deflated, which are inflated when read."""

from __future__ import annotations

import os
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

from trainlib.data.identity.stamp import Stamp
from trainlib.data.sources.packed.members import DEFLATED, STORED, Archive, Member, open_archive, safe_name
from trainlib.errors import DataError

_ENCRYPTED, _UTF8 = 1, 0x800  # of flag_bits
_OF_DOS = 0  # of create_system: Windows too


def list_zip(path: Path) -> Archive:
    """Return the members of a zip file. Raises DataError where it is damaged, encrypted or of another compression."""
    try:
        with os.fdopen(open_archive(path), "rb") as file:
            archive = Archive(str(path), True, Stamp.of(os.fstat(file.fileno())), {}, [])
            with zipfile.ZipFile(file) as directory:
                for info in directory.infolist():
                    _add(archive, info)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"data.root: {path} cannot be read as a zip archive: {error}. Bring a whole copy of it, or pack it again"
        ) from error
    return archive


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name. Some programs do not say that it is UTF-8, and some of Windows write backslashes."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system == _OF_DOS else name


def _add(archive: Archive, info: zipfile.ZipInfo) -> None:
    """Add a member; one of the same name takes the place of an earlier one, as in unpacking."""
    name = _name(info)
    if name.endswith("/"):
        return
    name = safe_name(name, archive.path)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        archive.left_out.append(name)
        return
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (STORED, DEFLATED):
        how = "encrypted" if info.flag_bits & _ENCRYPTED else f"compressed by method {info.compress_type}"
        raise DataError(
            f"data.root: {archive.path} holds {name}, which is {how}: members that are stored or deflated can be read. "
            "Unpack it, or pack it again"
        )
    if not 0 <= info.header_offset <= archive.stamp.size - info.compress_size:
        raise zipfile.BadZipFile(f"{name} does not lie in the archive")
    member = Member(name, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
    archive.members[name] = member
