"""The checkpoint that a user's reference means: of a run the best one, or the one that was named."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainlib.config import METRICS, TRANSFORM, Config, LossConfig, is_code, is_custom, load_config, with_older_values
from trainlib.data.augment.preprocess import Preprocess
from trainlib.errors import CheckpointError
from trainlib.models.losses import is_balanced, with_weights
from trainlib.parts import Parts
from trainlib.runs import RUNS
from trainlib.runs.records.shapes import number, numbers, texts, whole_number
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.best import best_or_newest
from trainlib.training.checkpoints.checkpoint import Checkpoint

MAX_SIZE = 4096  # of images, in pixels, as in a configuration


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A verified checkpoint, and what its manifest says about the model in it.

    weights   "best" or "last" where the user named a run, "checkpoint" where the user named a checkpoint
    run       the run's directory where the user named a run, else None
    """

    checkpoint: Checkpoint
    weights: str
    run: Path | None

    @functools.cached_property
    def config(self) -> Config:
        """The configuration that the model was trained with. Raises CheckpointError if the manifest holds none."""
        return self.config_with(None)

    def config_with(self, parts: Parts | None) -> Config:
        """Return the configuration, checked with the parts that the run's own code registers, where it is imported."""
        values = self._fact("config", _is_mapping)
        # As in the run itself, these stand for parts that were given in Python.
        return load_config([with_older_values(values)], _given_in_python(values), parts=parts)

    @property
    def run_directory(self) -> Path:
        """The directory of the run that the checkpoint is of."""
        return self.run or self.checkpoint.path.parents[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self._fact("classes", _are_names))

    @property
    def preprocess(self) -> Preprocess:
        """The normalisation that the model was trained with."""
        values = self._fact("preprocess", _is_preprocess)
        # Only runs that began before pictures in memory were framed resize them on their device.
        size = values["image_size"] if self.config.data.is_older else None
        return Preprocess(tuple(values["mean"]), tuple(values["std"]), size)

    @property
    def loss(self) -> LossConfig:
        """The loss that the model was trained with, with the numbers that `weight: balanced` came to."""
        loss = self.config.loss
        if not is_balanced(loss):
            return loss
        weights = self._fact("class_weights", numbers)
        return with_weights(loss, weights, of_sets=self.config.data.has_sets)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The probability from which on each class is in a set; None for a model of one class for each picture."""
        if not self.config.data.has_sets:
            return None
        return tuple(self._fact("thresholds", lambda value: numbers(value) and len(value) == len(self.classes)))

    def _fact(self, name: str, fits: Callable[[Any], bool]) -> Any:
        if name not in self.checkpoint.manifest:
            raise CheckpointError(
                f"{self.checkpoint.path}: its manifest does not hold the {name}, as those of an earlier version; "
                "resume the run to write a new checkpoint, or train it again"
            )
        found = self.checkpoint.manifest[name]
        if not fits(found):
            raise CheckpointError(
                f"{self.checkpoint.path}: the {name} in its manifest cannot be used: {str(found)[:100]}"
            )
        return found


def _given_in_python(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names in a configuration that stand for parts given to `trainlib.fit`, by section or key."""
    sections = {name: values.get(name) for name in ("model", "loss", "optimizer", "data")}
    names = {name: found.get("name") for name, found in sections.items() if isinstance(found, dict)}
    augment = (values.get("data") or {}).get("augment")
    names[TRANSFORM] = augment.get("custom") if isinstance(augment, dict) else None
    given: dict[str, Any] = {name: found for name, found in names.items() if is_custom(found) and not is_code(found)}
    metrics = (values.get("evaluation") or {}).get("metrics") or []
    return given | ({METRICS: metrics} if any(is_custom(name) and not is_code(name) for name in metrics) else {})


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return texts(value) and len(value) > 0 and len(set(value)) == len(value)


def _is_preprocess(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    size, mean, std = value.get("image_size", 0), value.get("mean"), value.get("std")
    both = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(whole_number(side) and 0 < side <= MAX_SIZE for side in both):
        return False
    if not all(isinstance(each, list) and len(each) in (1, 3) and all(map(number, each)) for each in (mean, std)):
        return False
    return len(mean) == len(std) and all(channel > 0 for channel in std)  # type: ignore[arg-type, union-attr]


def find_checkpoint(reference: str | os.PathLike[str]) -> ChosenCheckpoint:
    """Return the checkpoint that a reference means: a run's name or directory, a checkpoint's directory or model file.

    Of a run it is the best checkpoint, or the newest one if there is no best one or it is lost. Damaged checkpoints are
    skipped with a warning, and left where they are. Raises CheckpointError if there is no whole checkpoint.
    """
    path = Path(reference)
    if path.name == checkpoint.MODEL:
        path = path.parent
    if (path / checkpoint.MANIFEST).is_file():
        return ChosenCheckpoint(checkpoint.verify(path), "checkpoint", None)
    for run in (RUNS / reference, path):
        if (run / "checkpoints").is_symlink():
            raise CheckpointError(f"{run / 'checkpoints'} is a link, must be a folder: name the one that it leads to")
        if (run / "checkpoints").is_dir():
            return ChosenCheckpoint(*best_or_newest(run), run)
    if any((run / "config.yaml").is_file() for run in (RUNS / reference, path)):
        raise CheckpointError(
            f"{os.fspath(reference)}: this run has no checkpoint yet; launch status {path.name} tells how far it came"
        )
    raise CheckpointError(
        f"{os.fspath(reference)}: no such run or checkpoint; give the name of a run in {RUNS.absolute()}, its folder, "
        "or that of a checkpoint (runs/NAME/checkpoints/step-...)"
    )
