"""From a configuration to the parts of a run. Nothing here trains."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainlib.config import Config, ModelConfig, Normalize, TrainConfig, is_custom
from trainlib.data.augmentation import Augmentation, Preprocess
from trainlib.data.batches.loader import BatchLoader, DataModule
from trainlib.data.batches.plan import Plan, steps_per_epoch, to_steps
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.dataset import Dataset, ImageSet
from trainlib.data.splits import limit_samples, split_validation
from trainlib.distributed.allreduce.elastic import ElasticReducer
from trainlib.distributed.allreduce.shared_memory import enable_local_allreduce
from trainlib.errors import DataError, UserError
from trainlib.models import Classifier, build_model, check_forward, weights_normalization
from trainlib.models.custom_parts import ModelSource, build_custom, check_custom_loss, check_custom_model
from trainlib.models.ema import ExponentialMovingAverage
from trainlib.models.losses import CustomLoss, Objective
from trainlib.models.optimizers.build import build_optimizer, skips_on_found_inf
from trainlib.models.optimizers.schedule import Schedule
from trainlib.randomness import key, seed_generators
from trainlib.training.step.state import TrainState
from trainlib.training.trainer import LoopConfig


def build_classifier(
    config: Config,
    num_classes: int,
    device: torch.device,
    *,
    with_weights: bool = True,
    custom: ModelSource | None = None,
) -> Classifier:
    """The model with its initial weights, a function of the seed; made on the CPU, the same for every device.

    Its convolutions' weights, and so what they compute, are laid out channels last (docs/decisions/0010): faster on
    CPUs and GPUs alike. A custom model keeps its own layout, as a `view` of it may depend on that.

    with_weights   False for the same model around a checkpoint's values; `model.weights` is not read (see build_model)
    custom         in place of the model that the configuration names
    """
    seed_generators(key("initial weights", config.seed), torch.device("cpu"))
    if custom is not None:
        classifier = build_custom(custom, num_classes)
    else:
        classifier = build_model(config.model, num_classes, config.data.image_size, load_weights=with_weights)
        classifier.module.to(memory_format=torch.channels_last)
    classifier.module.to(device)
    return classifier


def build_train_state(
    config: Config,
    num_classes: int,
    accelerator: Accelerator,
    classifier: Classifier,
    custom_loss: CustomLoss | None = None,
    trained: nn.Module | None = None,
) -> TrainState:
    """trained   the part of the model that the engine is for, where it is fed with features (see `features`)."""
    is_elastic = config.train.reproducibility == "elastic"
    # `evaluation_mode` leaves out DistributedDataParallel, and nothing else. The module is on its device already; to
    # find that out, Accelerate would import torch's sharded tensors: half a second.
    module = classifier.module if trained is None else trained
    model: nn.Module = accelerator.prepare_model(module, device_placement=False, evaluation_mode=is_elastic)
    enable_local_allreduce(model, accelerator.device)
    world_size = accelerator.num_processes
    # Accelerate takes a step with a loss scaler for skipped if it was not made: kernels that skip would deceive it.
    kernels = accelerator.device if accelerator.scaler is None else None
    optimizer = build_optimizer(config.optimizer, classifier.module.named_parameters(), kernels)
    objective = Objective(config.loss, num_classes, accelerator.device, custom_loss)
    average = config.train.average
    if custom_loss is not None:
        check_custom_loss(objective, num_classes, accelerator.device)
    return TrainState(
        accelerator=accelerator,
        classifier=classifier,
        model=model,
        objective=objective,
        optimizer=accelerator.prepare_optimizer(optimizer),
        parameters=[parameter for group in optimizer.param_groups for parameter in group["params"]],
        buffers=list(model.buffers()),
        buffers_before=[buffer.clone() for buffer in model.buffers()],
        clip_grad_norm=config.train.clip_grad_norm,
        step_key=key("step", config.seed),
        skips_unseen=_skips_unseen(config, accelerator, optimizer),
        elastic=ElasticReducer(classifier.module, config.train.virtual_shards, world_size) if is_elastic else None,
        ema=ExponentialMovingAverage(classifier.module, average.decay, average.every) if average is not None else None,
        test_time=config.evaluation.test_time,
    )


def _skips_unseen(config: Config, accelerator: Accelerator, optimizer: Optimizer) -> bool:
    """Whether the host need not wait at each step to learn that it was applied: on a GPU, with such an optimizer.

    Not where training goes on after a step that was not, as the schedule waits then.
    """
    goes_on = config.train.on_nonfinite == "skip" or accelerator.scaler is not None
    return accelerator.device.type == "cuda" and skips_on_found_inf(optimizer) and not goes_on


def check_build(config: Config, num_samples: int, num_classes: int) -> None:
    """Build all that the configuration names, on the meta device: shapes without memory, weights without a download.

    Raises UserError for what cannot be built as configured.
    """
    plan, _ = build_plan(config, num_samples)
    with torch.device("meta"):
        classifier = build_model(config.model, num_classes, config.data.image_size)
    check_images(classifier, config, plan, num_classes, world_size=1)
    Objective(config.loss, num_classes, torch.device("cpu"))
    optimizer = build_optimizer(config.optimizer, classifier.module.named_parameters())
    Schedule(config.scheduler, optimizer, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch)


def check_images(classifier: Classifier, config: Config, plan: Plan, num_classes: int, world_size: int) -> None:
    """Raise UserError when the model cannot take the images, or learn from as few as a process may get at a time."""
    size = config.data.image_size
    check = check_custom_model if is_custom(config.model.name) else check_forward
    check(classifier, size, num_classes)
    rank_slices = [build_rank_slice(config.train, rank, world_size) for rank in range(world_size)]
    batch_sizes = {len(batch) for batch in plan.batches(0)}
    micro_batches = [
        len(micro_batch)
        for n in batch_sizes
        for rank_slice in rank_slices
        for micro_batch in rank_slice.micro_batches(torch.arange(n))
    ]
    if 1 in micro_batches:
        getters = (
            f"{rank_slices[0].num_shards} virtual shards"
            if rank_slices[0].virtual_shards
            else f"{world_size} process(es)"
        )
        try:
            check(classifier, size, num_classes, num_images=1)
        except UserError as error:
            raise UserError(
                f"train.batch_size: of {sorted(batch_sizes)} images in a batch, {getters} get pieces of "
                f"{sorted({*micro_batches} - {0})}, and {config.model.name} cannot learn from 1 image "
                "(BatchNorm): choose another train.batch_size or train.micro_batch_size, or data.drop_last=true"
            ) from error


def build_plan(config: Config, num_samples: int) -> tuple[Plan, torch.Tensor]:
    """The plan of a run over a training set of `num_samples`, and the indices held out for validation (int64).

    Raises DataError when the samples left for training are fewer than a batch, or than `data.limit`.
    """
    data, train = config.data, config.train
    train_ids, val_ids = split_validation(num_samples, data.val_fraction, config.seed)
    if data.limit is not None and data.limit > len(train_ids):
        raise DataError(
            f"data.limit: got {data.limit}, must be at most the {len(train_ids)} training samples there are"
        )
    train_ids = limit_samples(train_ids, data.limit, config.seed)
    if train.batch_size > len(train_ids):
        raise DataError(
            f"train.batch_size: got {train.batch_size}, must be at most the {len(train_ids)} training samples there are"
        )
    epoch_steps = steps_per_epoch(len(train_ids), train.batch_size, data.drop_last)
    total_steps = train.steps if train.steps is not None else (train.epochs or 0) * epoch_steps
    plan = Plan(train_ids, config.seed, train.batch_size, data.shuffle, data.drop_last, total_steps)
    return plan, val_ids


def build_rank_slice(train: TrainConfig, rank: int, world_size: int) -> RankSlice:
    """This rank's share of every batch."""
    virtual_shards = train.virtual_shards if train.reproducibility == "elastic" else None
    return RankSlice(rank, world_size, train.micro_batch_size, virtual_shards)


def build_data_module(config: Config, dataset: Dataset, val_ids: torch.Tensor, accelerator: Accelerator) -> DataModule:
    train, augment = config.train, config.data.augment
    rank_slice = build_rank_slice(train, accelerator.process_index, accelerator.num_processes)
    preprocess = build_preprocess(config, dataset)
    device = accelerator.device
    piece_size = min(train.micro_batch_size or train.batch_size, -(-train.batch_size // rank_slice.num_shards))

    def batches(images: ImageSet) -> BatchLoader:
        return BatchLoader(replace(images, images=images.images.to(device)), preprocess, rank_slice, device)

    return DataModule(
        train=batches(dataset.train),
        test=batches(dataset.test),
        augmentation=Augmentation(config.seed, augment.flip, augment.crop_padding, augment.fill),
        val_ids=val_ids,
        micro_batch_size=piece_size,
        eval_batch_size=2 * piece_size,  # no gradients to store
    )


def build_preprocess(config: Config, dataset: Dataset) -> Preprocess:
    mean, std = _normalization(config.data.normalize, config.model, dataset)
    return Preprocess(mean, std, config.data.image_size)


def build_loop_config(config: Config, epoch_steps: int) -> LoopConfig:
    return LoopConfig(
        log_every=config.tracking.log_every,
        log_grad_norm=config.tracking.health is not None,
        checkpoint_every=to_steps(config.checkpoint.every, epoch_steps),
        best=config.checkpoint.best,
        early_stopping=config.train.early_stopping,
        on_nonfinite=config.train.on_nonfinite,
        max_nonfinite_steps=config.train.max_nonfinite_steps,
    )


def _normalization(
    choice: str | Normalize, model: ModelConfig, dataset: Dataset
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, of images scaled to 0..1."""
    if isinstance(choice, Normalize):
        (r, g, b), (sr, sg, sb) = choice.mean, choice.std
        return (r, g, b), (sr, sg, sb)
    if choice == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return weights_normalization(model) or (dataset.mean, dataset.std)
