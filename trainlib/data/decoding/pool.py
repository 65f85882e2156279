"""A pool of worker processes that decode image files into one .npy file, on all cores."""

from __future__ import annotations

import itertools
import json
import logging
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from trainlib.data.decoding import decode
from trainlib.errors import DataError, StoppedError, TrainlaunchError
from trainlib.runs.machine.limits import available_memory, usable_cores
from trainlib.runs.terminal.printable import printable

package_logger = logging.getLogger("trainlib")  # to which the handlers of a run's log are added

WORKER_BYTES = 128 << 20  # of memory, that a process takes which decodes: libraries and a picture of 24 megapixels
MEMORY_FRACTION = 0.25  # of what is available, for all of them
CHUNK_SIZE = 64  # images between two calls of `stop_requested`
PARALLEL_FROM = 500  # images; fewer are decoded by one worker sooner than several have started
NAMED_AT_MOST = 10


def decoding_processes(most_bytes: int = WORKER_BYTES, ranks: int = 1) -> int:
    """Return how many processes may decode at a time for each of `ranks`: one a core, as far as memory allows.

    most_bytes   that one of them takes
    """
    for_memory = int(available_memory() * MEMORY_FRACTION) // most_bytes
    return max(1, min(usable_cores(), for_memory) // ranks)


def decode_files(
    paths: Sequence[str],
    array_path: Path,
    *,
    stop_requested: Callable[[], bool],
    advance: Callable[[int], None],
) -> decode.Decoded:
    """Decode file i into row i of the .npy file at `array_path`: uint8 [N, 3, S, S], created before at its full size.

    advance     called with the number of images that have just been decoded
    Returns the SHA-256 of each file's bytes, and the files that could not be decoded; both in order.

    Raises StoppedError when asked to stop, and TrainlaunchError when a worker dies. No worker outlives this call. This
    process decodes nothing itself: while a decoder is at a picture, no signal is heeded.
    """
    chunks = [(start, paths[start : start + CHUNK_SIZE]) for start in range(0, len(paths), CHUNK_SIZE)]
    num_workers = min(decoding_processes(), len(chunks)) if len(paths) >= PARALLEL_FROM else min(1, len(chunks))
    hashes: list[str | None] = [None] * len(paths)
    failures: list[decode.Failure] = []

    def add(start: int, decoded: decode.Decoded) -> None:
        hashes[start : start + len(decoded[0])] = decoded[0]
        failures.extend((path, reason) for path, reason in decoded[1])
        advance(len(decoded[0]))

    with ExitStack() as stack:
        command = [sys.executable, "-P", decode.__file__, str(array_path)]
        workers = []
        for _ in range(num_workers):
            worker = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(worker.kill)  # runs before the worker's own exit, which waits for its end
            workers.append(worker)
        _distribute(chunks, workers, stop_requested, add)
    position = {path: row for row, path in enumerate(paths)}
    return hashes, sorted(failures, key=lambda failure: position[failure[0]])


def _distribute(
    chunks: list[tuple[int, Sequence[str]]],
    workers: list[subprocess.Popen[bytes]],
    stop_requested: Callable[[], bool],
    add: Callable[[int, decode.Decoded], None],
) -> None:
    """Send chunks to the workers, one at a time to each, until all are decoded; `add` gets the results of each."""
    waiting = iter(chunks)
    with selectors.DefaultSelector() as answers:
        for worker, chunk in zip(workers, waiting, strict=False):
            assert worker.stdout
            answers.register(worker.stdout, selectors.EVENT_READ, (worker, chunk))
            _send(worker, chunk)
        while answers.get_map():
            _check_stop(stop_requested)
            for selected, _ in answers.select(timeout=0.2):
                worker, (start, paths) = selected.data
                answer = worker.stdout.readline()
                if not answer:
                    raise _worker_died(worker, paths)
                add(start, json.loads(answer))
                answers.unregister(worker.stdout)
                for chunk in itertools.islice(waiting, 1):
                    answers.register(worker.stdout, selectors.EVENT_READ, (worker, chunk))
                    _send(worker, chunk)


def _send(worker: subprocess.Popen[bytes], chunk: tuple[int, Sequence[str]]) -> None:
    assert worker.stdin
    start, paths = chunk
    try:
        worker.stdin.write(json.dumps({"start": start, "paths": paths}).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            worker.stdin.close()  # here, because it fails once more on what is left in its buffer
        raise _worker_died(worker, paths) from None


def _worker_died(worker: subprocess.Popen[bytes], paths: Sequence[str]) -> TrainlaunchError:
    code, images = worker.wait(), f"one of {len(paths)} images, {printable(paths[0])} to {printable(paths[-1])}"
    if code == -signal.SIGPROF:
        return DataError(
            f"Decoding {images}, took more than {decode.PICTURE_SECONDS:.0f} s, which no sound picture does: "
            "move these images away, and put them back one by one."
        )
    return TrainlaunchError(
        f"A process that decodes images ended with code {code} while at {images}. -9 is mostly a lack of memory; "
        "otherwise try these images one by one."
    )


def _check_stop(stop_requested: Callable[[], bool]) -> None:
    if stop_requested():
        raise StoppedError("Stopped while decoding images, before training began. Run again to start over.")


def damaged_images(failures: Sequence[decode.Failure]) -> DataError:
    """Return the error that names images that cannot be decoded, with the reasons.

    Of many, a message names the first ones, and the log all: of a refused start, logs/refused.log in the run directory.
    Where there is no log, the message names all.
    """
    lines = [f"  {printable(path)}: {printable(reason)}" for path, reason in failures]
    what = "1 image" if len(failures) == 1 else f"{len(failures)} images"
    if len(lines) > NAMED_AT_MOST and any(handler.level <= logging.DEBUG for handler in package_logger.handlers):
        package_logger.debug("all %s that cannot be decoded:\n%s", what, "\n".join(lines))
        lines[NAMED_AT_MOST:] = [f"  ... and {len(failures) - NAMED_AT_MOST} more: logs/ of the run names all"]
    return DataError("\n".join([f"{what} cannot be decoded; delete, move or export them again:", *lines]))
