"""What the initial weights of a model were trained with: how its pictures were resized and normalised."""

from __future__ import annotations

from dataclasses import dataclass

from trainlib.config import ModelConfig, Size, is_custom, sides
from trainlib.config.libraries.catalog import weights_file
from trainlib.errors import WeightsError
from trainlib.models.architectures.registry import BUILT_FOR_CLASSES, INCEPTIONS, build_architecture, empty_init
from trainlib.models.classifier import last_layer
from trainlib.models.weights import Channels, published_weights, read_state

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
HALF: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """The resizing and normalisation that a model's weights were trained with.

    mean, std       of each channel, on a 0..1 scale
    crop_fraction   the share of the shorter side that was cut out after resizing; None where it is not known
    interpolation   of the resizing; None where it is not known
    """

    mean: Channels
    std: Channels
    crop_fraction: float | None = None
    interpolation: str | None = None

    def resized_side(self, image_size: Size) -> int:
        """Return what the shorter side of a picture is scaled to, before an image of this size is cut out."""
        shorter = min(sides(image_size))
        return shorter if self.crop_fraction is None else round(shorter / self.crop_fraction)


def preprocessing_of(config: ModelConfig) -> Preprocessing | None:
    """Return what `model.weights` were trained with; None where that is not known, or there are none.

    Of torchvision's weights it is what their `transforms()` say. Of a file whose last layer has 1000 outputs, as that
    of a network trained on ImageNet, it is ImageNet's mean and standard deviation. Reads no more than the shapes of the
    file's tensors. Raises WeightsError for a name that there is not.
    """
    if config.weights is None or is_custom(config.name):
        return None
    member = published_weights(config)
    if member is None:
        if not _has_imagenet_head(config):
            return None
        # The published files of these were made for values from -1 to 1, which `transform_input` turns ImageNet's into.
        from_minus_1 = config.name in INCEPTIONS and not config.args.get("transform_input")
        return Preprocessing(HALF, HALF) if from_minus_1 else Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    transform = member.value.transforms()
    (r, g, b), (sr, sg, sb) = transform.mean, transform.std
    [crop], [resized] = transform.crop_size, transform.resize_size
    return Preprocessing((r, g, b), (sr, sg, sb), crop / resized, transform.interpolation.value)


def _has_imagenet_head(config: ModelConfig) -> bool:
    """Return True if `model.weights` is a file of the published architecture with its last layer of 1000 outputs."""
    path = None if config.weights is None else weights_file(config.weights)
    if path is None or config.name in BUILT_FOR_CLASSES or not path.is_file():
        return False
    try:
        state = read_state(path, "meta")
    except WeightsError:
        return False  # which is told where the weights are read
    with empty_init():
        head = f"{last_layer(build_architecture(config, IMAGENET_CLASSES, 224))}.weight"
    heads = [tensor for name, tensor in state.items() if name == head or name.endswith(f".{head}")]
    return any(len(tensor) == IMAGENET_CLASSES for tensor in heads)
