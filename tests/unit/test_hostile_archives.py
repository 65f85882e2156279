"""Archives that somebody made to do harm, or that are damaged: refused, and never read outside of themselves."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from archives import zipped
from class_folders import save_classes

from trainlib.data.sources.packed.archive import list_archive
from trainlib.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_classes(tmp_path / "photos", {"cat": 3, "dog": 4})


def header(name: str, size: int = 0, kind: bytes = b"0", link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def huge_size(value: bytes) -> bytes:
    """A header whose size field is this, with the right checksum."""
    block = bytearray(header("train/cat/1.png"))
    block[124:136] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("../../etc/passwd.png") + END, "leads out of the archive"),
        (header("/etc/passwd.png") + END, "leads out of the archive"),
        (header("train/cat/1.png", 10**9) + END, "1000000000 bytes, which are not there: it was cut off"),
        (huge_size(b"\xff" * 12) + END, "which are not there"),
        (huge_size(b"\x80" + b"\xff" * 11) + END, "which are not there"),
        (huge_size(b"zzzzzzzzzzz\0") + END, "in the place of a number"),
        (header("x", 1 << 21, b"L") + bytes(1 << 21) + END, "more than any name needs"),
        (header("x", 512, b"x") + b"9999 path=a\n".ljust(512, b"\0") + END, "not of pax's form"),
        (header("x", 512, b"x") + b"0 path=a\n".ljust(512, b"\0") + END, "not of pax's form"),
        (header("train/cat/1.png"), "without the mark of its end"),
        (header("./") + END, "holds no folders of pictures"),
        (b"", "without the mark of its end"),
        (b"0" * 1024, "no member's header at byte 0"),
        (b"no tar" * 200, "in the place of a number"),
        (header("a") + END + header("b") + END, "something follows its end"),
        (b"\x1f\x8b" + bytes(600), r"compressed as a whole .gzip.*launch pack"),
        (b"(\xb5/\xfd" + bytes(600), "compressed as a whole .zstd"),
        (b"PK\3\4" + bytes(600), "cannot be read as a zip archive"),
    ],
)
def test_a_hostile_or_damaged_archive_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_archive(tmp_path / "a.tar")


def test_a_hard_link_to_what_is_not_in_the_archive(tmp_path: Path) -> None:
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    blocks = b"".join(header(name) for name in names)
    (tmp_path / "a.tar").write_bytes(blocks + header("train/cat/9.png", kind=b"1", link="train/cat/none.png") + END)
    assert len(list_archive(tmp_path / "a.tar")) == 4


@pytest.mark.parametrize("lie", ["size", "crc", "bomb", "header"])
def test_a_zip_that_lies_is_told_when_it_is_read(folder: Path, tmp_path: Path, lie: str) -> None:
    method = zipfile.ZIP_DEFLATED
    path = zipped(folder, tmp_path / "a.zip", method=method)
    if lie == "bomb":
        with zipfile.ZipFile(path, "a", method) as file:
            file.writestr("cat/zzz.png", bytes(1 << 20))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2", 0, content.rindex(b"cat/zzz.png") if lie == "bomb" else None)
    if lie == "header":
        local = int.from_bytes(content[place + 42 : place + 46], "little")
        content[local : local + 4] = b"XXXX"
    else:
        field = {"size": 24, "crc": 16, "bomb": 24}[lie]
        content[place + field : place + field + 4] = (5).to_bytes(4, "little")
    path.write_bytes(content)
    found = list_archive(path)
    broken = []
    for index in range(len(found)):
        try:
            found.files.read(index)
        except ValueError as error:
            broken.append(str(error))
    assert len(broken) == 1


def test_encrypted_and_oddly_compressed_zips_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compressed by method 14"):
        list_archive(zipped(folder, tmp_path / "a.zip", method=zipfile.ZIP_LZMA))
