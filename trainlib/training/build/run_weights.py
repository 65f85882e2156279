"""What a run's initial weights are, and how they want their images, made explicit at its start."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainlib.config import (
    Config,
    DataConfig,
    ModelConfig,
    Normalize,
    Resize,
    read_resolved,
    weights_run,
    with_older_values,
)
from trainlib.config.libraries import catalog
from trainlib.config.libraries.catalog import PRETRAINED
from trainlib.config.libraries.timm_models import PREFIX
from trainlib.data.pictures.configured import evaluation_of
from trainlib.errors import CheckpointError, WeightsError
from trainlib.models.sources.preprocessing import preprocessing_of
from trainlib.models.sources.published import HALF, Preprocessing
from trainlib.models.sources.registry import published_weights
from trainlib.models.sources.torchvision_models import INCEPTIONS
from trainlib.runs import RUNS
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.best import best_or_newest
from trainlib.training.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger("trainlib")

_NO_ARGUMENTS: Mapping[str, Any] = {}


def pin_weights(config: Config, *, fresh: bool = False) -> Config:
    """Return the configuration with all that it says of `model.weights` made explicit, as a run's config.yaml has it.

    Of `run:NAME` that is the SHA-256 of the weights, those of that run's best checkpoint, else its newest; of
    `pretrained`, torchvision's name of its present default, which a later version may change. Of any
    weights it is how they want their images: `auto` in `data.normalize` and `data.resize` becomes what they were
    trained with. A run that has begun keeps what it began with, whatever becomes of the other run, of a file or of
    torchvision; `fresh` begins anew.

    Raises WeightsError if there is no such run, or no checkpoint in it.
    """
    if config.model.weights is None:
        return config
    found = weights_run(config.model.weights)
    is_open = found is not None and found.sha256 is None
    began = RUNS / config.name / "config.yaml"
    if not fresh and began.is_file():
        recorded = read_resolved(began)
        weights = str(recorded.model.weights)
        is_default = config.model.weights in (PRETRAINED, "DEFAULT") and weights in catalog.weights(config.model.name)
        is_same = weights == config.model.weights or (is_open and weights.startswith(f"{config.model.weights}@"))
        if is_same or (is_default and recorded.model.name == config.model.name):
            began_with = {key: recorded.model.args[key] for key in ("transform_input",) if key in recorded.model.args}
            return _with(config, weights, recorded.data, began_with)
    if found is None:
        trained = preprocessing_of(config.model, config.data.channels)
        published = published_weights(config.model)
        weights = config.model.weights if published is None else published.name
        return _with_trained(config, weights, trained, _transform_input(config, trained))
    if not is_open:
        return config
    chosen, which = _checkpoint(found.name)
    pinned = f"{config.model.weights}@{_sha256(chosen)}"
    logger.info("model.weights: the %s ones of run %s, %s: %s", which, found.name, chosen.path.name, pinned)
    model = (chosen.manifest.get("config") or {}).get("model") or {}
    same = model.get("name") == config.model.name
    if _architecture(model.get("name")) != _architecture(config.model.name):
        raise WeightsError(
            f"model.weights: got run:{found.name}, a run of {model.get('name')}, and model.name is {config.model.name}"
            f": name the same model, or `launch export {found.name} --format state_dict` and take that file's tensors "
            "in their order with model.weights_keys=shapes"
        )
    trained, arguments = _preprocessing_in(chosen), transform_input_of(model) if same else {}
    if config.data.channels == 1:
        if arguments.get("transform_input"):  # which made values from -1 to 1 of three channels
            trained = replace(trained, mean=HALF, std=HALF)
        trained, arguments = trained.of_channels(1), {}
    return _with_trained(config, pinned, trained, arguments)


def _architecture(name: object) -> object:
    """Return a model's name without the tag that tells which of timm's weights it begins with."""
    return str(name).partition(".")[0] if str(name).startswith(PREFIX) else name


def _preprocessing_in(chosen: Checkpoint) -> Preprocessing:
    """Return what a checkpoint says of how its pictures were resized and normalised."""
    try:
        values: dict[str, Any] = chosen.manifest.get("preprocess") or {}
        normalize = Normalize(mean=list(values["mean"]), std=list(values["std"]))
        trained = Config.model_validate(with_older_values(chosen.manifest["config"])).data
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"model.weights: {chosen.path} does not say how its images are normalised") from error
    framing = evaluation_of(trained)
    fraction = min(framing.height, framing.width) / framing.shorter_side
    fit: Any = framing.fit
    return Preprocessing(tuple(normalize.mean), tuple(normalize.std), fraction, framing.interpolation, fit)


def local_weights(model: ModelConfig) -> ModelConfig:
    """Return the section with the path of the file in place of `run:NAME`; other sections as they are.

    Raises WeightsError if the pinned weights are no longer there.
    """
    found = weights_run(model.weights)
    if found is None:
        return model
    if found.sha256 is None:
        chosen, _ = _checkpoint(found.name)
    else:
        chosen = _pinned(RUNS / found.name, found.sha256)
    return model.model_copy(update={"weights": str((chosen.path / checkpoint.MODEL).absolute())})


def _checkpoint(name: str) -> tuple[Checkpoint, str]:
    checkpoints = RUNS / name / "checkpoints"
    if not checkpoints.is_dir() or checkpoints.is_symlink():
        raise WeightsError(f"model.weights: got run:{name}, must be a run in {RUNS.absolute()} that has a checkpoint")
    try:
        return best_or_newest(RUNS / name)
    except CheckpointError as error:
        raise WeightsError(f"model.weights: {error}") from error


def _pinned(run: Path, sha256: str) -> Checkpoint:
    for path in steps_in(run / "checkpoints").values():
        try:
            found = checkpoint.verify(path)
        except CheckpointError:
            continue
        if _sha256(found) == sha256:
            return found
    raise WeightsError(
        f"model.weights: {run} no longer holds the weights that this run began with (SHA-256 {sha256}): bring that "
        "checkpoint back, or use `--fresh` to begin again with those that it holds now"
    )


def _sha256(found: Checkpoint) -> str:
    return str(found.manifest["files"][checkpoint.MODEL]["sha256"])


def transform_input_of(values: Mapping[str, Any]) -> dict[str, bool]:
    """Return the argument `transform_input` that a run's GoogLeNet or Inception was built with; empty for others."""
    model = ModelConfig.model_validate(values)
    if model.name not in INCEPTIONS:
        return {}
    by_name = model.weights is not None and published_weights(model) is not None
    return {"transform_input": bool(model.args.get("transform_input", by_name))}


def _transform_input(config: Config, trained: Preprocessing | None) -> dict[str, bool]:
    """Return the argument that a file of GoogLeNet's or Inception's published weights needs, where that is known.

    With `auto` its images have values from -1 to 1, which is what `transform_input` makes of ImageNet's normalisation.
    """
    is_file = config.model.name in INCEPTIONS and published_weights(config.model) is None
    is_known = trained is not None and config.data.normalize == "auto" and config.data.channels == 3
    return {"transform_input": False} if is_file and is_known else {}


def _with_trained(
    config: Config, weights: str, trained: Preprocessing | None, arguments: Mapping[str, Any] = _NO_ARGUMENTS
) -> Config:
    """Return the configuration with these weights, and with what they were trained with, where that is known."""
    if trained is None:
        return config
    size = trained.resized_side(config.data.image_size)
    resize = Resize.model_validate(
        {"fit": trained.fit, "size": size, "interpolation": trained.interpolation or "bilinear"}
    )
    normalize = Normalize(mean=list(trained.mean), std=list(trained.std))
    known = config.data.model_copy(update={"normalize": normalize, "resize": resize})
    return _with(config, weights, known, arguments)


def _with(config: Config, weights: str, known: DataConfig, arguments: Mapping[str, Any]) -> Config:
    """Return the configuration with these weights and arguments, and with the known values for each `auto`."""
    own, update = config.data.resize, dict[str, Any]()
    if config.data.normalize == "auto":
        update["normalize"] = known.normalize
    if not config.data.is_older:
        fit = own.fit if "fit" in own.model_fields_set else known.resize.fit
        has_size = fit == "crop" or fit == known.resize.fit == "squash"
        size = known.resize.size if own.size == "auto" and has_size else own.size
        interpolation = known.resize.interpolation if own.interpolation == "auto" else own.interpolation
        update["resize"] = own.model_copy(update={"fit": fit, "size": size, "interpolation": interpolation})
    missing = {key: value for key, value in arguments.items() if key not in config.model.args}
    model = config.model.model_copy(update={"weights": weights, **missing})
    return config.model_copy(update={"model": model, "data": config.data.model_copy(update=update)})
