"""Pictures made to do harm: nothing but decoders of pixels runs, and none takes much memory, waits or hangs."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import decode_all
from PIL import Image

from trainlib.config import DataConfig
from trainlib.data.datasets.images import StreamedImages
from trainlib.data.pictures import files as of_files
from trainlib.data.pictures.decoding import reader as of_reader
from trainlib.data.pictures.decoding import threads
from trainlib.data.pictures.decoding.decode import MAX_PIXELS, decode_picture
from trainlib.data.pictures.decoding.decode_some import decode_some
from trainlib.data.pictures.decoding.failures import damaged_images
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.errors import DataError, StoppedError

READER = PictureReader.of(DataConfig(image_size=16))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size; what follows its header is never asked for."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def failure_of(path: Path) -> str:
    """Why a file is not decoded."""
    _, failures = decode_some(PlainFiles([str(path)]), [0], READER)
    return failures.get(0, "")


def saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICNS", "XBM", "PCX", "TGA", "JPEG2000"])
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
    pixels = np.zeros((height, width), np.uint8)
    with pytest.raises(ValueError, match="too long for its width"):
        PictureReader.of(DataConfig(image_size=224))(saved(Image.fromarray(pixels), "PNG"))


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_files, "MAX_BYTES", 1000)
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
    assert not failure_of(tmp_path / "photo.png")


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainFiles]:
    """Pictures, of which one is not decoded before the test is over. Its thread takes processor time up to then."""
    is_over = threading.Event()

    def endless(*_: object, **__: object) -> torch.Tensor:
        while not is_over.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000)  # in C, as decoders are
        raise ValueError("the test is over")

    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads, "_left_alone", [])
    monkeypatch.setattr(of_reader, "decode_picture", endless)
    (tmp_path / "a.png").write_bytes(b"x")
    yield PlainFiles([str(tmp_path / "a.png")])
    assert not threads.are_decoders_idle()  # so that the process is to end without them
    is_over.set()


def test_a_stop_ends_the_wait_for_a_decoder_that_does_not_return(tmp_path: Path, hanging: PlainFiles) -> None:
    began = time.monotonic()
    with pytest.raises(StoppedError):
        decode_all(hanging, READER, lambda: time.monotonic() > began + 1)
    assert time.monotonic() < began + 5


def test_a_stop_ends_a_training_that_waits_for_such_a_picture(
    hanging: PlainFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though not at once, as the step that is under way is to be finished."""
    monkeypatch.setattr("trainlib.data.datasets.images.STOP_SECONDS", 0.5)
    began = time.monotonic()
    images = StreamedImages(hanging, READER, lambda: time.monotonic() > began + 0.3)
    with pytest.raises(StoppedError):
        next(images.batches([torch.tensor([0])]))
    assert began + 0.8 <= time.monotonic() < began + 5


def test_a_picture_that_takes_too_long_is_named_and_others_go_on(
    tmp_path: Path, hanging: PlainFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "PICTURE_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"a\.png took more than .* s"):
        decode_all(hanging, READER)
    monkeypatch.undo()
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    assert not failure_of(tmp_path / "b.png")
    monkeypatch.setattr(threads, "_left_alone", [threading.main_thread()])
    monkeypatch.setattr(threading.main_thread(), "picture", "a.png", raising=False)


def test_a_picture_that_waits_for_its_bytes_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PICTURE_SECONDS", 0.1)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    read = PlainFiles.read

    def slowly(self: PlainFiles, index: int) -> bytes:
        time.sleep(0.7)
        return read(self, index)

    monkeypatch.setattr(PlainFiles, "read", slowly)
    images_NCHW, hashes, failures = decode_all(PlainFiles([str(tmp_path / "a.png")]), READER)
    assert hashes[0]
    assert not failures
    assert images_NCHW[0, 0].min() == 255


def test_the_thread_that_trains_decodes_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pictures there are: a decoder that does not return would make it deaf to signals."""
    names: list[str] = []
    real = decode_picture

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        names.append(threading.current_thread().name)
        return real(*args, **options)

    monkeypatch.setattr(of_reader, "decode_picture", noted)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    assert not failure_of(tmp_path / "a.png")
    assert all(name.startswith("decoder-") for name in names)
    assert len(names) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_threads_of_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    assert not failure_of(tmp_path / "a.png")
    child = os.fork()
    if not child:
        os._exit(bool(failure_of(tmp_path / "a.png")))
    assert os.waitpid(child, 0)[1] == 0


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))
    Path(path).write_bytes(b"x")
    text = str(damaged_images([(path, "broken")]))
    assert r"caf\xe9.png: broken" in text
    text.encode()
