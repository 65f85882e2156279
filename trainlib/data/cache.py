"""The cache of decoded images on disk: decoded once, then memory-mapped by every process of every later run.

An entry is two files, `<key>.npy` (uint8 [N, 3, S, S]) and `<key>.json` (mean and std), each written under a temporary
name and renamed. The key is a hash of all that decides the bits. The files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import psutil
import torch

from trainlib.data.dataset import PerChannel, channel_statistics
from trainlib.data.decoding.pool import available_cores, damaged_images, decode_files
from trainlib.data.images import Images, InMemoryImages, StreamedImages
from trainlib.errors import DataError
from trainlib.runs.locks import exclusive_lock

FORMAT = 1
MAX_FRACTION = 0.5  # of the available memory and of the free disk that decoded images may take

logger = logging.getLogger("trainlib.data")


@dataclass(frozen=True)
class ImageFile:
    """An image file: absolute path, size in bytes, and time of its last change in nanoseconds since 1970."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class DecodedImages:
    """Training and test images, and mean and standard deviation of the training images' channels, on a 0..1 scale."""

    train: Images
    test: Images
    mean: PerChannel
    std: PerChannel


def load_decoded(
    train: Sequence[ImageFile],
    test: Sequence[ImageFile],
    image_size: int,
    *,
    stop_requested: Callable[[], bool],
    is_main: bool,
) -> DecodedImages:
    """Return the files' images, square with `image_size` pixels a side, from the cache.

    If the cache lacks them, the first process that holds the lock decodes them into it, and the others wait. Images
    that would take too much memory or disk are decoded again for every batch instead (`StreamedImages`).

    Raises DataError for damaged images and for a cache that cannot be written, StoppedError when asked to stop.
    """
    files = [*train, *test]
    paths = [file.path for file in files]
    folder = cache_folder()
    key = _key(files, image_size)
    array_path, statistics_path = folder / f"{key}.npy", folder / f"{key}.json"
    shape = (len(files), 3, image_size, image_size)

    images_NCHW, statistics = _open_array(array_path, shape), _read_statistics(statistics_path)
    if images_NCHW is None or statistics is None:
        # Rank 0 goes first where it can, since it is the one that shows progress.
        with _locked(folder / f"{key}.lock", stop_requested, delay=0.0 if is_main else 1.0):
            images_NCHW, statistics = _open_array(array_path, shape), _read_statistics(statistics_path)
            if images_NCHW is None and _fits(shape, folder, is_main):
                _decode(paths, array_path, shape, stop_requested, is_main)
                images_NCHW = _open_array(array_path, shape)
            train_images, test_images = _images(images_NCHW, paths, len(train), image_size)
            if statistics is None:
                statistics = channel_statistics(train_images)
                _write_statistics(statistics_path, statistics)
    else:
        train_images, test_images = _images(images_NCHW, paths, len(train), image_size)
    return DecodedImages(train_images, test_images, *statistics)


def cache_folder() -> Path:
    """Return $TRAINLAUNCH_CACHE or, by the XDG base directory specification, trainlaunch in the user's cache folder."""
    if own := os.environ.get("TRAINLAUNCH_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "trainlaunch"


def _key(files: Sequence[ImageFile], image_size: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {image_size} {PIL.__version__} {len(files)}".encode())
    for file in files:
        digest.update(f"\0{file.path}\0{file.size}\0{file.mtime_ns}".encode(errors="surrogateescape"))
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


def _images(images_NCHW: np.ndarray | None, paths: list[str], num_train: int, image_size: int) -> tuple[Images, Images]:
    if images_NCHW is None:
        return StreamedImages(paths[:num_train], image_size), StreamedImages(paths[num_train:], image_size)
    tensor = torch.from_numpy(images_NCHW)
    return InMemoryImages(tensor[:num_train]), InMemoryImages(tensor[num_train:])


def _fits(shape: tuple[int, ...], folder: Path, is_main: bool) -> bool:
    need = int(np.prod(shape, dtype=np.int64))
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    if need <= min(memory, disk) * MAX_FRACTION:
        return True
    if is_main:
        logger.info(
            "Decoded, the images would take %.1f GB, more than %.0f%% of the %.1f GB of available memory or of the "
            "%.1f GB free in %s: they are decoded anew for each batch, which is slower.",
            *(need / 1e9, MAX_FRACTION * 100, memory / 1e9, disk / 1e9, folder),
        )
    return False


def _open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Memory-map the array copy-on-write; None if it is missing or damaged."""
    try:
        images_NCHW = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return images_NCHW if images_NCHW.shape == shape and images_NCHW.dtype == np.uint8 else None


def _decode(
    paths: list[str], array_path: Path, shape: tuple[int, ...], stop_requested: Callable[[], bool], is_main: bool
) -> None:
    """Decode all files into the entry's array, which gets its name only once it is complete and on disk."""
    partial = array_path.with_suffix(".partial")
    try:
        _reserve(partial, shape)
        with _progress(len(paths), show_bar=is_main and sys.stderr.isatty()) as advance:
            _, failures = decode_files(paths, partial, stop_requested=stop_requested, advance=advance)
        if failures:
            raise damaged_images(failures)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(array_path)
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
    logger.info("Decoding %d images, once, on %d cores ...", total, available_cores())
    yield lambda count: None
    logger.info("Decoded %d images in %.1f s.", total, time.monotonic() - start)


def _read_statistics(path: Path) -> tuple[PerChannel, PerChannel] | None:
    try:
        entry = json.loads(path.read_bytes())
        (r, g, b), (std_r, std_g, std_b) = entry["mean"], entry["std"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (r, g, b), (std_r, std_g, std_b)


def _write_statistics(path: Path, statistics: tuple[PerChannel, PerChannel]) -> None:
    mean, std = statistics
    partial = path.with_suffix(".json-partial")
    partial.write_text(json.dumps({"mean": mean, "std": std}))
    partial.replace(path)
