"""What each key of the configuration means, for docs/config.md: one row a key, and an example that can be typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Description(NamedTuple):
    """meaning: one or more sentences in Markdown; example: a `key=value` of the command line."""

    meaning: str
    example: str


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
    "data.augment.flip": D("Mirror half of the images, left to right.", "data.augment.flip=true"),
    "data.augment.crop_padding": D(
        "Surround the image with so many black pixels and cut one of its size out at a random place.",
        "data.augment.crop_padding=4",
    ),
    "data.limit": D(
        "Train on so many samples only, chosen by `seed`; validation and test stay whole. For trying things out.",
        "data.limit=1000",
    ),
    "model": D("What is trained. Further keys are arguments of the named model.", "model='{name: vgg16, width: 0.25}'"),
    "model.name": D(
        "`cifar10_cnn`, `vgg16` (takes `width`, `dropout`) or any classifier of torchvision by its function's name.",
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
        "Further keys are arguments of the torch.optim class. Not given, it is SGD with lr 0.01 and momentum 0.9.",
        "optimizer='{name: AdamW, lr: 1e-3}'",
    ),
    "optimizer.name": D(
        "Any class of torch.optim but `LBFGS` and `SparseAdam`. Where `lr` is not given, it is torch's default.",
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
    "train": D("How long, in what batches, and how.", "train='{epochs: 5, batch_size: 128}'"),
    "train.epochs": D("Length of the run in epochs; 20 where neither this nor `steps` is given.", "train.epochs=5"),
    "train.steps": D("Length of the run in optimizer steps, instead of epochs.", "train.steps=1000"),
    "train.batch_size": D("Samples in an optimizer step, over all processes together.", "train.batch_size=128"),
    "train.micro_batch_size": D(
        "At most so many samples at once on a device, for memory; the gradient is the whole batch's all the same. "
        "`null`: the process's whole share.",
        "train.micro_batch_size=32",
    ),
    "train.precision": D(
        "`bf16` or `fp16` autocast; weights stay float32. `fp16` needs a GPU.",
        "train.precision=bf16",
    ),
    "train.clip_grad_norm": D("Scale the gradient down to this norm where it is larger.", "train.clip_grad_norm=1.0"),
    "train.early_stopping": D(
        "End before time when a metric no longer improves.",
        "train.early_stopping='{patience: 5}'",
    ),
    "train.early_stopping.metric": D(
        "Which metric is watched, after each epoch.",
        "train.early_stopping='{metric: val/accuracy}'",
    ),
    "train.early_stopping.patience": D(
        "End after so many epochs without a better one.",
        "train.early_stopping='{patience: 5}'",
    ),
    "train.early_stopping.mode": D(
        "Whether less or more is better. It follows from the metric: leave it out.",
        "train.early_stopping='{metric: val/loss, mode: min}'",
    ),
    "train.early_stopping.min_delta": D(
        "By how much it must be better to count.",
        "train.early_stopping='{min_delta: 0.001}'",
    ),
    "train.reproducibility": D(
        "`exact`: the same bits on the same number of processes; `elastic`: on any number; `fast`: kernels that may "
        "differ from run to run are allowed.",
        "train.reproducibility=fast",
    ),
    "train.virtual_shards": D("For `elastic`: in how many fixed pieces a batch is computed.", "train.virtual_shards=8"),
    "train.on_nonfinite": D(
        "A gradient that is NaN or infinite is never applied. Then `stop` the run, or `skip` the step and go on.",
        "train.on_nonfinite=skip",
    ),
    "train.max_nonfinite_steps": D("With `skip`: end the run after more than so many.", "train.max_nonfinite_steps=3"),
    "train.hang_seconds": D(
        "Without progress for so long, a process writes its stacks to the log and ends. `null`: never.",
        "train.hang_seconds=600",
    ),
    "checkpoint": D("When checkpoints are written, and which stay.", "checkpoint='{every: 500st, keep: 2}'"),
    "checkpoint.every": D("How often: the most that a kill costs.", "checkpoint.every=500st"),
    "checkpoint.keep": D("How many of the newest stay; the best one stays besides.", "checkpoint.keep=2"),
    "checkpoint.best": D(
        "What makes a checkpoint the best; its weights are tested at the end. `null`: the last are.",
        "checkpoint.best=null",
    ),
    "checkpoint.best.metric": D("Which metric is compared, after each epoch.", "checkpoint.best.metric=val/accuracy"),
    "checkpoint.best.mode": D(
        "Whether less or more is better. It follows from the metric: leave it out.",
        "checkpoint.best='{metric: val/loss, mode: min}'",
    ),
    "checkpoint.background": D(
        "Write while training goes on; a kill then costs at most two intervals.",
        "checkpoint.background=true",
    ),
    "tracking": D("What shows the run; `metrics.jsonl` is always written.", "tracking='{tensorboard: false}'"),
    "tracking.wandb": D("Weights & Biases.", "tracking.wandb='{mode: disabled}'"),
    "tracking.wandb.mode": D(
        "`online`, `offline` (kept in the run directory, to be synchronised later) or `disabled`.",
        "tracking.wandb.mode=online",
    ),
    "tracking.wandb.project": D("The project there.", "tracking.wandb.project=cifar"),
    "tracking.wandb.group": D(
        "Runs that are shown together, such as those of a sweep.",
        "tracking.wandb.group=ablation",
    ),
    "tracking.wandb.entity": D(
        "The user or team it belongs to; `null`: the key's owner.",
        "tracking.wandb.entity=my-team",
    ),
    "tracking.wandb.artifacts": D("Upload the best checkpoint at the end.", "tracking.wandb.artifacts=true"),
    "tracking.tensorboard": D("Write event files for TensorBoard.", "tracking.tensorboard=false"),
    "tracking.progress": D(
        "Show progress on the console; `false`: only the beginning and the end.",
        "tracking.progress=false",
    ),
    "tracking.log_every": D(
        "Steps between two rows of scope `step` in `metrics.jsonl`; every epoch has its rows besides.",
        "tracking.log_every=10",
    ),
    "tracking.health": D(
        "Gradient norms, update-to-weight ratios and histograms of weights; `null`: none.",
        "tracking.health='{every: 50st}'",
    ),
    "tracking.health.every": D("How often ratios and histograms are taken.", "tracking.health='{every: 50st}'"),
    "slurm": D(
        "What `launch submit` asks SLURM for; its options win over these keys.",
        "slurm='{nodes: 2, gpus_per_node: 4}'",
    ),
    "slurm.nodes": D(
        "Nodes of the job; with `train.reproducibility: elastic` also a range like `1-4`: each start takes what the "
        "queue gives.",
        "slurm.nodes=2",
    ),
    "slurm.gpus_per_node": D("GPUs of each node; 0: train on the nodes' CPUs.", "slurm.gpus_per_node=4"),
    "slurm.processes_per_node": D(
        "Processes on each; `null`: one for each GPU, or one on CPUs.",
        "slurm.processes_per_node=2",
    ),
    "slurm.time": D("Time limit of the job, as `sbatch --time` takes it.", 'slurm.time="04:00:00"'),
    "slurm.partition": D("The partition; `null`: the cluster's default.", "slurm.partition=gpu"),
    "slurm.signal_seconds": D(
        "How long before the time limit the run is asked to checkpoint and is queued again.",
        "slurm.signal_seconds=300",
    ),
    "slurm.max_failures": D(
        "How often a job that failed is started again; preemptions and time limits do not count.",
        "slurm.max_failures=1",
    ),
}
