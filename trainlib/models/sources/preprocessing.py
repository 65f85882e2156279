"""What the initial weights of a model were trained with: how its pictures were resized and normalised."""

from __future__ import annotations

from dataclasses import replace

from trainlib.config import ModelConfig, is_custom
from trainlib.config.libraries.catalog import weights_file
from trainlib.config.libraries.timm_models import is_from_timm
from trainlib.errors import WeightsError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.sources.published import HALF, IMAGENET_CLASSES, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from trainlib.models.sources.registry import (
    BUILT_FOR_CLASSES,
    build_architecture,
    last_layers,
    published_weights,
)
from trainlib.models.sources.timm_models import published_preprocessing
from trainlib.models.sources.torchvision_models import INCEPTIONS
from trainlib.models.weights.files import read_state


def preprocessing_of(config: ModelConfig, channels: int = 3) -> Preprocessing | None:
    """Return what `model.weights` were trained with; None where that is not known, or there are none.

    Of published weights it is what their source says. Of a file whose last layer has as many outputs as that of the
    published network it is ImageNet's mean and standard deviation, or all that timm says of its own weights. For images
    of one channel it is the means of these. Reads no more than the shapes of the file's tensors. Raises WeightsError
    for a name that there is not.
    """
    if config.weights is None or is_custom(config.name):
        return None
    found = published_weights(config)
    if found is not None:
        trained = found.preprocessing
        if channels == 1 and config.name in INCEPTIONS:  # without `transform_input`, they take values from -1 to 1
            trained = replace(trained, mean=HALF, std=HALF)
        return trained.of_channels(channels)
    if not _has_published_head(config):
        return None
    if is_from_timm(config.name):
        trained = published_preprocessing(config)
    else:
        # The published files of these were made for values from -1 to 1, which `transform_input` turns ImageNet's into.
        from_minus_1 = config.name in INCEPTIONS and not config.args.get("transform_input")
        trained = Preprocessing(HALF, HALF) if from_minus_1 else Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    return trained.of_channels(channels)


def _has_published_head(config: ModelConfig) -> bool:
    """Return True if `model.weights` is a file of the published architecture with its last layer of as many classes."""
    path = None if config.weights is None else weights_file(config.weights)
    if path is None or config.name in BUILT_FOR_CLASSES or not path.is_file():
        return False
    try:
        state = read_state(path, "meta")
    except WeightsError:
        return False  # which is told where the weights are read
    with empty_init():
        module = build_architecture(config, IMAGENET_CLASSES, 224)
        head = last_layers(module)[0]
        classes = len(module.state_dict().get(f"{head}.weight", ()))
    heads = [tensor for name, tensor in state.items() if name == f"{head}.weight" or name.endswith(f".{head}.weight")]
    if config.weights_keys == "shapes":
        heads = [tensor for tensor in state.values() if tensor.ndim > 1][-1:]
    return classes > 0 and any(len(tensor) == classes for tensor in heads)
