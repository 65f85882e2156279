"""Whether the steps of a run may be replayed as a CUDA graph."""

from __future__ import annotations

import logging

from trainlib.config import Config
from trainlib.data.batches.loader import DataModule
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.platform.accelerators import captures_graphs
from trainlib.training.metrics.progress import Progress
from trainlib.training.step.graph import GraphSteps
from trainlib.training.step.state import TrainState
from trainlib.training.step.update import DeviceCheckedUpdate

logger = logging.getLogger("trainlib")


def build_graph_steps(
    config: Config, state: TrainState, samples: DataModule, progress: Progress, custom: CustomParts
) -> GraphSteps | None:
    """Return what replays steps on this device; None where all steps run eagerly, which the log gives a reason for."""
    if config.train.cuda_graph is False or not captures_graphs(state.accelerator.device):
        return None
    if reason := _why_not(config, state, samples, progress, custom):
        logger.info("CUDA graph: none, %s", reason)
        return None
    return GraphSteps(state, samples.train, samples.augmentation)


def _why_not(
    config: Config, state: TrainState, samples: DataModule, progress: Progress, custom: CustomParts
) -> str | None:
    """Return why no step can be captured; None where they can."""
    augmentation, limit = samples.augmentation, progress.fitting
    of_host = (augmentation.changes, augmentation.erasing, augmentation.mixing)
    reasons = {
        "as several processes train": state.accelerator.num_processes > 1,
        "as elastic mode sets seeds within a step": config.train.reproducibility == "elastic",
        "as the host decides about each update": not isinstance(state.update, DeviceCheckedUpdate),
        "as policies, colour jitter, erasing and mixing are drawn by the host": any(map(bool, of_host)),
        "as a batch is computed in pieces": limit is not None and limit < samples.micro_batch_size,
        "as model.unfreeze changes what is trained": bool(config.model.unfreeze),
        "as train.compile made the kernels": bool(progress.compiled),
        "as the code of the model or the loss is not ours": custom.model is not None
        or custom.loss is not None
        or "/" in config.model.name,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
