"""A trained model, ready for use from Python: `trainlib.load_model`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainlib.config import Config, custom_part_missing, is_custom
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.pictures.channels import in_channels
from trainlib.data.pictures.configured import evaluation_of
from trainlib.data.pictures.decoding.decode_some import decode_some
from trainlib.data.pictures.decoding.failures import damaged_images
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.pictures.framing import Framing
from trainlib.errors import CheckpointError, UserError
from trainlib.inference.chosen_checkpoint import ChosenCheckpoint, find_checkpoint
from trainlib.inference.own_parts import own_parts
from trainlib.models import build_for_checkpoint, lay_out_channels_last
from trainlib.models.forward.tta import with_tta
from trainlib.models.own_parts.custom_parts import ModelSource, build_custom
from trainlib.models.weights.files import load_weights
from trainlib.training.metrics.label_sets import predicted_sets
from trainlib.training.metrics.predictions import class_probabilities

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

BATCH_SIZE = 64


def build_module(chosen: ChosenCheckpoint, device: torch.device, model: ModelSource | None = None) -> nn.Module:
    """Return the network with the checkpoint's weights, in eval mode. Torch's random generators are not used.

    model   the `model` argument of the `trainlib.fit` call that trained the run, if it had one

    Raises CheckpointError if the weights do not fit the network.
    """
    config, num_classes = chosen.config, len(chosen.classes)
    state = chosen.checkpoint.model_state()
    if is_custom(config.model.name):
        if model is None:
            raise UserError(
                f"model.name: {custom_part_missing(config.model.name)}, or give it to load_model as `model`"
            )
        module = build_custom(model, num_classes).module
    else:
        module = build_for_checkpoint(config.model, num_classes, config.data.image_size, channels=config.data.channels)
    try:
        load_weights(module, state, assign=not is_custom(config.model.name))
    except RuntimeError as error:
        raise CheckpointError(f"{chosen.checkpoint.path}: does not fit {config.model.name}: {error}") from error
    if not is_custom(config.model.name):
        lay_out_channels_last(module)  # as in training, so that figures are the same in every bit
    return module.to(device).eval()


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one picture, its probability, and the probability of every class by name.

    labels   the classes that the picture has: that one alone or, by a model of several labels, all whose probability
             is at least their threshold, most probable first; there may be none
    """

    name: str
    probability: float
    probabilities: Mapping[str, float]
    labels: tuple[str, ...]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, with the classes and the preprocessing that it was trained with.

    module       the network in eval mode; it maps images that `prepare` returns to logits [N, C]
    classes      names of the C classes, in the order of the logits
    preprocess   mean and standard deviation of each channel
    config       the configuration of the training
    step         the number of training steps that the weights have
    device       where the network is
    thresholds   of a model that gives a picture several labels: the probability from which on it has each class
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    config: Config
    step: int
    device: torch.device
    thresholds: tuple[float, ...] | None = None

    def prepare(self, pictures_NCHW: Tensor) -> Tensor:
        """Resize and normalise uint8 pictures [N, 3 or 1, H, W] as in evaluation: float32 on `device`."""
        return self.preprocess(self._framed(pictures_NCHW).to(self.device))

    def _framed(self, pictures_NCHW: Tensor) -> Tensor:
        pictures_NCHW = in_channels(pictures_NCHW, self.config.data.channels)
        if self.config.data.is_older:  # these are resized on the device
            return pictures_NCHW
        return self.framing(pictures_NCHW.cpu())

    @property
    def framing(self) -> Framing:
        """How pictures become images of the model's size, as in the evaluations of the training."""
        return evaluation_of(self.config.data)

    def probabilities(self, pictures_NCHW: Tensor) -> Tensor:
        """Return the probabilities of all classes, float32 [N, C] on the CPU, for uint8 pictures [N, 3, H, W].

        Grey ones, [N, 1, H, W], do as well: they are made what the model takes.

        They come from the mean of the logits over the views of `evaluation.test_time`, as in training.
        """
        return self.probabilities_of_images(self._framed(pictures_NCHW))

    @torch.inference_mode()
    def probabilities_of_images(self, images_NCHW: Tensor) -> Tensor:
        """Return what `probabilities` does for images that are resized already, as `reader` gives them."""
        network = with_tta(self.module, self.config.evaluation.test_time)
        logits_NC = network(self.preprocess(images_NCHW.to(self.device)))
        return class_probabilities(logits_NC, self.config.loss, of_sets=self.thresholds is not None).cpu()

    def predict(self, pictures: Picture | Tensor | Sequence[Picture], batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """Return one prediction for each picture, in order.

        pictures     paths, PIL images or uint8 arrays [H, W], [H, W, 3] or [H, W, 4], of any size; a single one of
                     them; or a uint8 tensor [N, 3 or 1, H, W]
        batch_size   pictures that go through the network at once

        Raises DataError naming the files that cannot be read.
        """
        if isinstance(pictures, Tensor):
            batches: Iterator[Tensor] = map(self._framed, torch.split(pictures, batch_size))
        else:
            alone = isinstance(pictures, str | os.PathLike | Image.Image | np.ndarray)
            given: list[Picture] = [pictures] if alone else list(pictures)  # type: ignore[list-item, arg-type]
            batches = (self._decode(given[i : i + batch_size]) for i in range(0, len(given), batch_size))
        return [self.prediction(row_C) for batch in batches for row_C in self.probabilities_of_images(batch)]

    def prediction(self, probabilities_C: Tensor) -> Prediction:
        """Return the prediction for the probabilities of one picture, float [C]."""
        by_name = dict(zip(self.classes, probabilities_C.tolist(), strict=True))
        name = max(by_name, key=by_name.__getitem__)
        if self.thresholds is None:
            return Prediction(name, by_name[name], by_name, (name,))
        [is_named_C] = predicted_sets(probabilities_C[None], self.thresholds).tolist()
        named = [name for name, is_named in zip(self.classes, is_named_C, strict=True) if is_named]
        return Prediction(name, by_name[name], by_name, tuple(sorted(named, key=lambda label: -by_name[label])))

    @property
    def reader(self) -> PictureReader:
        """How pictures become images, as in the evaluations of the training."""
        return PictureReader.of(self.config.data)

    def _decode(self, pictures: Sequence[Picture]) -> Tensor:
        """Read, resize and crop the pictures: uint8 [N, C, S, S]."""
        files = {row: os.fspath(p) for row, p in enumerate(pictures) if isinstance(p, str | os.PathLike)}
        images_NCHW = torch.empty((len(pictures), *self.reader.shape()), dtype=torch.uint8)
        for row, picture in enumerate(pictures):
            if not isinstance(picture, str | os.PathLike):
                image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
                images_NCHW[row] = self.reader.of_image(image)
        decoded_NCHW, failures = decode_some(PlainFiles([*files.values()]), range(len(files)), self.reader)
        if failures:
            raise damaged_images([([*files.values()][row], reason) for row, reason in sorted(failures.items())])
        images_NCHW[[*files]] = decoded_NCHW
        return images_NCHW


def load_model(
    reference: str | os.PathLike[str], *, device: str | torch.device | None = None, model: ModelSource | None = None
) -> TrainedModel:
    """Return the trained model of a run or a checkpoint, verified against its hashes.

    reference   a run's name or directory, or a checkpoint's directory or model file
    device      by default a GPU if there is one, else the CPU
    model       for a run of `trainlib.fit(model=...)`: the same argument

    Raises CheckpointError if there is no such checkpoint, or if it is damaged. No code from the checkpoint is run; that
    of `--code`, which the run holds a copy of, only if it was named on a command line of this user's before.
    """
    return trained_model(find_checkpoint(reference), device, model)


def trained_model(
    chosen: ChosenCheckpoint,
    device: str | torch.device | None = None,
    model: ModelSource | None = None,
    code: Sequence[str] = (),
    command: Sequence[str] = (),
) -> TrainedModel:
    """Return the trained model of a checkpoint, by default on a GPU if there is one.

    code, command   the values of `--code`, and the command, for `own_parts`
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if model is None:
        words = [*command] or ["launch", "predict", str(chosen.run_directory), "IMAGE"]
        model = own_parts(chosen, code, words).model
    return model_of(chosen, place, model)


def model_of(chosen: ChosenCheckpoint, device: torch.device, model: ModelSource | None = None) -> TrainedModel:
    """Return the trained model of a checkpoint."""
    return TrainedModel(
        module=build_module(chosen, device, model),
        classes=chosen.classes,
        preprocess=chosen.preprocess,
        config=chosen.config,
        step=chosen.checkpoint.step,
        device=device,
        thresholds=chosen.thresholds,
    )
