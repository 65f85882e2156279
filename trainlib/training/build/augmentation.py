"""The random changes of training images that a configuration, and a transform of the user's own, ask for."""

from __future__ import annotations

from trainlib.config import Config, PolicyConfig, sides
from trainlib.data.augment.augmentation import Augmentation, Change
from trainlib.data.augment.custom import CustomTransform, Transform
from trainlib.data.augment.mix import Mixing
from trainlib.data.augment.policies.jitter import ColorJitter
from trainlib.data.augment.policies.policy import AugMix, AutoAugment, Policy, RandAugment, TrivialAugment

POLICIES = {"trivial": TrivialAugment, "randaugment": RandAugment, "autoaugment": AutoAugment, "augmix": AugMix}


def build_augmentation(config: Config, transform: Transform | None = None) -> Augmentation:
    """Return the random changes of training images. Raises UserError for a transform that cannot be used."""
    augment = config.data.augment
    changes: list[Change] = []
    if augment.policy is not None:
        changes.append(_policy(augment.policy))
    if augment.color_jitter is not None:
        changes.append(ColorJitter(**augment.color_jitter.model_dump()))
    if transform is not None:
        size = config.data.train_image_size or config.data.image_size
        changes.append(CustomTransform(transform).checked(config.data.channels, *sides(size)))
    return Augmentation(
        config.seed,
        augment.flip,
        augment.crop_padding,
        augment.fill,
        augment.vertical_flip,
        tuple(changes),
        augment.erase,
        Mixing(config.seed, augment.mixup, augment.cutmix),
    )


def _policy(policy: str | PolicyConfig) -> Policy:
    arguments = {"name": policy} if isinstance(policy, str) else policy.model_dump(exclude_none=True)
    made: Policy = POLICIES[arguments.pop("name")](**arguments)
    return made
