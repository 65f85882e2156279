"""Descriptions of the keys of `train`, `evaluation`, `checkpoint` and `tracking`."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description

D = Description

RUN_DESCRIPTIONS: Mapping[str, Description] = {
    "train": D(
        "Length of the run, batches, precision, and how a step is computed.",
        "train='{epochs: 5, batch_size: 128}'",
    ),
    "train.epochs": D(
        "Length of the run in epochs; 20 if neither this nor `steps` is given.",
        "train.epochs=5",
    ),
    "train.steps": D(
        "Length of the run in optimizer steps, instead of epochs.",
        "train.steps=1000",
    ),
    "train.batch_size": D(
        "Global batch size: samples in an optimizer step, over all processes together.",
        "train.batch_size=128",
    ),
    "train.micro_batch_size": D(
        "The most samples in one forward pass of a process, to save memory; gradients are accumulated to exactly "
        "that of the whole batch. `null`: all samples of the process at once.",
        "train.micro_batch_size=32",
    ),
    "train.precision": D(
        "`fp32`: all computation in float32. `bf16` and `fp16`: automatic mixed precision; the weights stay float32, "
        "and `fp16` needs a GPU. `no`, the name in Accelerate, is the same as `fp32`.",
        "train.precision=bf16",
    ),
    "train.clip_grad_norm": D(
        "Scale the gradient down to this norm if it is larger.",
        "train.clip_grad_norm=1.0",
    ),
    "train.average": D(
        "Keep an exponential moving average (EMA) of the weights; validation, test, checkpoints and exports use "
        "it, while training goes on with the weights themselves. `null`: no average.",
        "train.average='{decay: 0.999}'",
    ),
    "train.average.decay": D(
        "Decay of the EMA: the weight of the old average in each update; smaller at first, as `warmup` says.",
        "train.average='{decay: 0.999}'",
    ),
    "train.average.every": D(
        "Update the EMA after every so many optimizer steps.",
        "train.average='{every: 5}'",
    ),
    "train.average.warmup": D(
        "Decay of the first updates. In update n, from 1, it is at most n / (9 + n) with `tensorflow`, 1 - n^(-2/3) "
        "with `timm`. With a duration, the average is a copy of the weights for so long, as in torchvision's recipes; "
        "with `none`, at the first update.",
        "train.average='{decay: 0.9998, warmup: timm}'",
    ),
    "train.average.scale_decay": D(
        "Multiply 1 - decay by the batch size, by `every`, and by 1 / epochs, as torchvision's recipes do: one value "
        "then suits runs of any length and batch size. At most 1.",
        "train.average='{decay: 0.99998, every: 32, scale_decay: true}'",
    ),
    "train.early_stopping": D(
        "End the run early when a metric no longer improves.",
        "train.early_stopping='{patience: 5}'",
    ),
    "train.early_stopping.metric": D(
        "Metric that is compared after each epoch.",
        "train.early_stopping='{metric: val/accuracy}'",
    ),
    "train.early_stopping.patience": D(
        "End after this many epochs without an improvement.",
        "train.early_stopping='{patience: 5}'",
    ),
    "train.early_stopping.mode": D(
        "Direction of improvement: `min` for a loss, `max` for an accuracy. It follows from the metric: leave it out.",
        "train.early_stopping='{metric: val/loss, mode: min}'",
    ),
    "train.early_stopping.min_delta": D(
        "Smallest change that counts as an improvement.",
        "train.early_stopping='{min_delta: 0.001}'",
    ),
    "train.device": D(
        "`auto`: a GPU of NVIDIA, AMD or Intel where there is one, else the CPU; a GPU that torch cannot use is an "
        "error. `cpu`: the CPU even where there are GPUs. `cuda` (AMD's too), `xpu` (Intel), `mps` (Apple): only that.",
        "train.device=cpu",
    ),
    "train.reproducibility": D(
        "`exact`: the same bits on the same number of processes. `elastic`: the same bits on any number. `fast`: "
        "allow kernels whose results may differ from run to run.",
        "train.reproducibility=fast",
    ),
    "train.virtual_shards": D(
        "For `elastic`: number of shards that every batch is split into, at any number of processes.",
        "train.virtual_shards=8",
    ),
    "train.keep_batchnorm": D(
        "`true`: BatchNorm normalises with the mean and variance that came with the weights, in training too, and they "
        "stay; its scale and shift learn ([models.md](models.md#batchnorm-when-fine-tuning)).",
        "train.keep_batchnorm=true",
    ),
    "train.compile": D(
        "Compile the model with `torch.compile`, which takes up to a minute at each start. `auto`: measure at the "
        "first start, and compile if that saves more time than it takes; a resumed run does the same.",
        "train.compile=auto",
    ),
    "train.cuda_graph": D(
        "`auto`: on an NVIDIA or AMD GPU, steps of full batches are captured once and replayed in one launch, with the "
        "same bits, where they can be; the log says which are, or why none. `false`: every step runs by itself.",
        "train.cuda_graph=false",
    ),
    "train.on_nonfinite": D(
        "A gradient that is NaN or infinite is never applied: `stop` the run, or `skip` the step.",
        "train.on_nonfinite=skip",
    ),
    "train.max_nonfinite_steps": D(
        "With `skip`: end the run after more than this many skipped steps.",
        "train.max_nonfinite_steps=3",
    ),
    "train.hang_seconds": D(
        "A process without progress for this many seconds writes its stack traces to the log and ends; while the "
        "training is being built, for five minutes at least. `null`: no limit.",
        "train.hang_seconds=600",
    ),
    "train.audit": D(
        "Every so many steps one micro-batch is computed a second time by another process (with a single one: by "
        "itself), and compared in every bit before the update. A device that computes wrongly is named, and in elastic "
        "mode left out. Not with `train.reproducibility: fast`. `null`: never.",
        "train.audit=100",
    ),
    "evaluation": D(
        "How the network is used in validation and test, by `launch eval` and `launch predict`, and by "
        "`trainlib.load_model`.",
        "evaluation='{test_time: flip}'",
    ),
    "evaluation.test_time": D(
        "Test-time augmentation (TTA): the mean of the logits over several views of an image. `none`: the image "
        "alone. `flip`: the image and its mirror image. `flip_translate`: six views, these two with half of the "
        "weight, and both moved by one pixel, up and left, and down and right. It takes two or six times as long. "
        "Files of `launch export` hold the network without it.",
        "evaluation.test_time=flip",
    ),
    "evaluation.metrics": D(
        "Metrics of your own, as `code:NAME` ([own_code.md](own_code.md)): computed of every validation and test, "
        "beside those that are always there. `val/NAME` may decide, with its `mode`.",
        "evaluation.metrics='[code:worst_recall]'",
    ),
    "checkpoint": D(
        "When checkpoints are written, and which are kept.",
        "checkpoint='{every: 500st, keep: 2}'",
    ),
    "checkpoint.every": D(
        "Interval between checkpoints: the most work that a killed run loses. `auto`: chosen from what a checkpoint "
        "costs and from the failures so far (Young's rule), at most 1 % of the time.",
        "checkpoint.every=500st",
    ),
    "checkpoint.keep": D(
        "Number of newest checkpoints that are kept; the best one is kept too.",
        "checkpoint.keep=2",
    ),
    "checkpoint.best": D(
        "The metric that decides which checkpoint is the best; the best weights are tested at the end. `null`: "
        "the last weights are.",
        "checkpoint.best=null",
    ),
    "checkpoint.best.metric": D(
        "Metric that is compared after each epoch; [imbalance.md](imbalance.md) explains `val/top5` and so on, "
        "[multi-label.md](multi-label.md) those of sets of labels, where the default is `val/map`.",
        "checkpoint.best.metric=val/macro_f1",
    ),
    "checkpoint.best.mode": D(
        "Direction of improvement: `min` for a loss, `max` for an accuracy. It follows from the metric: leave it out; "
        "only a metric of your own needs it.",
        "checkpoint.best='{metric: val/loss, mode: min}'",
    ),
    "checkpoint.background": D(
        "`true`: write checkpoints while training goes on; a killed run then loses at most two intervals.",
        "checkpoint.background=true",
    ),
    "checkpoint.after": D(
        "What stays of the checkpoints of a run that is complete, to save disk. `null`: as many as before. May change "
        "on resuming without a question.",
        "checkpoint.after='{keep: [best, last], optimizer: false}'",
    ),
    "checkpoint.after.keep": D(
        "Which checkpoints stay: the `best`, the `last`, or both.",
        "checkpoint.after.keep='[best]'",
    ),
    "checkpoint.after.optimizer": D(
        "`false`: only the weights stay, about a third with AdamW; the run cannot be made longer then.",
        "checkpoint.after.optimizer=false",
    ),
    "tracking": D(
        "Trackers and the console; `metrics.jsonl` is always written.",
        "tracking='{tensorboard: false}'",
    ),
    "tracking.wandb": D(
        "Weights & Biases.",
        "tracking.wandb='{mode: disabled}'",
    ),
    "tracking.wandb.mode": D(
        "`online`, `offline` (kept in the run directory, to be uploaded later) or `disabled`.",
        "tracking.wandb.mode=online",
    ),
    "tracking.wandb.project": D(
        "Project in Weights & Biases.",
        "tracking.wandb.project=cifar",
    ),
    "tracking.wandb.group": D(
        "Group of runs that are shown together, such as those of a sweep.",
        "tracking.wandb.group=ablation",
    ),
    "tracking.wandb.entity": D(
        "User or team that owns the project; `null`: the owner of the API key.",
        "tracking.wandb.entity=my-team",
    ),
    "tracking.wandb.artifacts": D(
        "`true`: upload the best checkpoint at the end.",
        "tracking.wandb.artifacts=true",
    ),
    "tracking.tensorboard": D(
        "`true`: write event files for TensorBoard.",
        "tracking.tensorboard=false",
    ),
    "tracking.trackers": D(
        "More trackers, through Accelerate: `aim`, `clearml`, `comet_ml`, `dvclive`, `mlflow`, `swanlab` or `trackio`, "
        "each in a process beside the training ([tracking.md](tracking.md)). Its own variables say where it logs to.",
        "tracking.trackers=[mlflow]",
    ),
    "tracking.progress": D(
        "`true`: show progress on the console. `false`: only the start and the end.",
        "tracking.progress=false",
    ),
    "tracking.log_every": D(
        "Steps between two rows of scope `step` in `metrics.jsonl`; each epoch has rows of its own.",
        "tracking.log_every=10",
    ),
    "tracking.health": D(
        "Gradient norms, update-to-weight ratios and histograms of the weights; `null`: none.",
        "tracking.health='{every: 50st}'",
    ),
    "tracking.health.every": D(
        "Interval between two measurements of ratios and histograms.",
        "tracking.health='{every: 50st}'",
    ),
}
