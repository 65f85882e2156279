"""Training from Python: `trainlib.fit`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from trainlib.config import Config, differences, load_config, read_resolved
from trainlib.data import Dataset
from trainlib.data.images import InMemoryImages
from trainlib.errors import EXIT_STOPPED
from trainlib.inference.trained_model import find_trained
from trainlib.models.custom_parts import CustomParts, ModelSource
from trainlib.models.losses import CustomLoss
from trainlib.runs.directory import RUNS, RunDirectory
from trainlib.runs.logs import logging_to_console
from trainlib.runs.stop_request import StopFlag
from trainlib.train import train

logger = logging.getLogger("trainlib")


def fit(
    *config: str | Mapping[str, Any],
    model: ModelSource | None = None,
    dataset: Dataset | None = None,
    loss: CustomLoss | None = None,
    fresh: bool = False,
    resume: str | None = None,
) -> RunDirectory:
    """Train to the end of the configuration, as `launch run` does, and return the finished run's directory.

    config    files, names of shipped configurations, mappings of the same form, and `key=value`, as for `launch run`
    model     a torch.nn.Module, which is trained in place, or a function or class that makes one for a number of
              classes and is called with torch seeded: images float32 [N, 3, S, S] to logits [N, C]
    dataset   from `image_dataset`; `data.image_size` is then by default its images' own, where these are square
    loss      logits float32 [N, C] and labels int64 [N] to the loss of each sample [N], or to their mean
    fresh     move an earlier run of this name aside and begin again
    resume    "" to accept harmless changes of the configuration, or the name of one of the run's checkpoints

    Each of model, dataset and loss takes the place of what the configuration names. Called on every rank of
    `torchrun` or `accelerate launch`, with the same arguments. A run that was interrupted is continued, one that is
    finished is returned as it is. A given module holds the weights that were tested.
    Raises UserError for mistakes, TrainlaunchError for what goes wrong on the way, and SystemExit(75) when the run was
    asked to stop and has a checkpoint: what follows in a script sees finished runs only.
    """
    custom = CustomParts(model, dataset, loss)
    flag = StopFlag()
    flag.install()
    try:
        with logging_to_console():
            resolved = load_config([*_image_size(dataset), *config], custom.names())
            run = RunDirectory(RUNS / resolved.name)
            if not fresh and resume is None and _is_finished(run, resolved):
                _give_back(run, model)
                return run
            rank = int(os.environ.get("RANK", "0"))
            done = train(resolved, flag, rank=rank, fresh=fresh, resume=resume, custom=custom)
    finally:
        flag.uninstall()
    if not done:
        raise SystemExit(EXIT_STOPPED)
    return run


def _image_size(dataset: Dataset | None) -> list[dict[str, Any]]:
    """The lowest layer of the configuration: the size that the images have."""
    if dataset is None or not isinstance(dataset.train.images, InMemoryImages):
        return []
    height, width = dataset.train.images.images_NCHW.shape[2:]
    return [{"data": {"image_size": height}}] if height == width else []


def _is_finished(run: RunDirectory, config: Config) -> bool:
    """Whether this very configuration is trained already: a script of several runs comes past it when it goes on."""
    return run.summary().get("status") == "completed" and not differences(read_resolved(run.config_file), config)


def _give_back(run: RunDirectory, model: ModelSource | None) -> None:
    """What training would leave: the tested weights in a module that was given."""
    logger.info("%s is finished", run.path)
    if isinstance(model, nn.Module):
        model.load_state_dict(find_trained(run.path).checkpoint.model_state())
