"""The members of a tar file, from its headers alone: POSIX (ustar and pax) and GNU archives, as tar programs write.

Python's tarfile would do, but holds as much of a hostile file in memory as its headers ask for, and may never end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trainlib.data.identity.stamp import Stamp
from trainlib.data.sources.packed.members import Archive, Member, open_archive, safe_name
from trainlib.errors import DataError

BLOCK = 512
MAX_HEADER = 1 << 20  # bytes of a long name, or of a pax header
MAX_PADDING = 1 << 20  # bytes after the end: tar programs fill a record, of 10 KiB by default

_REGULAR, _LINK, _FOLDER = (b"0", b"\0", b"7"), b"1", b"5"
_WITHOUT_BYTES = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL = b"L", b"K", b"x", b"g"


class _DamagedError(Exception):
    """What a tar file must not have; the message says what."""


def list_tar(path: Path) -> Archive:
    """Return the members of a tar file that is not compressed. Raises DataError where it is damaged or hostile."""
    descriptor = -1
    try:
        descriptor = open_archive(path)
        status = os.fstat(descriptor)
        archive = Archive(str(path), False, Stamp.of(status), {}, [])
        for name, kind, member in _headers(descriptor, status.st_size):
            _add(archive, safe_name(name, str(path)), kind, member)
    except (OSError, _DamagedError) as error:
        raise DataError(
            f"data.root: {path} cannot be read as a tar archive: {error}. Bring a whole copy of it, or pack it again"
        ) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return archive


def _add(archive: Archive, name: str, kind: bytes, member: Member) -> None:
    """Add a member; one of the same name takes the place of an earlier one, as in unpacking."""
    archive.members.pop(name, None)
    if kind in _REGULAR:
        archive.members[name] = member._replace(name=name)
    elif kind == _LINK and (target := archive.members.get(safe_name(member.name, archive.path))):
        archive.members[name] = target._replace(name=name)
    elif kind != _FOLDER:
        archive.left_out.append(name)


def _headers(descriptor: int, end: int) -> Iterator[tuple[str, bytes, Member]]:
    """Yield name, type and place of each member; for a hard link, the member's name is that of its target."""
    offset = 0
    given: dict[str, str] = {}
    for_all: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, BLOCK, offset)
        if len(header) < BLOCK:
            raise _DamagedError("it ends without the mark of its end: it was cut off")
        if not any(header):
            _check_padding(descriptor, offset, end)
            return
        _check(header, offset)
        kind, size = header[156:157], int(given.get("size", "") or _number(header[124:136]))
        if kind in _WITHOUT_BYTES:
            size = 0  # whatever the header says
        if not 0 <= size <= end - offset - BLOCK:
            raise _DamagedError(f"a member at byte {offset} has {size} bytes, which are not there: it was cut off")
        data, offset = offset + BLOCK, offset + BLOCK + -(-size // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL):
            if size > MAX_HEADER:
                raise _DamagedError(f"a header at byte {data - BLOCK} has {size} bytes, more than any name needs")
            content = os.pread(descriptor, size, data)
            if kind in (_PAX, _PAX_FOR_ALL):
                (given if kind == _PAX else for_all).update(_pax(content))
            else:
                given["path" if kind == _LONG_NAME else "linkpath"] = _text(content)
            continue
        values = for_all | given
        name = values.get("path") or _short_name(header)
        target = values.get("linkpath") or _text(header[157:257])
        if any(key.startswith("GNU.sparse.") for key in values):
            kind = b"S"  # its bytes do not lie in one piece
        yield name, kind, Member(target if kind == _LINK else name, data, size, size)
        given = {}


def _check(header: bytes, offset: int) -> None:
    """Raise _DamagedError where a header has not the checksum that it gives."""
    given = _number(header[148:156])
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != given:
        raise _DamagedError(f"there is no member's header at byte {offset}")


def _check_padding(descriptor: int, offset: int, end: int) -> None:
    """Raise _DamagedError where anything but zeros follows the end of the archive."""
    rest = os.pread(descriptor, MAX_PADDING, offset)
    if end - offset > MAX_PADDING or any(rest):
        raise _DamagedError(f"something follows its end at byte {offset}: are these several archives in one file?")


def _number(field: bytes) -> int:
    """Return a header's number: octal digits or, for large ones, GNU's binary form."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise _DamagedError(f"a header has {field!r} in the place of a number") from None


def _short_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _pax(content: bytes) -> dict[str, str]:
    """Return the records of a pax header: `<length> <key>=<value>` and a line's end each."""
    found, start = {}, 0
    while start < len(content):
        digits = content[start : start + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[start + len(digits) + 1 : start + length - 1]
        if length <= len(digits) + 1 or start + length > len(content) or b"=" not in record:
            raise _DamagedError("a pax header is not of pax's form")
        key, value = record.split(b"=", 1)
        found[_text(key)] = _text(value)
        start += length
    if "size" in found and not found["size"].isdecimal():
        raise _DamagedError(f"a pax header gives the size {found['size']!r}")
    return found
