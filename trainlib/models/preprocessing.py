"""What the initial weights of a model were trained with: how its pictures were resized and normalised."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def of_channels(self, channels: int) -> Preprocessing:
        """Return this for images of so many channels: for grey ones with the means of the numbers of the colours."""
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def resized_side(self, image_size: Size) -> int:
        """Return what the shorter side of a picture is scaled to, before an image of this size is cut out."""
        shorter = min(sides(image_size))
        return shorter if self.crop_fraction is None else round(shorter / self.crop_fraction)


def preprocessing_of(config: ModelConfig, channels: int = 3) -> Preprocessing | None:
    """Return what `model.weights` were trained with; None where that is not known, or there are none.

    Of torchvision's weights it is what their `transforms()` say. Of a file whose last layer has 1000 outputs, as that
    of a network trained on ImageNet, it is ImageNet's mean and standard deviation. For images of one channel it is the
    means of these. Reads no more than the shapes of the file's tensors. Raises WeightsError for a name that there is
    not.
    """
    if config.weights is None or is_custom(config.name):
        return None
    member = published_weights(config)
    if member is None:
        if not _has_imagenet_head(config):
            return None
        # The published files of these were made for values from -1 to 1, which `transform_input` turns ImageNet's into.
        from_minus_1 = config.name in INCEPTIONS and not config.args.get("transform_input")
        trained = Preprocessing(HALF, HALF) if from_minus_1 else Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
        return trained.of_channels(channels)
    transform = member.value.transforms()
    mean, std = tuple(transform.mean), tuple(transform.std)
    if channels == 1 and config.name in INCEPTIONS:  # without `transform_input`, they take values from -1 to 1
        mean, std = HALF, HALF
    [crop], [resized] = transform.crop_size, transform.resize_size
    return Preprocessing(mean, std, crop / resized, transform.interpolation.value).of_channels(channels)


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
