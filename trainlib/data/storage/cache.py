"""The cache of decoded images on disk: decoded once, then memory-mapped by every process of every later run.

An entry is two files, each written under a temporary name and renamed: `<key>.npy` (uint8 [N, 3, S, S]) and
`<key>.json`: the array's own SHA-256, mean and std, and for each image file its SHA-256 and the stamp (see `Stamp`)
under which it was read. A file whose stamp has changed since is read again, and decoded again if its bytes are others.
The files of the cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch

from trainlib.data.dataset import PerChannel, channel_statistics
from trainlib.data.identity.stamp import Stamp
from trainlib.data.images import Images, InMemoryImages, StreamedImages
from trainlib.data.pictures.decode_files import decode_files
from trainlib.data.pictures.failures import damaged_images
from trainlib.data.pictures.files import PictureFiles, SomeFiles
from trainlib.data.pictures.reader import PictureReader
from trainlib.data.pictures.threads import decoding_threads
from trainlib.data.storage.entry import CacheEntry, Decoded
from trainlib.errors import DataError
from trainlib.runs.files.locks import exclusive_lock
from trainlib.runs.machine.limits import available_memory

FORMAT = 2
DECODED_ANEW = "Training images are others than those of evaluation: pictures are decoded anew for each batch."
MAX_FRACTION = 0.5  # of the available memory and of the free disk that decoded images may take

logger = logging.getLogger("trainlib.data")


@dataclass(frozen=True)
class DecodedImages:
    """Training and test images, and mean and standard deviation of the training images' channels, on a 0..1 scale.

    hashes   the SHA-256 of each file's bytes, training before test; None where it was not read as a whole
    """

    train: Images
    test: Images
    mean: PerChannel
    std: PerChannel
    hashes: list[str | None]


def load_decoded(
    files: PictureFiles,
    stamps: Sequence[Stamp],
    num_train: int,
    reader: PictureReader,
    *,
    verify: bool = False,
    stop_requested: Callable[[], bool],
    is_main: bool,
) -> DecodedImages:
    """Return the files' images, as `reader` makes them, from the cache.

    If the cache lacks them, the first process that holds the lock decodes them into it, and the others wait. Images
    that would take too much memory or disk are decoded again for every batch instead (`StreamedImages`).

    stamps      what the file system says of each file now
    num_train   how many of the files are for training; the others, behind them, are the test split
    verify      read every file again, also where its stamp is the one that it was read under

    Raises DataError for damaged images and for a cache that cannot be written, StoppedError when asked to stop.
    """
    folder = cache_folder()
    entry = CacheEntry(folder / _key(files, stamps, reader), (len(files), *reader.shape()))
    is_streamed = not reader.is_fixed or not _fits(entry.shape, folder)
    found = entry.read(files, stamps, verify=verify)
    if found is None or (found.images_NCHW is None and not is_streamed):
        # Rank 0 goes first where it can, since it is the one that shows progress.
        with _locked(entry.lock_path, stop_requested, delay=0.0 if is_main else 1.0):
            found = entry.read(files, stamps, verify=False)
            if found is None or (found.images_NCHW is None and not is_streamed):
                hashes: list[str | None] = [None] * len(files)
                if not is_streamed:
                    hashes = _decode(files, entry, reader, stop_requested, is_main)
                images_NCHW = None if is_streamed else entry.open_array()
                mean, std = channel_statistics(_images(images_NCHW, files, num_train, reader, stop_requested)[0])
                found = Decoded(images_NCHW, mean, std, hashes)
                entry.write(stamps, found)
    # What is kept are images of evaluation, also of an earlier run whose training images were the same.
    kept_NCHW = found.images_NCHW if reader.is_fixed else None
    if is_main and kept_NCHW is None:
        logger.info("%s", _why_streamed(entry.shape, folder) if reader.is_fixed else DECODED_ANEW)
    train_images, test_images = _images(kept_NCHW, files, num_train, reader, stop_requested)
    return DecodedImages(train_images, test_images, found.mean, found.std, found.hashes)


def cache_folder() -> Path:
    """Return $TRAINLAUNCH_CACHE or, by the XDG base directory specification, trainlaunch in the user's cache folder."""
    if own := os.environ.get("TRAINLAUNCH_CACHE"):
        return Path(os.path.expanduser(own)).absolute()
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise DataError(
            "There is no folder for decoded images, as this user has no home directory: set the environment variable "
            "HOME, or TRAINLAUNCH_CACHE to a folder on a disk with room."
        )
    return Path(folder).absolute() / "trainlaunch"


def _key(files: PictureFiles, stamps: Sequence[Stamp], reader: PictureReader) -> str:
    versions = f"{PIL.__version__} {torch.__version__} {version('torchvision')}"
    digest = hashlib.sha256(f"{FORMAT} {reader.key} {versions} {len(files)}".encode())
    for index, stamp in enumerate(stamps):
        digest.update(f"\0{files.describe(index)}\0{stamp.size}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


@contextmanager
def _locked(path: Path, stop_requested: Callable[[], bool], delay: float) -> Iterator[None]:
    """Hold the entry's lock; turn a failure to write the entry into a DataError that names the fix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path, stop_requested=stop_requested, delay=delay):
            yield
    except OSError as error:
        raise DataError(
            f"The cache of decoded images cannot be written: {error}. "
            f"Set the environment variable TRAINLAUNCH_CACHE to a folder on a disk with room."
        ) from error


def _images(
    images_NCHW: np.ndarray | None,
    files: PictureFiles,
    num_train: int,
    reader: PictureReader,
    stop_requested: Callable[[], bool],
) -> tuple[Images, Images]:
    if images_NCHW is None:
        splits = SomeFiles(files, range(num_train)), SomeFiles(files, range(num_train, len(files)))
        return StreamedImages(splits[0], reader, stop_requested), StreamedImages(splits[1], reader, stop_requested)
    tensor = torch.from_numpy(images_NCHW)
    return InMemoryImages(tensor[:num_train]), InMemoryImages(tensor[num_train:])


def _fits(shape: tuple[int, ...], folder: Path) -> bool:
    """Return True if decoded images of this shape leave enough memory and disk to others."""
    return _size(shape) <= min(_room(folder)) * MAX_FRACTION


def _why_streamed(shape: tuple[int, ...], folder: Path) -> str:
    memory, disk = _room(folder)
    return (
        f"Decoded, the images would take {_size(shape) / 1e9:.1f} GB, more than {MAX_FRACTION:.0%} of the "
        f"{memory / 1e9:.1f} GB of available memory or of the {disk / 1e9:.1f} GB free in {folder}: they are "
        "decoded anew for each batch, which is slower."
    )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _room(folder: Path) -> tuple[int, int]:
    """Return the available memory and the free disk where the cache is, in bytes."""
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    return available_memory(), shutil.disk_usage(there).free


def _decode(
    files: PictureFiles, entry: CacheEntry, reader: PictureReader, stop_requested: Callable[[], bool], is_main: bool
) -> list[str | None]:
    """Decode all files into the entry's array, which gets its name only once it is complete and on disk.

    Returns the SHA-256 of each file's bytes.
    """
    partial = entry.array_path.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # a link there must not lead the writing elsewhere
    try:
        _reserve(partial, entry.shape)
        with _progress(len(files), show_bar=is_main and sys.stderr.isatty()) as advance:
            hashes, failures = decode_files(files, partial, reader, stop_requested=stop_requested, advance=advance)
        if failures:
            raise damaged_images(failures)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(entry.array_path)
        return hashes
    finally:
        partial.unlink(missing_ok=True)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Create an .npy file with all its disk blocks, so that a full disk fails here, not as SIGBUS in a mapped write."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def _progress(total: int, show_bar: bool) -> Iterator[Callable[[int], None]]:
    """Show progress; yield a function to be called with the number of images just decoded."""
    if show_bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("Decoding images, once"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)
        return
    start = time.monotonic()
    logger.info("Decoding %d images, once, in %d threads ...", total, decoding_threads())
    yield lambda count: None
    logger.info("Decoded %d images in %.1f s.", total, time.monotonic() - start)
