"""Networks, their weights, losses, optimizers and schedules."""

from trainlib.models.classifier import (
    Classifier,
    build_for_checkpoint,
    build_model,
    check_forward,
    keep_batchnorm,
    lay_out_channels_last,
    preserve_buffers,
    set_train_mode,
)
from trainlib.models.sources.preprocessing import preprocessing_of
from trainlib.models.sources.published import Preprocessing

__all__ = [
    "Classifier",
    "Preprocessing",
    "build_for_checkpoint",
    "build_model",
    "check_forward",
    "keep_batchnorm",
    "lay_out_channels_last",
    "preprocessing_of",
    "preserve_buffers",
    "set_train_mode",
]
