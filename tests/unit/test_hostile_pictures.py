"""Pictures made to do harm: nothing but decoders of pixels runs, and none takes much memory, waits or hangs."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainlib.data.decoding import decode, pool
from trainlib.data.decoding.decode import MAX_PIXELS, decode_rows
from trainlib.data.decoding.pool import decode_files
from trainlib.errors import DataError, StoppedError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size; what follows its header is never asked for."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def failure_of(path: Path) -> str:
    """Why a file is not decoded."""
    rows = np.zeros((1, 3, 16, 16), np.uint8)
    _, ((_, reason),) = decode_rows(rows, 0, [str(path)])
    return reason


def saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICNS", "XBM", "PCX", "TGA"])
def test_only_named_formats_are_decoded_whatever_the_name(tmp_path: Path, form: str) -> None:
    picture = Image.new("1" if form == "XBM" else "RGB", (32, 32))
    (tmp_path / "photo.jpg").write_bytes(POSTSCRIPT if form == "EPS" else saved(picture, form))
    assert "no whole picture of a format that is read" in failure_of(tmp_path / "photo.jpg")


def test_nothing_is_started_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    (tmp_path / "photo.png").write_bytes(POSTSCRIPT)
    assert failure_of(tmp_path / "photo.png")
    assert not started


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (13_300, 13_300), (1, 100_000_000), (65_000, 65_000)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_takes_memory(
    tmp_path: Path, width: int, height: int
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_size(width, height))
    reason = failure_of(tmp_path / "bomb.png")
    assert "pixels" in reason or "decompression bomb" in reason


@pytest.mark.parametrize(("width", "height"), [(1, 3_000_000), (3_000_000, 1)])
def test_a_long_thin_picture_is_refused_where_scaling_it_would_take_memory(width: int, height: int) -> None:
    assert width * height < MAX_PIXELS
    with pytest.raises(ValueError, match="too long for its width"):
        decode.decode_image(io.BytesIO(png_of_size(width, height)), 224)


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(bytes(1001))
    assert "MB" in failure_of(tmp_path / "big.png")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "photo.png")
    assert failure_of(tmp_path / "photo.png")


def test_a_link_to_a_picture_is_one(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "real.png")
    (tmp_path / "photo.png").symlink_to(tmp_path / "real.png")
    assert decode_rows(np.zeros((1, 3, 16, 16), np.uint8), 0, [str(tmp_path / "photo.png")])[1] == []


ENDLESS = f"""
import runpy, sys
decode = runpy.run_path({decode.__file__!r})
scope = decode["main"].__globals__
def endless(*_):
    import re
    re.match("(a+)+b", "a" * 64)  # in C, which heeds no signal of Python's
scope["decode_image"] = endless
scope["PICTURE_SECONDS"] = LIMIT
decode["main"]()
"""


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of pictures whose decoding never ends, in a worker's C code."""
    (tmp_path / "endless.py").write_text(ENDLESS.replace("LIMIT", "60.0"))
    monkeypatch.setattr(decode, "__file__", str(tmp_path / "endless.py"))
    (tmp_path / "a.png").write_bytes(b"x")
    np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(1, 3, 16, 16))
    return [str(tmp_path / "a.png")]


def test_a_stop_ends_a_decode_that_does_not_return(tmp_path: Path, endless: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(StoppedError):
        decode_files(
            endless,
            tmp_path / "images.npy",
            stop_requested=lambda: time.monotonic() > began + 1,
            advance=lambda count: None,
        )


def test_a_picture_may_take_so_much_time(tmp_path: Path, endless: list[str]) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS.replace("LIMIT", "0.2"))
    with pytest.raises(DataError, match=r"a\.png.* took more than .* s"):
        decode_files(endless, tmp_path / "images.npy", stop_requested=lambda: False, advance=lambda count: None)


def test_the_process_that_trains_decodes_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pictures there are: a decoder that does not return would make it deaf to signals."""
    monkeypatch.setattr(decode, "decode_rows", lambda *_: pytest.fail("decoded here"))
    monkeypatch.setattr(pool, "decoding_processes", lambda: 1)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    array = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(1, 3, 16, 16))
    hashes, failures = decode_files(
        [str(tmp_path / "a.png")], tmp_path / "images.npy", stop_requested=lambda: False, advance=lambda count: None
    )
    assert hashes[0]
    assert not failures
    assert array[0, 0].min() == 255


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))
    Path(path).write_bytes(b"x")
    text = str(pool.damaged_images([(path, "broken")]))
    assert r"caf\xe9.png: broken" in text
    text.encode()
