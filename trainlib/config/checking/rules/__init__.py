"""Rules that join several values. Rules about the data set, the device or a file are checked where those are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainlib.config.checking.rules import label_rules, metric_rules, model_rules, picture_rules, step_rules
from trainlib.config.checking.suggest import format_value
from trainlib.config.custom import is_custom
from trainlib.config.libraries import catalog
from trainlib.config.schema.sections import Config, SchedulerConfig
from trainlib.config.schema.values import POLICY_ARGUMENTS
from trainlib.errors import Mistake

Rule = Callable[[Config], Iterator[Mistake]]

# Of a class. Losses are computed in float32, in which a sum of smaller weights is 0, and of larger ones infinite.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-30, 1e30

_PROBABILITY_ACTIVATIONS = ("auto", "sigmoid", "softmax")


def broken_rules(config: Config, passed: set[str]) -> list[Mistake]:
    """Return the broken rules among the sections in `passed`, whose own values are correct.

    The other sections hold defaults in place of what was written.
    """
    return [mistake for needs, rule in _RULES if needs <= passed for mistake in rule(config)]


def _one_length(config: Config) -> Iterator[Mistake]:
    train = config.train
    if train.epochs is not None and train.steps is not None:
        rule = f"got {train.steps} beside train.epochs {train.epochs}, must be one of the two: remove the other"
        yield Mistake("train.steps", rule)


def _micro_batch_fits(config: Config) -> Iterator[Mistake]:
    micro, batch = config.train.micro_batch_size, config.train.batch_size
    if micro is not None and micro > batch:
        yield Mistake("train.micro_batch_size", f"got {micro}, must be <= train.batch_size, which is {batch}")


def _repeats_fit(config: Config) -> Iterator[Mistake]:
    repeats, batch = config.data.repeats, config.train.batch_size
    if repeats > batch:
        rule = f"got {repeats}, must be <= train.batch_size, which is {batch}: else batches are of one sample alone"
        yield Mistake("data.repeats", rule)


def _virtual_shards_fit(config: Config) -> Iterator[Mistake]:
    train = config.train
    if train.reproducibility == "elastic" and train.virtual_shards > train.batch_size:
        rule = f"got {train.virtual_shards}, must be <= train.batch_size, which is {train.batch_size}"
        yield Mistake("train.virtual_shards", rule)


def _nodes_vary_in_elastic_mode_only(config: Config) -> Iterator[Mistake]:
    nodes, mode = config.slurm.nodes, config.train.reproducibility
    if mode != "elastic" and isinstance(nodes, str):
        yield Mistake(
            "slurm.nodes",
            f"got {nodes}, must be one number: train.reproducibility is {mode}, and only elastic gives the same bits "
            "with any number of nodes",
        )


def _cpus_of_gpus(config: Config) -> Iterator[Mistake]:
    slurm = config.slurm
    if slurm.cpus_per_gpu is not None and slurm.gpus_per_node == 0:
        rule = (
            f"got {slurm.cpus_per_gpu}, but slurm.gpus_per_node is 0: give --sbatch cpus-per-task={slurm.cpus_per_gpu}"
        )
        yield Mistake("slurm.cpus_per_gpu", f"{rule}, or leave it out")


def _shards_for_every_process(config: Config) -> Iterator[Mistake]:
    slurm, shards = config.slurm, config.train.virtual_shards
    processes = slurm.most_nodes * slurm.processes_on_each
    if config.train.reproducibility == "elastic" and processes > shards:
        yield Mistake(
            "slurm.nodes",
            f"got {slurm.nodes}, with {slurm.processes_on_each} processes on each makes {processes}, must be at most "
            f"{shards}, which is train.virtual_shards: ask for fewer, or for more shards, which are part of the result",
        )


def _scheduler_durations(config: Config) -> Iterator[Mistake]:
    if isinstance(config.scheduler, SchedulerConfig):
        if config.scheduler.duration is not None:
            rule = f"got {config.scheduler.duration}, but a single scheduler lasts the whole run: leave it out"
            yield Mistake("scheduler.duration", rule)
        return
    for key, scheduler in list(config.schedulers())[:-1]:
        if scheduler.duration is None:
            yield Mistake(
                f"{key}.duration", "is missing: every scheduler of a list but the last needs one, like 5ep or 500st"
            )


def _scheduler_list_not_empty(config: Config) -> Iterator[Mistake]:
    if config.scheduler == []:
        yield Mistake("scheduler", "got an empty list, must have at least one scheduler: write null for none")


def _plateau_rules(config: Config) -> Iterator[Mistake]:
    listed = list(config.schedulers())
    for i, (key, scheduler) in enumerate(listed):
        if scheduler.name != "ReduceLROnPlateau":
            if scheduler.metric is not None:
                yield Mistake(
                    f"{key}.metric", f"got {scheduler.metric}, but only ReduceLROnPlateau reads a metric: leave it out"
                )
            continue
        if scheduler.interval != "epoch":
            yield Mistake(
                f"{key}.interval", f"got {scheduler.interval}, must be epoch: a metric is known once an epoch"
            )
        if i < len(listed) - 1:
            yield Mistake(f"{key}.name", "ReduceLROnPlateau must be the last of a list: nothing says when it ends")
        if scheduler.metric is not None:
            yield from metric_rules.mode_fits(key, scheduler.metric, scheduler.args.get("mode"), config)


def _cycled_momentum(config: Config) -> Iterator[Mistake]:
    if is_custom(config.optimizer.name):
        return
    taken = catalog.arguments("optimizer", config.optimizer.name)
    for key, scheduler in config.schedulers():
        cycles = "cycle_momentum" in catalog.arguments("scheduler", scheduler.name)
        if cycles and scheduler.args.get("cycle_momentum", True) and not {"momentum", "betas"} & set(taken):
            rule = f"must be false: {config.optimizer.name} has no momentum for {scheduler.name} to cycle"
            yield Mistake(f"{key}.cycle_momentum", rule)


def _decay_is_taken(config: Config) -> Iterator[Mistake]:
    optimizer = config.optimizer
    if is_custom(optimizer.name):
        return
    if optimizer.no_decay != "none" and "weight_decay" not in catalog.arguments("optimizer", optimizer.name):
        rule = f"got {optimizer.no_decay}, but {optimizer.name} takes no weight_decay: leave it out"
        yield Mistake("optimizer.no_decay", rule)


def _probabilities(config: Config) -> Iterator[Mistake]:
    if config.loss.name == "BCELoss" and config.loss.activation not in _PROBABILITY_ACTIVATIONS:
        rule = f"got {config.loss.activation}, must be sigmoid or softmax: BCELoss takes probabilities"
        yield Mistake("loss.activation", f"{rule} (BCEWithLogitsLoss does not)")


def _class_weights_count(config: Config) -> Iterator[Mistake]:
    for key in ("weight", "pos_weight"):
        values = config.loss.args.get(key)
        if not isinstance(values, list) or not values:
            continue
        shown = format_value(values)
        if max(values) < SMALLEST_WEIGHT:
            rule = f"got {shown}, must be > 0 for at least one class: else nothing can be learned"
            yield Mistake(f"loss.{key}", rule)
        elif max(values) > LARGEST_WEIGHT:
            yield Mistake(f"loss.{key}", f"got {shown}, must be at most {LARGEST_WEIGHT:g}: larger ones overflow")


def _threshold_of_binary_targets(config: Config) -> Iterator[Mistake]:
    loss = config.loss
    if loss.target_threshold is not None and loss.name not in ("BCELoss", "BCEWithLogitsLoss"):
        rule = (
            f"got {loss.target_threshold}, but the targets of {loss.name} are shares of one whole: leave it out, or use"
        )
        yield Mistake("loss.target_threshold", f"{rule} BCEWithLogitsLoss")


def _targets_differ(config: Config) -> Iterator[Mistake]:
    if config.loss.args.get("label_smoothing") == 1:
        rule = "got 1, must be < 1: else all classes have the same target"
        yield Mistake("loss.label_smoothing", rule)


def _table_is_named(config: Config) -> Iterator[Mistake]:
    data = config.data
    if data.name == "table" and data.table is None:
        yield Mistake("data.table", "is missing: data.name=table needs the CSV or Parquet file with path and label")
    elif data.name != "table" and data.table is not None:
        yield Mistake(
            "data.table", f"got {data.table}, but data.name is {data.name}: set data.name=table, or leave it out"
        )


def _files_can_be_split(config: Config) -> Iterator[Mistake]:
    data = config.data
    if data.fold is not None and data.test_fraction is not None:
        rule = f"got {data.test_fraction}, but data.fold holds out fold {data.fold} for the test: leave one of them out"
        yield Mistake("data.test_fraction", rule)
        return
    if data.name == "hf" and data.group is not None:
        yield Mistake("data.group", f"got {data.group}, but groups of an hf data set are not read: leave it out")
    elif data.name in ("cifar10", "synthetic"):
        for key, value in (("test_fraction", data.test_fraction), ("group", data.group)):
            if value is not None:
                yield Mistake(f"data.{key}", f"got {value}, but {data.name} has its own test split: leave it out")


def _policy_arguments_fit(config: Config) -> Iterator[Mistake]:
    policy = config.data.augment.policy
    if policy is None or isinstance(policy, str):
        return
    taken = POLICY_ARGUMENTS[policy.name]
    for key in policy.model_dump(exclude_none=True):
        if key != "name" and key not in taken:
            owner = next(name for name, arguments in POLICY_ARGUMENTS.items() if key in arguments)
            takes = f"takes {', '.join(taken)}" if taken else "takes no arguments"
            rule = f"is an argument of {owner}, and {policy.name} {takes}: leave it out"
            yield Mistake(f"data.augment.policy.{key}", rule)


def _mixing_has_neighbours(config: Config) -> Iterator[Mistake]:
    for key in ("mixup", "cutmix"):
        alpha = getattr(config.data.augment, key)
        if alpha and config.train.batch_size == 1:
            rule = f"got {alpha}, but train.batch_size is 1, and samples are mixed with others of their batch: set 0"
            yield Mistake(f"data.augment.{key}", rule)


_RULES: tuple[tuple[set[str], Rule], ...] = (
    ({"train"}, _one_length),
    ({"train"}, _micro_batch_fits),
    ({"train", "data"}, _repeats_fit),
    ({"train"}, _virtual_shards_fit),
    ({"train"}, step_rules.audit_needs_reproducible_kernels),
    ({"train", "slurm"}, _nodes_vary_in_elastic_mode_only),
    ({"train", "slurm"}, _shards_for_every_process),
    ({"train", "slurm"}, _cpus_of_gpus),
    ({"train"}, metric_rules.early_stopping_mode),
    ({"train", "data"}, metric_rules.early_stopping_has_metric),
    ({"checkpoint"}, metric_rules.best_mode),
    ({"checkpoint", "train", "scheduler", "evaluation"}, metric_rules.own_metrics_are_named),
    ({"scheduler"}, _scheduler_list_not_empty),
    ({"scheduler"}, _scheduler_durations),
    ({"scheduler"}, _plateau_rules),
    ({"scheduler", "data"}, metric_rules.plateau_has_metric),
    ({"scheduler", "optimizer"}, _cycled_momentum),
    ({"optimizer"}, _decay_is_taken),
    ({"loss"}, _probabilities),
    ({"loss"}, _class_weights_count),
    ({"loss"}, _targets_differ),
    ({"loss"}, _threshold_of_binary_targets),
    ({"model"}, model_rules.weights_known),
    ({"model"}, model_rules.unfreezes_what_is_frozen),
    ({"data"}, _files_can_be_split),
    ({"data"}, _table_is_named),
    *label_rules.RULES,
    ({"data"}, picture_rules.resize_size),
    ({"data"}, picture_rules.one_crop),
    ({"data"}, picture_rules.normalize_scale),
    ({"data"}, picture_rules.numbers_of_each_channel),
    ({"model", "data"}, picture_rules.inputs_of_three_channels),
    ({"model", "data"}, model_rules.constant_features),
    ({"model", "train"}, model_rules.whole_batches),
    ({"model", "train"}, model_rules.batchnorm_learns),
    ({"model", "train"}, model_rules.not_compiled),
    ({"model", "train"}, model_rules.not_audited),
    ({"data"}, _policy_arguments_fit),
    ({"train", "data"}, _mixing_has_neighbours),
)
