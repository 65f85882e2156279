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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torch import Tensor

from trainlib.config import LossConfig
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.targets import class_names_of
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.errors import TrainlaunchError, UserError
from trainlib.inference.chosen_checkpoint import ChosenCheckpoint
from trainlib.runs.files.durable import sync_directory
from trainlib.training.metrics.label_sets import predicted_sets
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


@dataclass(frozen=True)
class Answers:
    """How the logits of a model become the names of classes.

    thresholds   of a model that names a set of classes: the probability of each class from which on it is named
    separator    stands between the names of a set
    """

    loss: LossConfig
    classes: Sequence[str]
    thresholds: Sequence[float] | None = None
    separator: str = ";"

    @classmethod
    def of(cls, chosen: ChosenCheckpoint) -> Answers:
        """Return those of a checkpoint's model."""
        return cls(chosen.config.loss, chosen.classes, chosen.thresholds, chosen.config.data.label_separator)

    def probabilities(self, logits_NC: Tensor) -> Tensor:
        """Return the probability of each class, float32 [N, C]."""
        return class_probabilities(logits_NC, self.loss, of_sets=self.thresholds is not None)

    def predicted(self, logits_NC: Tensor, probabilities_NC: Tensor) -> Tensor:
        """Return the labels that the model gives, in the form that labels have (see `data.targets`), on the CPU."""
        if self.thresholds is None:
            return logits_NC.argmax(dim=1).cpu()
        return predicted_sets(probabilities_NC.cpu(), self.thresholds)

    def texts(self, labels_N: Tensor) -> list[str]:
        """Return the name, or the names, that stand for each sample's labels."""
        return [self.separator.join(names) for names in class_names_of(labels_N, self.classes)]


class PredictionFile:
    """A file of predictions while it is written: `add` takes each of this rank's micro-batches.

    names   the path of each sample, or its index in a larger set, by its index; None for samples that are told by that
    """

    def __init__(self, file: IO[str], answers: Answers, names: Sequence[str] | Sequence[int] | None):
        self._answers = answers
        self._names = names
        self._writer = csv.writer(file)

    def write_header(self) -> None:
        """Write the names of the columns."""
        first = "path" if self._names and isinstance(self._names[0], str) else "index"
        self._writer.writerow([first, "label", "prediction", *map(_probability_column, self._answers.classes)])

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Write the rows of a micro-batch. A synchronisation point on a GPU.

        Probabilities are written with as many digits as tell a float32 from all others.
        """
        probabilities_NC = self._answers.probabilities(logits_NC)
        predicted = self._answers.texts(self._answers.predicted(logits_NC, probabilities_NC))
        labels = self._answers.texts(micro_batch.targets.cpu_labels_N)
        digits_NC = probabilities_NC.cpu().numpy().astype("U")
        for sample, *texts, digits_C in zip(micro_batch.ids_N.tolist(), labels, predicted, digits_NC, strict=True):
            name = sample if self._names is None else self._names[sample]
            first = _cell(name) if isinstance(name, str) else str(name)
            self._writer.writerow([first, *map(_cell, texts), *digits_C])


@contextmanager
def open_prediction_file(
    target: Path, rank: int, answers: Answers, names: Sequence[str] | Sequence[int] | None
) -> Iterator[PredictionFile]:
    """Context manager: the file to which every rank adds its predictions. On exit it has its name. A collective.

    Raises TrainlaunchError where it cannot be written; then nothing is left of it, and an earlier file stays.
    """
    token = broadcast_object(secrets.token_hex(8))
    part = _part(target, token, rank)
    try:
        with part.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            predictions = PredictionFile(file, answers, names)
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


def _probability_column(name: str) -> str:
    return f"probability_{_cell(name)}"


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
