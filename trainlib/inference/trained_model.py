"""What a run has trained, ready for use: `trainlib.load_model`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainlib.config import Config, custom_part_missing, is_custom, load_config
from trainlib.data.augmentation import Preprocess
from trainlib.data.decoding.decode import Failure, decode_rows, resize_and_crop
from trainlib.data.decoding.pool import damaged_images
from trainlib.errors import CheckpointError, UserError
from trainlib.models import build_model
from trainlib.models.custom_parts import ModelSource, build_custom
from trainlib.models.tta import with_tta
from trainlib.runs import RUNS
from trainlib.runs.checkpoints import name_of, steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.metrics.predictions import class_probabilities

logger = logging.getLogger("trainlib.inference.trained_model")

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

BATCH_SIZE = 64


@dataclass(frozen=True)
class Trained:
    """A verified checkpoint, chosen for use.

    weights   "best" or "last" of a run, or "checkpoint" where one was named
    run       the run's directory where a run was named, else None
    """

    checkpoint: Checkpoint
    weights: str
    run: Path | None

    @functools.cached_property
    def config(self) -> Config:
        """The configuration that it was trained with. Raises CheckpointError where the manifest holds none."""
        values = self._fact("config")
        names = {section: values.get(section, {}).get("name") for section in ("model", "loss", "data")}
        # As in the run itself, these stand for parts that were given in Python.
        custom = {section: name for section, name in names.items() if is_custom(name)}
        return load_config([values], custom)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._fact("classes"))

    @property
    def preprocess(self) -> Preprocess:
        values = self._fact("preprocess")
        return Preprocess(tuple(values["mean"]), tuple(values["std"]), values["image_size"])

    def _fact(self, name: str) -> Any:
        if name not in self.checkpoint.manifest:
            raise CheckpointError(
                f"{self.checkpoint.path}: its manifest does not hold the {name}, as those of an earlier version; "
                "resume the run to write a new checkpoint, or train it again"
            )
        return self.checkpoint.manifest[name]


def find_trained(reference: str | os.PathLike[str]) -> Trained:
    """The weights that a reference means: a run's name or directory, a checkpoint's directory or its model file.

    Of a run it is the best checkpoint, or the newest where there is no best one or it is lost. Nothing is changed:
    damaged checkpoints are passed over with a warning. Raises CheckpointError where there is none.
    """
    path = Path(reference)
    if path.name == checkpoint.MODEL:
        path = path.parent
    if (path / checkpoint.MANIFEST).is_file():
        return Trained(checkpoint.verify(path), "checkpoint", None)
    for run in (RUNS / reference, path):
        if (run / "checkpoints").is_dir():
            return _best_of(run)
    raise CheckpointError(
        f"{os.fspath(reference)}: no such run or checkpoint; give the name of a run in {RUNS.absolute()}, its folder, "
        "or that of a checkpoint (runs/NAME/checkpoints/step-...)"
    )


def _best_of(run: Path) -> Trained:
    steps = steps_in(run / "checkpoints")
    newest = next((found for step in reversed(steps) if (found := _whole(steps[step])) is not None), None)
    if newest is None:
        raise CheckpointError(f"{run}: has no whole checkpoint (yet); train it to its first one, or go on with it")
    best_step = newest.manifest.get("best_step")
    if best_step is None:
        return Trained(newest, "last", run)
    best = newest if best_step == newest.step else _whole(run / "checkpoints" / name_of(best_step))
    if best is None:
        logger.warning("the best weights are lost; the last ones are used instead")
        return Trained(newest, "last", run)
    return Trained(best, "best", run)


def _whole(path: Path) -> Checkpoint | None:
    try:
        return checkpoint.verify(path)
    except CheckpointError as damage:
        logger.warning("passed over: %s", damage)
        return None


def build_module(trained: Trained, device: torch.device, model: ModelSource | None = None) -> nn.Module:
    """The trained network, in eval mode; torch's generators are left as they are.

    model   what was given to `trainlib.fit`, for a run that was trained so
    Raises CheckpointError where the weights do not fit.
    """
    config, num_classes = trained.config, len(trained.classes)
    state = trained.checkpoint.model_state()
    if is_custom(config.model.name):
        if model is None:
            raise UserError(
                f"model.name: {custom_part_missing(config.model.name)}, or give it to load_model as `model`"
            )
        module = build_custom(model, num_classes).module
    else:
        with torch.device("meta"):  # neither memory nor initialisation for values that come from the file
            module = build_model(config.model, num_classes, config.data.image_size, load_weights=False).module
    try:
        module.load_state_dict(state, assign=not is_custom(config.model.name))
    except RuntimeError as error:
        raise CheckpointError(f"{trained.checkpoint.path}: does not fit {config.model.name}: {error}") from error
    if not is_custom(config.model.name):
        module.to(memory_format=torch.channels_last)  # as in training, so that figures are the same in every bit
    return module.to(device).eval()


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one picture: the most probable class, and the probability of every class by name."""

    name: str
    probability: float
    probabilities: Mapping[str, float]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable classes, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what belongs to it.

    module       the plain network in eval mode: float32 [N, 3, S, S], prepared by `prepare`, to logits [N, C]
    classes      names, in the order of the logits
    preprocess   mean, std and image size (S) that it was trained with
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    config: Config
    step: int
    device: torch.device

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """uint8 RGB [N, 3, H, W] as the network takes it, on its device; exactly what training's evaluation does."""
        return self.preprocess(images_NCHW.to(self.device))

    @torch.inference_mode()
    def probabilities(self, images_NCHW: Tensor) -> Tensor:
        """uint8 RGB [N, 3, H, W] to the probabilities of all classes, float32 [N, C] on the CPU.

        Of the logits' mean over the views of `evaluation.test_time`, as in the evaluations in training.
        """
        network = with_tta(self.module, self.config.evaluation.test_time)
        return class_probabilities(network(self.prepare(images_NCHW)), self.config.loss).cpu()

    def predict(self, pictures: Picture | Tensor | Sequence[Picture], batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """One prediction for each picture, in order.

        pictures   paths, PIL images or uint8 arrays [H, W], [H, W, 3] or [H, W, 4], of any size; one of them alone; or
                   a uint8 tensor [N, 3, H, W]
        Raises DataError naming the files that cannot be read.
        """
        if isinstance(pictures, Tensor):
            batches: Iterator[Tensor] = iter(torch.split(pictures, batch_size))
        else:
            alone = isinstance(pictures, str | os.PathLike | Image.Image | np.ndarray)
            given: list[Picture] = [pictures] if alone else list(pictures)  # type: ignore[list-item, arg-type]
            batches = (self._decode(given[i : i + batch_size]) for i in range(0, len(given), batch_size))
        return [self.prediction(row_C) for batch in batches for row_C in self.probabilities(batch)]

    def prediction(self, probabilities_C: Tensor) -> Prediction:
        """The probabilities of one picture with their names."""
        by_name = dict(zip(self.classes, probabilities_C.tolist(), strict=True))
        name = max(by_name, key=by_name.__getitem__)
        return Prediction(name, by_name[name], by_name)

    def _decode(self, pictures: Sequence[Picture]) -> Tensor:
        """uint8 [N, 3, S, S]."""
        size = self.preprocess.image_size
        images_NCHW = np.empty((len(pictures), 3, size, size), np.uint8)
        failures: list[Failure] = []
        for row, picture in enumerate(pictures):
            if isinstance(picture, np.ndarray):
                images_NCHW[row] = resize_and_crop(Image.fromarray(picture), size)
            elif isinstance(picture, Image.Image):
                images_NCHW[row] = resize_and_crop(picture, size)
            else:
                failures += decode_rows(images_NCHW, row, [os.fspath(picture)])
        if failures:
            raise damaged_images(failures)
        return torch.from_numpy(images_NCHW)


def load_model(
    reference: str | os.PathLike[str], *, device: str | torch.device | None = None, model: ModelSource | None = None
) -> TrainedModel:
    """The trained model of a run or a checkpoint (see `find_trained`), verified against its hashes.

    device   by default a GPU where there is one, else the CPU
    model    for a run of `trainlib.fit` with a model of its own: that module, or what makes it
    Raises CheckpointError where there is no such checkpoint, or it is damaged. None of its code is run.
    """
    return use(find_trained(reference), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), model)


def use(trained: Trained, device: torch.device, model: ModelSource | None = None) -> TrainedModel:
    """The model of a checkpoint that is found already."""
    return TrainedModel(
        module=build_module(trained, device, model),
        classes=trained.classes,
        preprocess=trained.preprocess,
        config=trained.config,
        step=trained.checkpoint.step,
        device=device,
    )
