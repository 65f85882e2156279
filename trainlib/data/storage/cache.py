"""The cache of pictures on disk: decoded once, then read by every process of every later run.

Each data set has a folder (`Store`) with what `choose` says. The folders may be deleted at any time. Whatever is kept,
and where, the images have the same bits.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import PIL
import torch

from trainlib.data.datasets.dataset import PerChannel
from trainlib.data.datasets.images import Images, InMemoryImages, StreamedImages
from trainlib.data.identity.hashes import Hashes
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.decoding.reader import PictureReader, Reader
from trainlib.data.pictures.decoding.threads import decoding_threads
from trainlib.data.pictures.files import PictureFiles, SomeFiles, is_plain
from trainlib.data.storage.choice import Choice, Room, choose
from trainlib.data.storage.make import make_records
from trainlib.data.storage.records import Records, image_bytes, pixels_of
from trainlib.data.storage.shard import OpenShard
from trainlib.data.storage.statistics import kept_statistics, statistics_key
from trainlib.data.storage.store import Store
from trainlib.data.storage.stored import StoredFiles
from trainlib.errors import DataError
from trainlib.runs.machine.cache_folder import cache_folder
from trainlib.runs.machine.file_systems import SHARED, file_system_here
from trainlib.runs.machine.launch_variables import local_world_size, rank, world_size
from trainlib.runs.machine.limits import available_memory

FORMAT = 4
FULL = (errno.ENOSPC, errno.EDQUOT)
SAMPLED_PICTURES = 8  # whose size tells that of all
TRIAL_BYTES = 64 << 20  # that are read to measure the disk

logger = logging.getLogger("trainlib.data")


@dataclass(frozen=True)
class DecodedImages:
    """Training and test images, and mean and standard deviation of the training images' channels, on a 0..1 scale.

    hashes   of each file's bytes, training before test, as far as they were read as a whole
    """

    train: Images
    test: Images
    mean: PerChannel
    std: PerChannel
    hashes: Hashes


def load_decoded(
    files: PictureFiles,
    stamps: Stamps,
    num_train: int,
    reader: PictureReader,
    *,
    place: str,
    cache: str = "auto",
    verify: bool = False,
    stop_requested: Callable[[], bool],
    is_main: bool,
    tell_decoded: Callable[[int, int], None] = lambda done, total: None,
) -> DecodedImages:
    """Return the files' images, as `reader` makes them.

    What the cache lacks is decoded into it, by all processes together, if `choose` says so.

    files         the pictures, those of training, `num_train` of them, first
    stamps        of the files, as they are now
    place         where the data lie, whatever pictures there are at the moment
    cache         `data.cache`
    verify        read every file again, also where its stamp is the one that it was read under
    tell_decoded  called with how many pictures are decoded, and of how many, while the cache is filled

    Raises DataError for damaged images, and for a cache that was asked for and cannot be written; StoppedError when
    asked to stop. Without room on the disk, or with `auto`, images are decoded for each batch instead.
    """
    load = _Load(files, stamps, num_train, reader, place, cache, verify, stop_requested, is_main, tell_decoded)
    choice = load.choose()
    cached = load.cached(choice) if choice.kept != "none" else None
    if is_main and (cached is not None or choice.kept == "none"):
        logger.info("%s.", choice.why)
    images, hashes = cached or (load.streamed(files, reader, is_cached=False), Hashes.unknown(len(files)))
    mean, std = load.statistics(choice.kept if cached else "none", images[0])
    return DecodedImages(*images, mean, std, hashes)


@dataclass
class _Load:
    """One data set that is being loaded; see `load_decoded`."""

    files: PictureFiles
    stamps: Stamps
    num_train: int
    reader: PictureReader
    place: str
    cache: str
    verify: bool
    stop_requested: Callable[[], bool]
    is_main: bool
    tell_decoded: Callable[[int, int], None]

    def choose(self) -> Choice:
        """Return what the cache keeps."""
        folder = cache_folder()
        there = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
        free = shutil.disk_usage(there).free
        kinds = ("images" if self.reader.is_fixed else "pictures", "files")
        for_pixels, for_files = (free + self._present_bytes(kind) for kind in kinds)
        room = Room(
            pixels=0 if self.cache in ("files", "none") else self._pixel_bytes(),
            files=int(self.stamps.rows_N4[:, 0].sum()),
            memory=available_memory() // local_world_size(),
            disk=for_pixels,
            folder=str(folder),
            for_files=for_files,
            shared=self._shared_file_system(there),
        )
        return choose(self.cache, self.reader.is_fixed, room)

    def _present_bytes(self, kind: str) -> int:
        """Return the bytes that the cache has of these pictures already."""
        return sum(path.stat().st_size for path in self.folder(kind).glob("*.data"))

    def _shared_file_system(self, cache: Path) -> str:
        """Return the type of the file system that the pictures' own files lie on, if machines share it; else "".

        Also where they lie in archives, which are packed already, and where the cache is shared as well.
        """
        if not is_plain(self.files) or file_system_here(cache) in SHARED:
            return ""
        kind = file_system_here(Path(self.files.describe(0)))
        return kind if kind in SHARED else ""

    def _pixel_bytes(self) -> int:
        """Return the bytes of all records of pixels: of pictures of any size, as some of them have it."""
        num = len(self.files)
        if self.reader.is_fixed:
            return num * image_bytes(self.reader.shape())
        some = sorted({place * num // SAMPLED_PICTURES for place in range(SAMPLED_PICTURES)})
        made = make_records(self.files, some, Records("pictures", self.reader), [], lambda _: None, self.stop_requested)
        sizes = [len(record) for record, _ in made]
        return sum(sizes) * num // max(len(sizes), 1)

    def folder(self, kept: str) -> Path:
        """Return the folder of what is kept of this data set."""
        key = Records(kept, self.reader).key
        versions = "" if kept == "files" else f"{PIL.__version__} {torch.__version__} {version('torchvision')}"
        digest = hashlib.sha256(f"{FORMAT} {key} {versions} {self.place}".encode(errors="surrogateescape"))
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(self.place).name).lstrip(".")[:40] or "data"
        return cache_folder() / f"{name}-{kept}-{digest.hexdigest()[:12]}"

    def cached(self, choice: Choice) -> tuple[tuple[Images, Images], Hashes] | None:
        """Return the images from the cache, and the files' hashes; None where the cache cannot be used."""
        if choice.is_tight and self.is_main:
            logger.warning("%s; that is more than half of the disk", choice.why)
        records = Records(choice.kept, self.reader)
        resident = _Resident(len(self.files), records.shape()) if choice.is_resident else None
        check = resident.load if resident else (lambda shard: True)
        folder = self.folder(choice.kept)
        store = Store(folder, self.files, self.stamps, records, verify=self.verify, check_all=check)
        try:
            store.prepare(self.place, self.stop_requested)
            if choice.is_trial and not self._pays(store):
                return None
            self._complete(store)
        except OSError as error:
            self._give_up(store, error)
            return None
        shards = [store.opened[shard.number] for shard in store.shards]
        if resident is not None:
            tensor = resident.images_NCHW
            return (InMemoryImages(tensor[: self.num_train]), InMemoryImages(tensor[self.num_train :])), store.hashes()
        stored = StoredFiles(self.files, records, shards)
        return self.streamed(stored, records, is_cached=True), store.hashes()

    def streamed(self, files: PictureFiles, reader: Reader, *, is_cached: bool) -> tuple[Images, Images]:
        """Return images that are made for each batch of what is read of their pictures."""
        train, test = range(self.num_train), range(self.num_train, len(self.files))
        parts = (SomeFiles(files, rows) for rows in (train, test))
        first, second = (StreamedImages(part, reader, self.stop_requested, is_cached=is_cached) for part in parts)
        return first, second

    def statistics(self, kept: str, train: Images) -> tuple[PerChannel, PerChannel]:
        """Return mean and standard deviation of the training images."""
        pixels_key = f"{self.reader.key} {PIL.__version__} {torch.__version__}"
        key = statistics_key(pixels_key, self.files, self.stamps, self.num_train)
        folder = self.folder(kept)
        return kept_statistics(
            folder, key, train, anew=self.verify, stop_requested=self.stop_requested, is_main=self.is_main
        )

    def _complete(self, store: Store, *, only_one: bool = False) -> None:
        missing = sum(len(shard.rows_N) for shard in store.missing()[: 1 if only_one else None])
        if not missing:
            return
        first = rank() * len(store.shards) // max(world_size(), 1)
        done = 0
        with _progress(missing, show_bar=self.is_main and sys.stderr.isatty()) as show:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                self.tell_decoded(done, missing)
                show(count)

            store.complete(advance, self.stop_requested, first=first, only_one=only_one)

    def _pays(self, store: Store) -> bool:
        """Return True if the first shard is read faster, from the disk, than its pictures are decoded."""
        if not store.opened:
            self._complete(store, only_one=True)
        shard = next(iter(store.opened.values()))
        picture = image_bytes(self.reader.shape())
        start = time.monotonic()
        num_read = shard.read_cold(TRIAL_BYTES)
        seconds = (time.monotonic() - start) * picture / max(num_read, 1)
        verdict = "reading" if seconds < shard.facts.seconds else "decoding"
        logger.info(
            "An image is read from the disk in %.2f ms and decoded in %.2f ms: %s is chosen (data.cache decides).",
            1e3 * seconds,
            1e3 * shard.facts.seconds,
            verdict,
        )
        return verdict == "reading"

    def _give_up(self, store: Store, error: OSError) -> None:
        """Warn that images are decoded for each batch; raise DataError where a cache was asked for that has a fault."""
        is_full = error.errno in FULL
        if is_full:
            store.remove_made()  # the run needs room as well
        elif self.cache != "auto":
            raise DataError(
                f"data.cache: {self.cache}: the cache of decoded images cannot be written: {error}. "
                f"Set the environment variable TRAINLAUNCH_CACHE to a folder on a disk with room."
            ) from error
        logger.warning(
            "The cache of decoded images cannot be written (%s): they are decoded for each batch, which is slower. %s",
            error,
            "`launch cache remove` makes room, and TRAINLAUNCH_CACHE names a folder on another disk."
            if is_full
            else "Set the environment variable TRAINLAUNCH_CACHE to a folder on a disk with room.",
        )


class _Resident:
    """All images in memory, uint8 [N, C, H, W], as far as their shards are loaded."""

    def __init__(self, num_images: int, shape: tuple[int, int, int]):
        self.images_NCHW = torch.empty((num_images, *shape), dtype=torch.uint8)

    def load(self, shard: OpenShard) -> bool:
        """Take over a shard's images; return False where they are not what was written."""
        content = shard.read_all()
        if content is None:
            return False
        if content:
            images_NCHW = pixels_of(memoryview(content), tuple(self.images_NCHW.shape[1:]))
            self.images_NCHW.numpy()[shard.shard.rows_N] = images_NCHW.numpy()
        return True


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
