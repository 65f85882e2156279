"""The CSV file of `launch eval --predictions`: the answer to each sample of a split, in the samples' own order.

Each rank writes its rows to a file of its own while it evaluates, so that nothing has to fit into memory. At the end
rank 0 puts them together, and only then the file appears under its name. Ranks evaluate contiguous parts of the samples
in rank order, so the bytes do not depend on their number.
"""

from __future__ import annotations

import csv
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from torch import Tensor

from trainlib.config import LossConfig
from trainlib.data.batches.loader import MicroBatch
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.errors import TrainlaunchError, UserError
from trainlib.runs.files.durable import sync_directory
from trainlib.training.metrics.predictions import class_probabilities

# What a spreadsheet takes for a formula. Numbers such as -1 do no harm.
_FORMULA = re.compile(r"[=+\-@\t\r\n']")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_HEADERS = (b"path,label,prediction,", b"index,label,prediction,")


def check_target(target: Path) -> None:
    """Raise UserError where the file cannot be written, or would replace what is no earlier file of predictions."""
    if not target.parent.is_dir():
        raise UserError(f"--predictions: {target.parent} is no folder; make it, or choose another place")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"--predictions: nothing can be written in {target.parent}; choose another place")
    if not target.exists():
        return
    is_earlier = False
    if target.is_file():
        with suppress(OSError), target.open("rb") as file:
            is_earlier = file.read(max(map(len, _HEADERS))).startswith(_HEADERS)
    if not is_earlier:
        raise UserError(f"--predictions: {target} exists, and is no earlier file of predictions; choose another name")


class PredictionFile:
    """A file of predictions while it is written: `add` takes each of this rank's micro-batches.

    names   the path of each sample by its index; None for samples that have none, which are told by their indices
    """

    def __init__(self, file: IO[str], loss: LossConfig, classes: Sequence[str], names: Sequence[str] | None):
        self._loss = loss
        self._classes = [_cell(name) for name in classes]
        self._names = names
        self._writer = csv.writer(file)

    def write_header(self) -> None:
        """Write the names of the columns."""
        first = "index" if self._names is None else "path"
        self._writer.writerow([first, "label", "prediction", *(f"probability_{name}" for name in self._classes)])

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Write the rows of a micro-batch. A synchronisation point on a GPU.

        Probabilities are written with as many digits as tell a float32 from all others.
        """
        probabilities_NC = class_probabilities(logits_NC, self._loss).cpu().numpy().astype("U")
        predicted_N = logits_NC.argmax(dim=1).tolist()
        rows = zip(micro_batch.ids_N.tolist(), micro_batch.targets.cpu_labels_N.tolist(), predicted_N, strict=True)
        for (sample, label, predicted), probabilities_C in zip(rows, probabilities_NC, strict=True):
            first = str(sample) if self._names is None else _cell(self._names[sample])
            self._writer.writerow([first, self._classes[label], self._classes[predicted], *probabilities_C])


@contextmanager
def open_prediction_file(
    target: Path, rank: int, loss: LossConfig, classes: Sequence[str], names: Sequence[str] | None
) -> Iterator[PredictionFile]:
    """Context manager: the file to which every rank adds its predictions. On exit it has its name. A collective.

    Raises TrainlaunchError where it cannot be written; then nothing is left of it, and an earlier file stays.
    """
    token = broadcast_object(secrets.token_hex(8))
    part = _part(target, token, rank)
    try:
        with part.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            predictions = PredictionFile(file, loss, classes, names)
            if rank == 0:
                predictions.write_header()
            yield predictions
        world_size = len(gather_objects(rank))  # all rows are written
        if rank == 0:
            _join([_part(target, token, each) for each in range(world_size)], target)
        broadcast_object(None)  # the file stands
    except OSError as error:
        raise TrainlaunchError(f"--predictions: {target} was not written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def _join(parts: Sequence[Path], target: Path) -> None:
    """Append all parts to the first one, and give it the name of the target."""
    with parts[0].open("ab") as whole:
        for part in parts[1:]:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, whole, 1 << 20)
        whole.flush()
        os.fsync(whole.fileno())
    os.replace(parts[0], target)
    sync_directory(target.parent)


def _part(target: Path, token: str, rank: int) -> Path:
    return target.with_name(f".{target.name}.{token}.{rank}.tmp")


def _cell(text: str) -> str:
    """Return a name as it stands in the file, with ' before what a spreadsheet would compute, or what begins with '."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
