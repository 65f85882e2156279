"""Threads of this process that decode pictures ahead of their use, for as long as the process lives.

Decoders, and torch's resizing, let other threads run meanwhile, so that threads do what worker processes would,
without a copy, a start or memory for each. The thread that waits for pictures heeds a request to stop, whatever a
decoder does; a decoder that does not return is left alone, and the process ends without it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from trainlib.data.pictures.decoding.failures import Failure, reason_of
from trainlib.data.pictures.decoding.reader import Reader
from trainlib.data.pictures.files import PictureFiles
from trainlib.errors import DataError, StoppedError
from trainlib.runs.machine.kept_memory import keep_freed_memory
from trainlib.runs.machine.launch_variables import local_world_size
from trainlib.runs.machine.limits import available_memory, usable_cores
from trainlib.runs.terminal.printable import printable

PICTURE_SECONDS = 60.0  # of a processor, for one picture; one of MAX_PIXELS takes a quarter of it
BATCHES_AHEAD = 3  # at least, where memory allows; more of small ones, so that every thread has work
PIECE = 8  # pictures that a thread decodes before it takes up others
THREAD_BYTES = 128 << 20  # of memory, that a thread takes at most: a picture of 24 megapixels
MEMORY_FRACTION = 0.25  # of what is available, for all threads of the machine, and as much for what is decoded ahead
POLL_SECONDS = 0.2
STOP_SECONDS = 3.0  # that pictures may take to be ready, once a stop was asked for, where a step is to be finished
DRAIN_SECONDS = 2.0  # that the end of the process waits for decoders


def decoding_threads() -> int:
    """Return how many threads decode for this rank: one a core, shared with the machine's other ranks."""
    for_memory = int(available_memory() * MEMORY_FRACTION) // THREAD_BYTES
    return max(1, min(usable_cores(), for_memory) // local_world_size())


def jobs_ahead(largest: int, picture_bytes: int) -> int:
    """Return how many jobs, of at most so many pictures, are under way behind the one that is waited for."""
    wanted = max(BATCHES_AHEAD, -(-2 * PIECE * decoding_pool().count // max(largest, 1)))
    for_memory = int(available_memory() * MEMORY_FRACTION) // local_world_size() // max(largest * picture_bytes, 1)
    return max(1, min(wanted, for_memory))


@dataclass
class DecodingJob:
    """Pictures that are decoded into one tensor.

    indices      of the pictures in `files`, in the order of the rows
    out_NCHW     uint8, of the reader's shape; the rows of pictures that cannot be decoded stay as they are
    draws        the draw number of each picture
    is_hashed    False where nobody asks for the files' hashes
    sha256       of each file's bytes, in hex, once it is done; None for a file that cannot be read, or is not hashed
    failures     row and reason of each picture that could not be decoded
    """

    files: PictureFiles
    indices: Sequence[int]
    reader: Reader
    out_NCHW: Tensor
    epoch: int | None = None
    draws: Sequence[int] | None = None
    is_hashed: bool = True
    sha256: list[str | None] = field(init=False)
    failures: list[tuple[int, str]] = field(init=False, default_factory=list)
    is_dropped: bool = field(init=False, default=False)
    done: threading.Event = field(init=False, default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.sha256 = [None] * len(self.indices)
        self._lock = threading.Lock()
        self._left = len(self.indices)
        if not self._left:
            self.done.set()

    def pieces(self) -> list[range]:
        """Return the rows that one thread decodes at a time."""
        size = min(PIECE, -(-len(self.indices) // decoding_pool().count))
        return [range(start, min(start + size, len(self.indices))) for start in range(0, len(self.indices), size or 1)]

    def decode(self, rows: range, begin: Callable[[str], None]) -> None:
        """Decode the pictures of these rows; `begin` is told the place of each. Ends early once the job is dropped."""
        for row in rows:
            if self.is_dropped:
                return
            try:
                begin(self.files.describe(self.indices[row]))
                data = self.files.read(self.indices[row])
                if self.is_hashed:
                    self.sha256[row] = hashlib.sha256(data).hexdigest()
                self.keep(row, data)
            except Exception as error:  # noqa: BLE001 - on damaged files decoders raise almost anything
                self.failures.append((row, reason_of(error)))
        with self._lock:
            self._left -= len(rows)
            if not self._left:
                self.done.set()

    def keep(self, row: int, data: bytes) -> None:
        """Decode a picture's bytes into its row."""
        draw = self.indices[row] if self.draws is None else self.draws[row]
        image_CHW = self.reader(data, draw, self.epoch)
        self.out_NCHW[row].numpy()[...] = image_CHW.numpy()  # by NumPy, which keeps to this thread

    def named_failures(self) -> list[Failure]:
        """Return place and reason of each picture that could not be decoded, in the order of the rows."""
        return [(self.files.describe(self.indices[row]), reason) for row, reason in sorted(self.failures)]


def decode_ahead(
    jobs: Iterable[DecodingJob], ahead: int, stop_requested: Callable[[], bool], patience: float = 0.0
) -> Iterator[DecodingJob]:
    """Yield the jobs in order, each once it is done, while threads are at work on the `ahead` jobs behind it.

    patience   seconds that a job may still take once a stop is asked for

    Raises StoppedError when asked to stop, and DataError for a picture on which a decoder is for PICTURE_SECONDS.
    """
    pool = decoding_pool()
    coming, started = iter(jobs), deque[DecodingJob]()
    try:
        for job in islice(coming, ahead + 1):
            started.append(job)
            pool.submit(job)
        while started:
            _wait(pool, started[0], stop_requested, patience)
            for job in islice(coming, 1):
                started.append(job)
                pool.submit(job)
            yield started.popleft()
    finally:
        for job in started:
            job.is_dropped = True


def _wait(pool: _Pool, job: DecodingJob, stop_requested: Callable[[], bool], patience: float) -> None:
    """Wait until the job is done; see `decode_ahead`. Where there is no patience, a stop comes before what is done."""
    stopping_since: float | None = None
    while patience == 0.0 or not job.done.is_set():
        if stop_requested():
            stopping_since = stopping_since or time.monotonic()
            if time.monotonic() >= stopping_since + patience:
                raise StoppedError("Stopped while pictures were decoded. Run again to go on.")
        if job.done.wait(POLL_SECONDS):
            return
        pool.check()


class _Thread(threading.Thread):
    """A thread that decodes one piece after another. `picture` is what it is at, if anything."""

    def __init__(self, pool: _Pool, number: int):
        super().__init__(name=f"decoder-{number}", daemon=True)
        self._pool = pool
        self.picture: str | None = None
        self.is_ready = threading.Event()
        self.is_left_alone = False
        self._began = 0.0

    def run(self) -> None:
        # Else each of these threads would have as many of torch's own as there are cores.
        torch.set_num_threads(1)
        self.is_ready.set()
        while not self.is_left_alone:
            job, rows = self._pool.pieces.get()
            job.decode(rows, self._begin)
            self.picture = None

    def _begin(self, picture: str) -> None:
        self._began, self.picture = time.thread_time(), picture

    def seconds(self) -> float:
        """Return the time of a processor that the picture has taken so far; waiting for its bytes counts nothing."""
        try:
            now = time.clock_gettime(time.pthread_getcpuclockid(self.ident or 0))
        except (AttributeError, OSError):  # not on every system
            return 0.0
        return now - self._began


class _Pool:
    """The threads of this process, and the pieces that wait for them."""

    def __init__(self, count: int):
        self.count = count
        self.pieces: queue.SimpleQueue[tuple[DecodingJob, range]] = queue.SimpleQueue()
        self.threads: list[_Thread] = []
        self._fill()

    def _fill(self) -> None:
        """Start the threads that are missing."""
        new = [_Thread(self, number) for number in range(len(self.threads), self.count)]
        for thread in new:
            thread.start()
        for thread in new:
            thread.is_ready.wait()
        torch.set_num_threads(torch.get_num_threads())  # for threads that begin later: the last to set it decides
        self.threads += new

    def submit(self, job: DecodingJob) -> None:
        """Have the job done, after those that were submitted before."""
        for rows in job.pieces():
            self.pieces.put((job, rows))

    def check(self) -> None:
        """Raise DataError if a decoder has been at one picture for too long, and leave its thread alone."""
        for thread in self.threads:
            picture = thread.picture
            if picture is not None and thread.seconds() > PICTURE_SECONDS and thread.picture == picture:
                thread.is_left_alone = True
                self.threads.remove(thread)
                _left_alone.append(thread)
                self._fill()
                raise DataError(
                    f"Decoding {printable(picture)} took more than {PICTURE_SECONDS:.0f} s, which no sound picture "
                    "does: move it away, or export it again."
                )

    def drain(self, seconds: float) -> bool:
        """Drop what waits, and wait for the threads; return True if all of them are idle."""
        with suppress(queue.Empty):
            while True:
                job, _ = self.pieces.get_nowait()
                job.is_dropped = True
        end = time.monotonic() + seconds
        while any(thread.picture is not None for thread in self.threads) and time.monotonic() < end:
            time.sleep(0.01)
        return not any(thread.picture is not None for thread in self.threads)


_pool: _Pool | None = None
_left_alone: list[_Thread] = []


def decoding_pool() -> _Pool:
    """Return this process's threads, which are started when they are first needed."""
    global _pool
    if _pool is None:
        keep_freed_memory(os.environ)  # else each picture, and each batch, is written to pages that are new
        _pool = _Pool(decoding_threads())
    return _pool


def are_decoders_idle() -> bool:
    """End decoding, and return True unless a decoder does not return: then only `os._exit` ends the process well."""
    return not any(thread.picture is not None for thread in _left_alone) and (
        _pool is None or _pool.drain(DRAIN_SECONDS)
    )


def _forget_pool() -> None:
    """Begin without threads, as a process that was forked has none of its parent's."""
    global _pool
    _pool = None
    _left_alone.clear()


# A thread that comes back from C++ while the interpreter ends would abort the process.
atexit.register(are_decoders_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
