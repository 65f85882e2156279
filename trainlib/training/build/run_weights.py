"""Initial weights that another run has trained, `model.weights: run:NAME`, pinned to one checkpoint at the start."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlib.config import Config, ModelConfig, Normalize, read_resolved, weights_run
from trainlib.errors import CheckpointError, WeightsError
from trainlib.models.architectures.registry import INCEPTIONS
from trainlib.models.weights import published_weights
from trainlib.runs import RUNS
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.best import best_or_newest
from trainlib.training.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger("trainlib")


def pin_weights(config: Config, *, fresh: bool = False) -> Config:
    """Return the configuration with the SHA-256 of the weights behind `run:NAME`, and with how they want their images.

    They are those of the other run's best checkpoint, else its newest. A run that has begun keeps those that it began
    with, whatever becomes of the other; `fresh` begins anew. `data.normalize: auto` becomes the other run's constants.

    Raises WeightsError if there is no such run, or no checkpoint in it.
    """
    found = weights_run(config.model.weights)
    if found is None or found.sha256 is not None:
        return config
    began = RUNS / config.name / "config.yaml"
    if not fresh and began.is_file():
        recorded = read_resolved(began)
        if str(recorded.model.weights).startswith(f"{config.model.weights}@"):
            began_with = {key: recorded.model.args[key] for key in ("transform_input",) if key in recorded.model.args}
            return _with(config, str(recorded.model.weights), recorded.data.normalize, began_with)
    chosen, which = _checkpoint(found.name)
    pinned = f"{config.model.weights}@{_sha256(chosen)}"
    logger.info("model.weights: the %s ones of run %s, %s: %s", which, found.name, chosen.path.name, pinned)
    preprocess: dict[str, Any] = chosen.manifest.get("preprocess") or {}
    try:
        normalize: Any = Normalize(mean=list(preprocess["mean"]), std=list(preprocess["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"model.weights: {chosen.path} does not say how its images are normalised") from error
    model = (chosen.manifest.get("config") or {}).get("model") or {}
    same = model.get("name") == config.model.name
    return _with(config, pinned, normalize, transform_input_of(model) if same else {})


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


def _with(config: Config, weights: str, normalize: Any, arguments: Mapping[str, Any]) -> Config:
    own = {key: value for key, value in arguments.items() if key not in config.model.args}
    model = config.model.model_copy(update={"weights": weights, **own})
    keep = config.data.normalize != "auto"
    data = config.data if keep else config.data.model_copy(update={"normalize": normalize})
    return config.model_copy(update={"model": model, "data": data})
