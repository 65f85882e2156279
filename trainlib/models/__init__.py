"""Networks, their weights, losses, optimizers and schedules."""

from trainlib.models.classifier import Classifier, build_model, check_forward, preserve_buffers, set_train_mode
from trainlib.models.weights import weights_normalization

__all__ = ["Classifier", "build_model", "check_forward", "preserve_buffers", "set_train_mode", "weights_normalization"]
