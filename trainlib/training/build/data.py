"""What a run trains, validates and tests on: the plan of its steps, and the prepared images."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from accelerate import Accelerator

from trainlib.config import Augment, Config, DataConfig, ModelConfig, Normalize, TrainConfig, is_custom
from trainlib.config.libraries.catalog import weights_file
from trainlib.data.augment.custom import Transform
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader, DataModule
from trainlib.data.batches.plan import Plan, steps_per_epoch
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.batches.sampling import Sampling
from trainlib.data.datasets.dataset import Dataset, ImageSet, PerChannel
from trainlib.data.identity.splits import limit_samples, split_validation
from trainlib.data.survey import inspection
from trainlib.data.targets import are_sets, strata
from trainlib.errors import DataError, UserError
from trainlib.models import losses, preprocessing_of
from trainlib.training.build.augmentation import build_augmentation
from trainlib.training.metrics.class_counts import TOP

logger = logging.getLogger("trainlib")


def build_plan(
    config: Config,
    labels_N: torch.Tensor,
    identities_N: torch.Tensor | None = None,
    groups_N: torch.Tensor | None = None,
    val_ids: torch.Tensor | None = None,
) -> tuple[Plan, torch.Tensor]:
    """Return the plan of a run over these training samples, and the indices held out for validation (int64).

    labels_N, identities_N, groups_N   of all training samples (see `ImageSet`)
    val_ids                            those that the data bring for validation; None where some are drawn

    A global batch has at most all of the samples that are trained on. Raises DataError when `data.limit` is more.
    """
    data, train = config.data, config.train
    if val_ids is None:
        train_ids, val_ids = split_validation(
            labels_N, data.val_fraction, config.seed, data.split, identities_N, groups_N
        )
    else:
        is_val_N = torch.zeros(len(labels_N), dtype=torch.bool).index_fill(0, val_ids, True)
        train_ids = torch.nonzero(~is_val_N)[:, 0]
    if data.limit is not None and data.limit > len(train_ids):
        raise DataError(
            f"data.limit: got {data.limit}, must be at most the {len(train_ids)} training samples there are"
        )
    train_ids = limit_samples(train_ids, data.limit, config.seed)
    batch_size = min(train.batch_size, len(train_ids))
    epoch_steps = steps_per_epoch(len(train_ids), batch_size, data.drop_last)
    total_steps = train.steps if train.steps is not None else (train.epochs or 0) * epoch_steps
    sampling = None
    if data.balance or data.repeats > 1:
        sampling = Sampling(strata(labels_N[train_ids]), data.balance, data.repeats)
    plan = Plan(train_ids, config.seed, batch_size, data.shuffle, data.drop_last, total_steps, sampling)
    return plan, val_ids


def plan_of(config: Config, dataset: Dataset) -> tuple[Plan, torch.Tensor]:
    """Return the plan of a run over a data set's training samples; see `build_plan`."""
    train = dataset.train
    return build_plan(config, train.labels_N, train.identities_N, train.groups_N, dataset.val_ids)


def require_labels(config: Config, dataset: Dataset) -> None:
    """Raise UserError where a data set that was given in Python has other labels than the configuration says."""
    labels = [dataset.train.labels_N, dataset.test.labels_N]
    if any(are_sets(labels_N) != config.data.has_sets for labels_N in labels):
        got = [f"{labels_N.dtype} {list(labels_N.shape)}" for labels_N in labels]
        raise UserError(
            f"data.labels: got {config.data.labels}, and the labels of train and test are {' and '.join(got)}: must be "
            "whole numbers [N] with data.labels=one, or bool [N, C] with data.labels=several"
        )


def warn_of_useless_data(config: Config, dataset: Dataset, plan: Plan, val_ids: torch.Tensor) -> None:
    """Log what about the data or the class weights makes a training useless, or other than it looks.

    Raises UserError if nothing can be learned.
    """
    labels_N = dataset.train.labels_N[plan.ids_N]
    loss = losses.with_class_weights(config.loss, labels_N, len(dataset.class_names))
    names, warnings = dataset.class_names, inspection.inspect(dataset, plan.ids_N, val_ids)
    logger.info("%s", inspection.summary(dataset, plan.ids_N, val_ids))
    if len(val_ids) and config.data.val_fraction == 0:
        warnings.append(
            f"data.val_fraction is 0, so that no best checkpoint is kept and the last weights are tested, but the data "
            f"bring {len(val_ids)} images for validation: leave the key out"
        )
    if config.train.batch_size > len(plan.ids_N):
        logger.info(
            "train.batch_size: got %d, and there are %d training samples: each step takes all of them",
            config.train.batch_size,
            len(plan.ids_N),
        )
    if not is_custom(config.loss.name):
        objective = losses.Objective(loss, len(names), torch.device("cpu"))
        losses.check_class_weights(objective, labels_N)
    for line in losses.weights_by_class(loss, names):
        logger.info("%s", line)
    if notice := inspection.text_order_notice(names):
        by_position = losses.weights_by_class(config.loss, names)
        warnings.append(notice) if by_position else logger.info("%s", notice)
    if plan.sampling is not None and config.data.balance:
        logger.info("%s", plan.sampling.describe(names, config.seed))
        if losses.is_balanced(config.loss):
            warnings.append(
                "data.balance draws small classes more often, and loss.weight: balanced makes each of them count more: "
                "together they count more than the large ones; leave one of the two out"
            )
    if config.model.freeze and config.model.weights is None:
        warnings.append(
            f"model.freeze is {config.model.freeze}, but model.weights is null: the frozen layers keep their random "
            "values. Give weights, or leave model.freeze out"
        )
    if config.train.keep_batchnorm and config.model.weights is None and not is_custom(config.model.name):
        warnings.append(
            "train.keep_batchnorm is true, but model.weights is null: BatchNorm keeps a mean of 0 and a variance of 1. "
            "Give weights, or leave it out"
        )
    if config.data.repeats > 1 and config.data.augment == Augment():
        warnings.append("data.repeats repeats the same images, as data.augment changes none: leave it out")
    jitter = config.data.augment.color_jitter
    if config.data.channels == 1 and jitter is not None and (jitter.saturation or jitter.hue):
        warnings.append(
            "data.augment.color_jitter: saturation and hue change nothing of grey images (data.channels: 1): leave "
            "them out"
        )
    if "val/top5" in config.metrics() and len(names) <= TOP:
        warnings.append(f"val/top5 is always 1 with {TOP} classes or fewer, and the data have {len(names)}")
    for warning in warnings:
        logger.warning("%s", warning)


def build_rank_slice(train: TrainConfig, rank: int, world_size: int) -> RankSlice:
    """Return this rank's share of every global batch, as the configuration and the world size say."""
    virtual_shards = train.virtual_shards if train.reproducibility == "elastic" else None
    return RankSlice(rank, world_size, train.micro_batch_size, virtual_shards)


def build_data_module(
    config: Config,
    dataset: Dataset,
    val_ids: torch.Tensor,
    accelerator: Accelerator,
    transform: Transform | None = None,
) -> DataModule:
    """Return the loaders of the training and test images on this rank's device, and how large their batches are."""
    train = config.train
    rank_slice = build_rank_slice(train, accelerator.process_index, accelerator.num_processes)
    preprocess = build_preprocess(config, dataset)
    device = accelerator.device
    batch_size = min(train.batch_size, len(dataset.train.labels_N))
    piece_size = min(train.micro_batch_size or batch_size, -(-batch_size // rank_slice.num_shards))

    def batches(images: ImageSet) -> BatchLoader:
        return BatchLoader(replace(images, images=images.images.to(device)), preprocess, rank_slice, device)

    return DataModule(
        train=batches(dataset.train),
        test=batches(dataset.test),
        augmentation=build_augmentation(config, transform),
        val_ids=val_ids,
        micro_batch_size=piece_size,
        eval_batch_size=2 * piece_size,  # no gradients to store
    )


def build_preprocess(config: Config, dataset: Dataset) -> Preprocess:
    """Return how images become the model's input: the mean and deviation of each channel."""
    mean, std = _normalization(config.data, config.model, dataset)
    # Images of other sizes come only from data in memory, in runs that began before these were framed.
    return Preprocess(mean, std, config.data.image_size if config.data.is_older else None)


def _normalization(data: DataConfig, model: ModelConfig, dataset: Dataset) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of each channel, of images scaled to 0..1."""
    if isinstance(data.normalize, Normalize):
        return tuple(data.normalize.mean), tuple(data.normalize.std)
    if data.normalize == "none":
        return (0.0,) * data.channels, (1.0,) * data.channels
    # That of weights in a file is in the configuration by now (`pin_weights`), but of runs that began before it was.
    is_file = model.weights is None or weights_file(model.weights) is not None
    trained = None if is_file else preprocessing_of(model, data.channels)
    return (trained.mean, trained.std) if trained else (dataset.mean, dataset.std)
