"""The schema of the configuration: one pydantic model for each section, with defaults, types and bounds.

An unknown key or a value of the wrong type is refused. Rules that join several values, and the argument lists of
torch's classes, are in `checking`. What each key means is in `docs.descriptions` and in docs/config.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, WrapValidator

from trainlib.config.custom import allow_custom
from trainlib.config.schema.augment import Augment
from trainlib.config.schema.base import Named, OpenSection, Section
from trainlib.config.schema.framing import Resize
from trainlib.config.schema.model import ModelConfig as ModelConfig
from trainlib.config.schema.slurm import SlurmConfig
from trainlib.config.schema.values import (
    Channels,
    Code,
    Decode,
    Duration,
    Fold,
    ImageSize,
    Interval,
    Metric,
    MetricName,
    Mirror,
    Mode,
    Precision,
    Split,
    Trackers,
    Warmup,
    check_run_name,
)


class Normalize(Section):
    """`data.normalize` with explicit numbers: mean and standard deviation of each channel, on a 0..1 scale."""

    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class DataConfig(OpenSection):
    """`data`: the data set, its validation split, and how its images become the model's input.

    Only a data set of one's own, `code:NAME`, takes arguments.
    """

    name: Annotated[
        Literal["cifar10", "image_folder", "table", "archive", "hf", "synthetic"], WrapValidator(allow_custom)
    ] = "cifar10"
    root: str = "data"
    table: Annotated[str, Field(min_length=1)] | None = None
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    fold: Fold | None = None
    split: Split = "stratified"
    group: Annotated[str, Field(min_length=1)] | None = None
    labels: Literal["one", "several"] = "one"
    label_separator: Annotated[str, Field(min_length=1)] = ";"
    balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeats: Annotated[int, Field(ge=1)] = 1
    verify: Literal["quick", "full"] = "quick"
    image_size: ImageSize = 32
    channels: Channels = 3
    train_image_size: ImageSize | None = None
    resize: Resize = Resize()
    cache: Literal["auto", "none", "pixels", "files"] = "auto"
    decode: Decode = "fast"
    shuffle: bool = True
    drop_last: bool = False
    normalize: Literal["auto", "none"] | Normalize = "auto"
    augment: Augment = Augment()
    limit: Annotated[int, Field(ge=1)] | None = None

    @property
    def has_sets(self) -> bool:
        """True if each picture has a set of classes, which may be empty, and not one class."""
        return self.labels == "several"

    @property
    def is_older(self) -> bool:
        """True for a run that began before pictures in memory were framed as files are (see `OLDER_DATA`)."""
        return self.decode == "pillow"


class LossConfig(Named):
    """`loss`: a loss of torch.nn by its class name."""

    name: str = "CrossEntropyLoss"
    activation: Literal["auto", "none", "sigmoid", "softmax", "log_softmax"] = "auto"
    reduction: Literal["mean", "sum", "none"] = "mean"
    target_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None


class ParamGroup(OpenSection):
    """An element of `optimizer.param_groups`: options for the parameters whose names match a pattern."""

    match: Annotated[str, Field(min_length=1)]


class OptimizerConfig(Named):
    """`optimizer`: a class of torch.optim, or our own MuonSGD, by name."""

    name: str = "SGD"
    no_decay: Literal["none", "norm", "norm_and_bias"] = "none"
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    param_groups: list[ParamGroup] = Field([])


class SchedulerConfig(Named):
    """`scheduler`, or one of its list: a class of torch.optim.lr_scheduler by name."""

    interval: Literal["epoch", "step"] = "epoch"
    metric: Metric | None = None
    duration: Duration | None = None


class EarlyStopping(Section):
    """`train.early_stopping`: end the run when a metric no longer improves."""

    metric: Metric = "val/loss"
    patience: Annotated[int, Field(ge=1)] = 10
    mode: Mode | None = None  # null = min for a loss, max for an accuracy; a metric of one's own needs it
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class AverageConfig(Section):
    """`train.average`: an exponential moving average (EMA) of the weights, evaluated and saved in their place."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    every: Annotated[int, Field(ge=1)] = 1
    warmup: Warmup = "tensorflow"
    scale_decay: bool = False


class TrainConfig(Section):
    """`train`: the length of the run, its batches, and how a step is computed."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    precision: Precision = "fp32"
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    average: AverageConfig | None = None
    keep_batchnorm: bool = False
    early_stopping: EarlyStopping | None = None
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    reproducibility: Literal["exact", "elastic", "fast"] = "exact"
    virtual_shards: Annotated[int, Field(ge=1)] = 8
    compile: Literal["auto"] | bool = False
    cuda_graph: Literal["auto", False] = "auto"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = 10
    hang_seconds: Annotated[float, Field(gt=0)] | None = 1800.0
    audit: Annotated[int, Field(ge=1)] | None = None


class EvaluationConfig(Section):
    """`evaluation`: test-time augmentation (TTA) in validation, test, evaluation and prediction; own metrics."""

    test_time: Literal["none", "flip", "flip_translate"] = "none"
    metrics: list[MetricName] = Field([])


class Best(Section):
    """`checkpoint.best`: the metric that decides which checkpoint is the best."""

    metric: Metric = "val/accuracy"
    mode: Mode | None = None  # null = min for a loss, max for an accuracy; a metric of one's own needs it


class AfterConfig(Section):
    """`checkpoint.after`: what stays of the checkpoints of a run that is complete."""

    keep: Annotated[list[Literal["best", "last"]], Field(min_length=1)] = ["best", "last"]  # noqa: RUF012 - as pydantic has it
    optimizer: bool = True


class CheckpointConfig(Section):
    """`checkpoint`: when checkpoints are written, and which are kept."""

    every: Interval = "1ep"
    keep: Annotated[int, Field(ge=2)] = 3
    best: Best | None = Best(metric="val/accuracy", mode="max")
    background: bool = False
    after: AfterConfig | None = None


class WandbConfig(Section):
    """`tracking.wandb`: Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: Annotated[str, Field(min_length=1)] = "trainlaunch"
    group: Annotated[str, Field(min_length=1)] | None = None  # runs that W&B shows together, like those of a sweep
    entity: Annotated[str, Field(min_length=1)] | None = None  # the user or team it belongs to; null = the key's owner
    artifacts: bool = False  # upload the best checkpoint at the end


class HealthConfig(Section):
    """`tracking.health`: gradient norms, update-to-weight ratios and histograms of the weights."""

    every: Duration = "100st"


class TrackingConfig(Section):
    """`tracking`: the trackers that show a run, and how often rows are logged."""

    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = True
    trackers: Trackers = Field([])
    progress: bool = True
    log_every: Annotated[int, Field(ge=1)] = 50
    health: HealthConfig | None = None


class Config(Section):
    """The configuration of a whole run; immutable. Made by `load_config`, saved as the run directory's config.yaml."""

    # Keys whose change does not affect what a run has already computed.
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "model.cache_features",
        "train.epochs",
        "train.steps",
        "train.on_nonfinite",
        "train.max_nonfinite_steps",
        "train.hang_seconds",
        "train.device",
        "train.audit",
        "tracking",
        "slurm",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.background",
    )

    # Where and how the data lie (they are asked if they are the same), what is done in the end, what changes no bit.
    FREE: ClassVar[tuple[str, ...]] = (
        "data.root", "data.table", "data.cache", "data.verify", "checkpoint.after", "model.checkpoint_activations",
        "mirror", "train.cuda_graph",
    )  # fmt: skip

    name: Annotated[str, AfterValidator(check_run_name)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    code: Code = Field({})
    mirror: Mirror | None = None
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig.model_validate({"name": "SGD", "lr": 0.01, "momentum": 0.9})
    scheduler: SchedulerConfig | list[SchedulerConfig] | None = None
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    slurm: SlurmConfig = SlurmConfig()

    def metrics(self) -> set[str]:
        """Return the metrics that decide something: the best checkpoint, the end of training, the learning rate."""
        named = [self.checkpoint.best, self.train.early_stopping, *(scheduler for _, scheduler in self.schedulers())]
        return {section.metric for section in named if section is not None and section.metric is not None}

    def schedulers(self) -> Iterator[tuple[str, SchedulerConfig]]:
        """Yield the schedulers in order, each with its dotted key: `scheduler`, or `scheduler.0`, `scheduler.1`, ..."""
        if isinstance(self.scheduler, SchedulerConfig):
            yield "scheduler", self.scheduler
        elif self.scheduler is not None:
            yield from ((f"scheduler.{i}", scheduler) for i, scheduler in enumerate(self.scheduler))
