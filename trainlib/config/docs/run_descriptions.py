"""Descriptions of the keys of `train`, `evaluation`, `checkpoint`, `tracking` and `slurm`."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description

D = Description

RUN_DESCRIPTIONS: Mapping[str, Description] = {
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
        "`fp32`: all computation in float32. `bf16` and `fp16`: automatic mixed precision; the weights stay float32, "
        "and `fp16` needs a GPU. `no`, the name in Accelerate, is the same as `fp32`.",
        "train.precision=bf16",
    ),
    "train.clip_grad_norm": D("Scale the gradient down to this norm where it is larger.", "train.clip_grad_norm=1.0"),
    "train.average": D(
        "Keep a moving average of the weights, which is what is evaluated, kept and exported; training goes on from "
        "the weights themselves. `null`: none.",
        "train.average='{decay: 0.999}'",
    ),
    "train.average.decay": D(
        "How much of the average stays at each update, once there were enough of them.",
        "train.average='{decay: 0.999}'",
    ),
    "train.average.every": D("Update it after every so many applied steps.", "train.average='{every: 5}'"),
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
    "train.compile": D(
        "Have `torch.compile` make the kernels of the model, which takes up to a minute at each start. `auto`: measure "
        "at the first start, and do it where that saves more time than it takes; a resumed run does the same.",
        "train.compile=auto",
    ),
    "train.on_nonfinite": D(
        "A gradient that is NaN or infinite is never applied. Then `stop` the run, or `skip` the step and go on.",
        "train.on_nonfinite=skip",
    ),
    "train.max_nonfinite_steps": D("With `skip`: end the run after more than so many.", "train.max_nonfinite_steps=3"),
    "train.hang_seconds": D(
        "Without progress for so long, a process writes its stacks to the log and ends. `null`: never.",
        "train.hang_seconds=600",
    ),
    "evaluation": D(
        "How validation and test, `launch eval`, `launch predict` and `trainlib.load_model` ask the network.",
        "evaluation='{test_time: flip}'",
    ),
    "evaluation.test_time": D(
        "The mean of the logits over several views of an image. `none`: as it is. `flip`: it and its mirror image. "
        "`flip_translate`: six views, both of these, which count for half, and both moved by a pixel up and left, and "
        "down and right. Takes two and six times as long; files of `launch export` hold the plain network.",
        "evaluation.test_time=flip",
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
