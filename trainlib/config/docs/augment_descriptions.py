"""Descriptions of the keys of `data.augment`."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description

D = Description

AUGMENT_DESCRIPTIONS: Mapping[str, Description] = {
    "data.augment": D(
        "Random changes of training images; `{}`: none.",
        "data.augment='{flip: true, crop_padding: 4}'",
    ),
    "data.augment.crop": D(
        "Cut training images at random out of the whole picture, and resize them: torchvision's RandomResizedCrop, "
        "drawn from `seed`, epoch and sample. `{}`: with the values below. Not together with `crop_padding`.",
        "data.augment='{crop: {}, crop_padding: 0}'",
    ),
    "data.augment.crop.scale": D(
        "The least and the largest share of the picture's area.",
        "data.augment='{crop: {scale: [0.35, 1.0]}, crop_padding: 0}'",
    ),
    "data.augment.crop.ratio": D(
        "The least and the largest width for a height of 1.",
        "data.augment='{crop: {ratio: [1.0, 1.0]}, crop_padding: 0}'",
    ),
    "data.augment.crop.interpolation": D(
        "As in `data.resize`.",
        "data.augment='{crop: {interpolation: bicubic}, crop_padding: 0}'",
    ),
    "data.augment.flip": D(
        "`true`: in each epoch, mirror a random half of the images left to right. `alternating`: mirror a random "
        "half in the first epoch, and in every other epoch the half that was not mirrored in the one before, so "
        "that two epochs show each image both ways.",
        "data.augment.flip=alternating",
    ),
    "data.augment.crop_padding": D(
        "Pad the image by this many pixels on each side, then cut out an image of its size at a random place.",
        "data.augment.crop_padding=4",
    ),
    "data.augment.fill": D(
        "Content of the padding: `black`, or `reflect`, the image mirrored at its edges.",
        "data.augment.fill=reflect",
    ),
    "data.augment.vertical_flip": D(
        "Turn half of the images upside down, another half in each epoch.",
        "data.augment.vertical_flip=true",
    ),
    "data.augment.policy": D(
        "Random operations on geometry and colour, as in torchvision: `trivial` (TrivialAugmentWide), `randaugment`, "
        "`autoaugment` or `augmix`; with a section, with arguments. See [augmentation.md](augmentation.md).",
        "data.augment.policy=trivial",
    ),
    "data.augment.policy.name": D(
        "The policy: `trivial` takes no arguments.",
        "data.augment.policy='{name: randaugment}'",
    ),
    "data.augment.policy.num_ops": D(
        "`randaugment`: operations on each image. Default: 2.",
        "data.augment.policy='{name: randaugment, num_ops: 3}'",
    ),
    "data.augment.policy.magnitude": D(
        "`randaugment`: their strength, 0 to 30. Default: 9.",
        "data.augment.policy='{name: randaugment, magnitude: 15}'",
    ),
    "data.augment.policy.policy": D(
        "`autoaugment`: the data set that it was learned for. Default: `imagenet`.",
        "data.augment.policy='{name: autoaugment, policy: cifar10}'",
    ),
    "data.augment.policy.severity": D(
        "`augmix`: the largest strength of its operations, 1 to 10. Default: 3.",
        "data.augment.policy='{name: augmix, severity: 5}'",
    ),
    "data.augment.policy.mixture_width": D(
        "`augmix`: number of chains of operations whose results are averaged with the image. Default: 3.",
        "data.augment.policy='{name: augmix, mixture_width: 2}'",
    ),
    "data.augment.policy.alpha": D(
        "`augmix`: how even the weights of that average are. Default: 1.0.",
        "data.augment.policy='{name: augmix, alpha: 0.5}'",
    ),
    "data.augment.color_jitter": D(
        "Change brightness, contrast, saturation and hue at random, in random order, as torchvision's ColorJitter.",
        "data.augment.color_jitter='{brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}'",
    ),
    "data.augment.color_jitter.brightness": D(
        "b: multiply all values by a factor from max(0, 1 - b) to 1 + b.",
        "data.augment.color_jitter='{brightness: 0.4}'",
    ),
    "data.augment.color_jitter.contrast": D(
        "The same for the distance from the image's mean grey.",
        "data.augment.color_jitter='{contrast: 0.4}'",
    ),
    "data.augment.color_jitter.saturation": D(
        "The same for the distance from each pixel's own grey.",
        "data.augment.color_jitter='{saturation: 0.4}'",
    ),
    "data.augment.color_jitter.hue": D(
        "h: turn the hue by up to h of the colour circle, either way; at most 0.5.",
        "data.augment.color_jitter='{hue: 0.1}'",
    ),
    "data.augment.custom": D(
        "`code:NAME`: a random change of your own ([own_code.md](own_code.md)). `custom:NAME` in a run's own "
        "config.yaml stands for one that was given in Python ([python.md](python.md)).",
        "data.augment.custom=code:darken",
    ),
    "data.augment.erase": D(
        "Random erasing: the probability that a rectangle of an image, 2 to 33 % of it, is set to zero after "
        "normalization.",
        "data.augment.erase=0.25",
    ),
    "data.augment.mixup": D(
        "MixUp: alpha of the Beta distribution by which each batch's images and labels are averaged with those of the "
        "sample before them in the global batch. 0: off.",
        "data.augment.mixup=0.2",
    ),
    "data.augment.cutmix": D(
        "CutMix: the same with a rectangle of the image before, cut out and pasted. Where `mixup` and `cutmix` are "
        "both on, each batch takes one of them, evenly. 0: off.",
        "data.augment.cutmix=1.0",
    ),
}
