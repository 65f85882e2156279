"""Descriptions of the configuration's keys, for the tables of docs/config.md."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description
from trainlib.config.docs.run_descriptions import RUN_DESCRIPTIONS

D = Description

DESCRIPTIONS: Mapping[str, Description] = {
    "name": D(
        "The run, and its folder `runs/<name>`: letters, digits, `.`, `_` and `-`, at most 100. Not given, it is the "
        "first file's name.",
        "name=first-try",
    ),
    "seed": D("Decides initial weights, order, augmentation, dropout, and which samples validate.", "seed=1"),
    "data": D("What to train and test on.", "data='{name: synthetic}'"),
    "data.name": D(
        "`cifar10` (downloaded once and verified), `image_folder` (`<root>/train/<class>/*` and "
        "`<root>/test/<class>/*`) or `synthetic` (drawings made on the spot). `custom:...` in a run's own config.yaml"
        " stands for a data set given in Python ([python.md](python.md)).",
        "data.name=image_folder",
    ),
    "data.root": D("Folder of the data: the class folders, or where CIFAR-10 is kept.", "data.root=pictures"),
    "data.val_fraction": D(
        "The part of the training set that is held out for validation, chosen by `seed`. 0: no validation, so no best"
        " checkpoint, and the last weights are tested.",
        "data.val_fraction=0.2",
    ),
    "data.image_size": D(
        "Height and width of the model's input. Images of another size are scaled to it.",
        "data.image_size=64",
    ),
    "data.shuffle": D("Another order in each epoch; `false`: the data set's own, in all.", "data.shuffle=false"),
    "data.drop_last": D(
        "Leave out an epoch's last batch where it is smaller. Otherwise it counts by its own size.",
        "data.drop_last=true",
    ),
    "data.normalize": D(
        "`auto`: subtract the mean and divide by the standard deviation of each channel, those that `model.weights` "
        "were trained with, else the training set's own. `none`: images from 0 to 1. Or the numbers themselves.",
        "data.normalize=none",
    ),
    "data.normalize.mean": D(
        "Mean of red, green and blue, of values from 0 to 1.",
        "data.normalize='{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}'",
    ),
    "data.normalize.std": D(
        "Standard deviation of the same.",
        "data.normalize='{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}'",
    ),
    "data.augment": D(
        "Random changes of training images; `{}` for none.",
        "data.augment='{flip: true, crop_padding: 4}'",
    ),
    "data.augment.flip": D(
        "`true`: mirror half of the images, left to right, another half in each epoch. `alternating`: half of them in "
        "the first epoch, and in each one after it those that were not mirrored in the epoch before, so that every two "
        "epochs show each image both ways.",
        "data.augment.flip=alternating",
    ),
    "data.augment.crop_padding": D(
        "Surround the image with so many pixels and cut one of its size out at a random place.",
        "data.augment.crop_padding=4",
    ),
    "data.augment.fill": D(
        "What these pixels are: `black`, or `reflect`, the image mirrored at its edges.",
        "data.augment.fill=reflect",
    ),
    "data.limit": D(
        "Train on so many samples only, chosen by `seed`; validation and test stay whole. For trying things out.",
        "data.limit=1000",
    ),
    "model": D("What is trained. Further keys are arguments of the named model.", "model='{name: vgg16, width: 0.25}'"),
    "model.name": D(
        "`cifar10_cnn`, `cifar10_fast` (takes `width`, `whitening`, `dirac`), `vgg16` (takes `width`, `dropout`), or "
        "any classifier of torchvision by its function's name.",
        "model.name=resnet18",
    ),
    "model.weights": D(
        "Initial weights: a name of torchvision's, or the path of a state_dict (`.pt`, `.pth`, `.safetensors`), of "
        "the published model or of one with this head. `null`: random ones.",
        "model='{name: resnet18, weights: IMAGENET1K_V1}'",
    ),
    "model.head": D(
        "How a published model gets your number of classes: `replace` its last layer, or `append` one behind it.",
        "model='{name: vgg16, head: append}'",
    ),
    "model.freeze": D(
        "What keeps its weights: `features` (the submodule of that name) or `backbone` (all but the head). Its "
        "BatchNorm and dropout do not act either.",
        "model='{name: vgg16, freeze: features}'",
    ),
    "model.cache_features": D(
        "Compute what the frozen layers make of each image once, instead of in every epoch, and train on that: the "
        "same bits, sooner ([using-models.md](using-models.md)). `auto`: where that is possible and pays; `true`: "
        "where it is not possible, that is an error.",
        "model.cache_features=false",
    ),
    "loss": D(
        "Further keys are arguments of the torch.nn class: see [losses-and-optimizers.md](losses-and-optimizers.md).",
        "loss='{name: CrossEntropyLoss, label_smoothing: 0.1}'",
    ),
    "loss.name": D(
        "`CrossEntropyLoss`, `NLLLoss`, `BCELoss`, `BCEWithLogitsLoss`, `L1Loss`, `SmoothL1Loss`, `HuberLoss`, "
        "`MSELoss` or `MultiMarginLoss`.",
        "loss.name=BCEWithLogitsLoss",
    ),
    "loss.activation": D(
        "What turns the model's logits into what the loss takes; `auto` is what suits the loss.",
        "loss='{name: MSELoss, activation: sigmoid}'",
    ),
    "loss.reduction": D(
        "Over the whole batch of all processes: `mean`, `sum`, or `none`, the mean of torch's unreduced elements.",
        "loss.reduction=sum",
    ),
    "optimizer": D(
        "Further keys are arguments of the class: see [losses-and-optimizers.md](losses-and-optimizers.md). Not given, "
        "it is SGD with lr 0.01 and momentum 0.9.",
        "optimizer='{name: AdamW, lr: 1e-3}'",
    ),
    "optimizer.name": D(
        "Any class of torch.optim but `LBFGS` and `SparseAdam`, or `MuonSGD`, our own. Where `lr` is not given, it is "
        "the class's default.",
        "optimizer='{name: RMSprop, lr: 1e-3}'",
    ),
    "optimizer.param_groups": D(
        "Other arguments for some of the parameters; the first match wins.",
        "optimizer.param_groups='[{match: \"features.*\", lr: 1e-3}]'",
    ),
    "optimizer.param_groups.match": D(
        "A pattern of whole parameter names, with `*`, `?` and `[...]`; the other keys of the group are arguments.",
        "optimizer.param_groups='[{match: \"*.bias\", weight_decay: 0.0}]'",
    ),
    "scheduler": D(
        "The learning rate over the run: one section, a list of them that run one after another, or `null` for none. "
        "Further keys are arguments of the class.",
        "scheduler='{name: StepLR, step_size: 5, gamma: 0.5}'",
    ),
    "scheduler.name": D(
        "Any class of torch.optim.lr_scheduler but those that take functions or other schedulers.",
        "scheduler='{name: CosineAnnealingLR}'",
    ),
    "scheduler.interval": D(
        "Whether it moves after each `epoch` or each optimizer `step`.",
        "scheduler='{name: CosineAnnealingLR, interval: step}'",
    ),
    "scheduler.metric": D(
        "What ReduceLROnPlateau watches; by default `val/loss`, or `train/loss` without validation.",
        "scheduler='{name: ReduceLROnPlateau, metric: val/accuracy}'",
    ),
    "scheduler.duration": D(
        "How long this one of a list lasts; the last one lasts to the end and needs none.",
        "scheduler='[{name: LinearLR, duration: 1ep}, {name: CosineAnnealingLR}]'",
    ),
    **RUN_DESCRIPTIONS,
}
