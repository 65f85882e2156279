"""Descriptions of the configuration's keys, for the tables of docs/config.md."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.augment_descriptions import AUGMENT_DESCRIPTIONS
from trainlib.config.docs.description import Description
from trainlib.config.docs.model_descriptions import MODEL_DESCRIPTIONS
from trainlib.config.docs.run_descriptions import RUN_DESCRIPTIONS
from trainlib.config.docs.slurm_descriptions import SLURM_DESCRIPTIONS

D = Description

DESCRIPTIONS: Mapping[str, Description] = {
    "name": D(
        "Name of the run and of its folder, `runs/<name>`: letters, digits, `.`, `_` and `-`, at most 100. "
        "Default: the name of the first file.",
        "name=first-try",
    ),
    "seed": D(
        "Seed of all random choices: initial weights, order of the samples, augmentation, dropout, validation split.",
        "seed=1",
    ),
    "code": D(
        "Not written by hand: `--code FILE.py` writes the name and SHA-256 of code of your own, of which the run keeps "
        "a copy ([own_code.md](own_code.md)).",
        "code='{}'",
    ),
    "mirror": D(
        "An address that the run is copied to while it trains: `s3://bucket/path`, any other of fsspec's, or a folder; "
        "it goes to `<mirror>/<name>/`. A start without a local copy goes on from there ([mirror.md](mirror.md)).",
        "mirror=s3://my-bucket/runs",
    ),
    "data": D(
        "The data set, its validation split, and how images become the model's input.",
        "data='{name: synthetic}'",
    ),
    "data.name": D(
        "`cifar10` (downloaded once, checksums verified), `image_folder` (class folders of pictures, in "
        "`<root>/train`, `<root>/val` and `<root>/test`, or directly in `<root>`), `table` (a CSV or Parquet file that "
        "names pictures and labels), `archive` (a .tar or .zip of class folders, or a folder of shards), `hf` (a data "
        "set saved by Hugging Face's `datasets`) or `synthetic` (built-in drawings of shapes, no files needed). "
        "`code:NAME`: your own, which takes further keys ([own_code.md](own_code.md)). `custom:...` in a run's own "
        "config.yaml stands for a data set given in Python ([python.md](python.md)).",
        "data.name=image_folder",
    ),
    "data.root": D(
        "Folder of the data: class folders, shards, what the paths of a table begin at, or the place for CIFAR-10; or "
        "an archive. A relative path begins in the folder in which the command is typed, wherever the YAML file is.",
        "data.root=pictures",
    ),
    "data.table": D(
        "With `data.name=table`: the CSV or Parquet file with the columns path (below `data.root`) and label and, "
        "where there are such columns, split (train, val or test) and group. Where it lies says nothing of the data.",
        "data='{name: table, root: photos, table: photos.csv}'",
    ),
    "data.val_fraction": D(
        "Fraction of the training set that is held out for validation, chosen by `seed`, where the data bring no "
        "validation split of their own. 0: no validation; then there is no best checkpoint, and the last weights are "
        "tested.",
        "data.val_fraction=0.2",
    ),
    "data.test_fraction": D(
        "Fraction of the samples that is held out for the test, chosen by `seed` before validation is, where the data "
        "bring no test split. `null`: 0.2 there.",
        "data='{name: image_folder, root: photos, test_fraction: 0.1}'",
    ),
    "data.fold": D(
        "`1/5`: the first of five folds of the training samples takes the place of the test split, for "
        "cross-validation ([sweep.md](sweep.md)). A test split of the data is left out. Folds are drawn by a hash of "
        "`seed` and each sample's name, of each class as many (`split`), and cut no group.",
        "data.fold=1/5",
    ),
    "data.split": D(
        "How validation samples are chosen, by a hash of `seed` and each sample's name (its index in data that are no "
        "files). `stratified`: `val_fraction` of each class, at least one (a set of labels counts as its rarest); "
        "`random`: of all samples at once. A picture that is added moves at most one other. `index`: by position, as "
        "runs do that began before the others existed.",
        "data.split=random",
    ),
    "data.group": D(
        "`folder`: pictures in one folder below their class (`<class>/<group>/<image>`) are never on two sides of a "
        "split; folders of one name are one group, also in two classes. In a table: the column with the group of each "
        "picture (by default `group`, where there is one), or `folder` for the folder that a picture lies in.",
        "data='{name: image_folder, root: photos, group: folder}'",
    ),
    "data.labels": D(
        "`one`: each picture is of one class; `several`: it has a set of classes, which may be empty, as a cell of a "
        "table lists them ([multi-label.md](multi-label.md)).",
        "data.labels=one",
    ),
    "data.label_separator": D(
        "With `data.labels: several`: what stands between the names of classes in a cell. A list column of a Parquet "
        "file needs none.",
        "data.label_separator=';'",
    ),
    "data.balance": D(
        "From 0 to 1: how far classes of different sizes are evened out in training. 0: every sample once an epoch; "
        "1: every class equally often. In between a class of n images gets a share of the epoch in proportion to "
        "n^(1 - balance): a whole number next to that share, which is met exactly on average over the epochs. Within a "
        "class, every image is used once before any is used again. An epoch keeps its length; which images it uses "
        "depends on `seed` and its number alone. Validation and test are as they are.",
        "data.balance=0.5",
    ),
    "data.repeats": D(
        "Repeated augmentation: an epoch draws one in so many training samples, and uses each of them so many times, "
        "in neighbouring places of its order, augmented differently. An epoch keeps its length. At most "
        "`train.batch_size`.",
        "data.repeats=3",
    ),
    "data.verify": D(
        "`quick`: at a start, image files whose size, inode or times are not as they were are read again; `full`: all "
        "files are. Files with other bytes than those that a run was trained on end its resuming.",
        "data.verify=full",
    ),
    "data.image_size": D(
        "Height and width of the model's input in pixels: one number for both, or `[height, width]`. Pictures of "
        "another size are resized and cut as `data.resize` says.",
        "data.image_size=64",
    ),
    "data.channels": D(
        "`3`: images have red, green and blue, and grey pictures three times the same. `1`: images are grey, and of "
        "colours 0.299 red + 0.587 green + 0.114 blue is left. Each network's first layer then has one input: that of "
        "`model.weights` is summed over its three ([pictures.md](pictures.md)).",
        "data.channels=1",
    ),
    "data.cache": D(
        "What is kept on this machine of image files ([cache.md](cache.md)). `auto`: what memory, disk and "
        "augmentation suggest; the log says what and why. `none`: images are decoded anew for each batch. `pixels`: "
        "the decoded images or, for random crops, the decoded pictures. `files`: the files' bytes, packed. The images "
        "are the same, so the key may be changed at any time.",
        "data.cache=none",
    ),
    "data.decode": D(
        "How image files are decoded ([pictures.md](pictures.md)). `fast`: a JPEG whose shorter side has 3, 6 or 12 "
        "times the pixels that are needed, or more, is decoded at 1/2, 1/4 or 1/8 of its size. `exact`: whole, and "
        "resized by Pillow. Both depend on the file and the configuration alone. `pillow`: as `exact`, but of 16 bits "
        "a channel the upper 8 are kept, as runs do that began before the others existed.",
        "data.decode=exact",
    ),
    "data.train_image_size": D(
        "The size of training images, where it is not `image_size`, at which the model is evaluated. Training on "
        "smaller images costs less, and the objects in random crops look as large as in larger images of evaluation "
        "([pictures.md](pictures.md)).",
        "data='{image_size: 224, train_image_size: 176}'",
    ),
    "data.resize": D(
        "How a picture becomes an image of `image_size` in evaluation, prediction and, without `augment.crop`, in "
        "training.",
        "data.resize='{fit: pad}'",
    ),
    "data.resize.fit": D(
        "`crop`: scale the picture until its shorter side is `size`, and cut out the centre. `pad`: scale it until it "
        "fits inside the image, and surround it with black. `squash`: scale height and width separately.",
        "data.resize.fit=squash",
    ),
    "data.resize.size": D(
        "With `fit: crop` and `squash`, what the shorter side is scaled to, in pixels; of a `[height, width]`, what "
        "the shorter of the two is cut from. `auto`: as `model.weights` were trained with: `image_size` by the "
        "share of it that they cut out (232 for 224 with ResNet-50's `IMAGENET1K_V2`); `image_size` for other models.",
        "data='{image_size: 64, resize: {size: 72}}'",
    ),
    "data.resize.interpolation": D(
        "How pixels are computed, all but `nearest` with antialiasing. `auto`: as `model.weights` were trained with, "
        "else `bilinear`.",
        "data.resize.interpolation=bicubic",
    ),
    "data.shuffle": D(
        "`true`: each epoch has another random order. `false`: every epoch has the data set's own order.",
        "data.shuffle=false",
    ),
    "data.drop_last": D(
        "`true`: leave out the last batch of an epoch if it is smaller than the others. `false`: train on it, "
        "weighted by its own size.",
        "data.drop_last=true",
    ),
    "data.normalize": D(
        "`auto`: subtract the mean and divide by the standard deviation of each channel, those that "
        "`model.weights` were trained with, else those of the training set. `none`: values from 0 to 1. Or give "
        "the numbers.",
        "data.normalize=none",
    ),
    "data.normalize.mean": D(
        "Mean of red, green and blue, or of grey (`data.channels: 1`), on a scale from 0 to 1.",
        "data.normalize='{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}'",
    ),
    "data.normalize.std": D(
        "Standard deviation of each of them, on the same scale.",
        "data.normalize='{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}'",
    ),
    **AUGMENT_DESCRIPTIONS,
    "data.limit": D(
        "Train on this many samples only, chosen by `seed`; validation and test stay whole. For quick trials.",
        "data.limit=1000",
    ),
    **MODEL_DESCRIPTIONS,
    "loss": D(
        "The loss. Further keys are arguments of the torch.nn class: see "
        "[losses-and-optimizers.md](losses-and-optimizers.md).",
        "loss='{name: CrossEntropyLoss, label_smoothing: 0.1}'",
    ),
    "loss.name": D(
        "`CrossEntropyLoss`, `NLLLoss`, `BCELoss`, `BCEWithLogitsLoss`, `L1Loss`, `SmoothL1Loss`, `HuberLoss`, "
        "`MSELoss`, `MultiMarginLoss`, or `code:NAME`, your own ([own_code.md](own_code.md)).",
        "loss.name=BCEWithLogitsLoss",
    ),
    "loss.activation": D(
        "Function of the model's logits that the loss is computed from; `auto`: the one that the loss expects.",
        "loss='{name: MSELoss, activation: sigmoid}'",
    ),
    "loss.reduction": D(
        "Reduction over the global batch, of all processes: `mean`, `sum`, or `none`, the mean of torch's "
        "unreduced elements.",
        "loss.reduction=sum",
    ),
    "loss.target_threshold": D(
        "BCEWithLogitsLoss and BCELoss: of an image that is mixed of two, a class whose share is above this is wholly "
        "present, and the others are not. `null`: the targets are the shares.",
        "loss='{name: BCEWithLogitsLoss, target_threshold: 0.2}'",
    ),
    "optimizer": D(
        "The optimizer. Further keys are arguments of the class: see "
        "[losses-and-optimizers.md](losses-and-optimizers.md). Default: SGD with lr 0.01 and momentum 0.9.",
        "optimizer='{name: AdamW, lr: 1e-3}'",
    ),
    "optimizer.name": D(
        "Any class of torch.optim but `LBFGS` and `SparseAdam`, `MuonSGD` or `LAMB`, which are here, or `code:NAME`, "
        "yours ([own_code.md](own_code.md)). Default of `lr`: the class's own.",
        "optimizer='{name: RMSprop, lr: 1e-3}'",
    ),
    "optimizer.no_decay": D(
        "Parameters without weight decay: `norm`, those of normalisation layers, by the layers' type; `norm_and_bias`, "
        "all vectors as well (biases, layer scales), and what a timm model names itself.",
        "optimizer.no_decay=norm_and_bias",
    ),
    "optimizer.layer_decay": D(
        "The learning rate of each block is that of the block behind it times this; the last layer has the whole one. "
        "`null` = all have the same.",
        "optimizer.layer_decay=0.75",
    ),
    "optimizer.param_groups": D(
        "Other arguments for some of the parameters; the first matching group wins.",
        "optimizer.param_groups='[{match: \"features.*\", lr: 1e-3}]'",
    ),
    "optimizer.param_groups.match": D(
        "Pattern for whole parameter names, with `*`, `?` and `[...]`, or `head`, the last layer whatever its name; "
        "the other keys of the group are arguments.",
        "optimizer.param_groups='[{match: \"*.bias\", weight_decay: 0.0}]'",
    ),
    "scheduler": D(
        "The learning-rate schedule: one scheduler, a list of them that run one after another, or `null` for "
        "none. Further keys are arguments of the class.",
        "scheduler='{name: StepLR, step_size: 5, gamma: 0.5}'",
    ),
    "scheduler.name": D(
        "Any class of torch.optim.lr_scheduler but those that take functions or other schedulers.",
        "scheduler='{name: CosineAnnealingLR}'",
    ),
    "scheduler.interval": D(
        "Move the scheduler after each `epoch`, or after each optimizer `step`.",
        "scheduler='{name: CosineAnnealingLR, interval: step}'",
    ),
    "scheduler.metric": D(
        "Metric for ReduceLROnPlateau. Default: `val/loss`, or `train/loss` without validation.",
        "scheduler='{name: ReduceLROnPlateau, metric: val/accuracy}'",
    ),
    "scheduler.duration": D(
        "Duration of this scheduler in a list; the last one needs none and runs to the end.",
        "scheduler='[{name: LinearLR, duration: 1ep}, {name: CosineAnnealingLR}]'",
    ),
    **RUN_DESCRIPTIONS,
    **SLURM_DESCRIPTIONS,
}
