"""Classifiers: from the configuration's `model` section to a module with the right number of classes."""

from trainlib.models.build import Classifier, buffers_kept, build_model, check_forward, set_train_mode
from trainlib.models.weights import weights_normalization

__all__ = ["Classifier", "buffers_kept", "build_model", "check_forward", "set_train_mode", "weights_normalization"]
