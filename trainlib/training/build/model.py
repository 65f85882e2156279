"""The network of a run, with its initial weights, and whether it fits the configuration."""

from __future__ import annotations

from functools import partial

import torch

from trainlib.config import Config, is_custom
from trainlib.data import DatasetInfo
from trainlib.data.batches.plan import Plan
from trainlib.errors import UserError
from trainlib.models import (
    Classifier,
    build_model,
    check_forward,
    keep_batchnorm,
    lay_out_channels_last,
    set_train_mode,
)
from trainlib.models.architectures.average_pool import replace_average_pools
from trainlib.models.forward.recomputation import recompute_blocks
from trainlib.models.forward.synchronized_batchnorm import synchronize
from trainlib.models.freezing import unfreeze_stages
from trainlib.models.losses import Objective, with_class_weights
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.schedule import Schedule
from trainlib.models.own_parts.custom_parts import (
    NO_CUSTOM_PARTS,
    CustomParts,
    ModelSource,
    build_custom,
    check_custom_loss,
    check_custom_model,
)
from trainlib.randomness import key, seed_generators
from trainlib.training.build.augmentation import build_augmentation
from trainlib.training.build.data import build_plan, build_rank_slice
from trainlib.training.build.run_weights import local_weights, pin_weights
from trainlib.training.metrics.own import check_own_metrics


def build_classifier(
    config: Config,
    num_classes: int,
    device: torch.device,
    *,
    with_weights: bool = True,
    custom: ModelSource | None = None,
) -> Classifier:
    """Return the model with its initial weights, a function of the seed, made on the CPU: the same for every device.

    Its convolutions' weights, and so what they compute, are laid out channels last (docs/decisions/0010): faster on
    CPUs and GPUs alike. A custom model keeps its own layout, as a `view` of it may depend on that.

    with_weights   False for the same model around a checkpoint's values; `model.weights` is not read (see build_model)
    custom         in place of the model that the configuration names
    """
    seed_generators(key("initial weights", config.seed), torch.device("cpu"))
    if custom is not None:
        classifier = build_custom(custom, num_classes)
    else:
        model = local_weights(config.model) if with_weights else config.model
        classifier = build_model(
            model, num_classes, config.data.image_size, channels=config.data.channels, load_weights=with_weights
        )
        lay_out_channels_last(classifier.module)
    if config.train.keep_batchnorm:
        classifier = keep_batchnorm(classifier)
    classifier.module.to(device)
    if device.type != "cpu" and config.train.reproducibility != "fast":
        replace_average_pools(classifier.module)
    return classifier


def check_build(config: Config, data: DatasetInfo, custom: CustomParts = NO_CUSTOM_PARTS) -> torch.nn.Module:
    """Build all that the configuration names, on the meta device: shapes without memory, weights without a download.

    data     what the data set holds
    custom   parts of the user's own; their model is built on the CPU, as it may do what has no meaning without values

    Returns the network. Raises UserError for what cannot be built as configured.
    """
    plan, _ = build_plan(config, data.labels_N, data.identities_N, data.groups_N, data.val_ids)
    num_classes, cpu = data.num_classes, torch.device("cpu")
    if custom.model is not None:
        classifier = build_classifier(config, num_classes, cpu, custom=custom.model)
    else:
        with torch.device("meta"):
            model, channels = local_weights(pin_weights(config, fresh=True).model), config.data.channels
            classifier = build_model(model, num_classes, config.data.image_size, channels=channels)
        if config.train.keep_batchnorm:
            classifier = keep_batchnorm(classifier)
    check_images(classifier, config, plan, num_classes, world_size=1)
    build_augmentation(config, custom.transform)
    loss = with_class_weights(config.loss, data.labels_N[plan.ids_N], num_classes)
    objective = Objective(loss, num_classes, cpu, custom.loss)
    if custom.loss is not None:
        check_custom_loss(objective, num_classes, cpu, of_sets=config.data.has_sets, of_each=custom.is_code)
    check_own_metrics(custom.metrics, num_classes, of_sets=config.data.has_sets)
    stages = unfreeze_stages(config.model, classifier, plan.steps_per_epoch)
    stages.train_all(classifier.module)
    optimizer = build_optimizer(config.optimizer, classifier.module, classifier.heads, own=custom.optimizer)
    Schedule(config.scheduler, optimizer, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch)
    if config.model.sync_batchnorm:
        synchronize(classifier.module, None)
    if config.model.checkpoint_activations:
        recompute_blocks(classifier.module)
    return classifier.module


def check_images(classifier: Classifier, config: Config, plan: Plan, num_classes: int, world_size: int) -> None:
    """Raise UserError when the model cannot take the images, or learn from as few as a process may get at a time.

    Asked of the last stage of `model.unfreeze`, as BatchNorm that is frozen takes a single image.
    """
    stages = unfreeze_stages(config.model, classifier, plan.steps_per_epoch)
    if stages.released:
        set_train_mode(stages.enter(classifier, len(stages.released)))
    _check_images(classifier, config, plan, num_classes, world_size)
    if stages.released:
        set_train_mode(stages.enter(classifier, 0))


def _check_images(classifier: Classifier, config: Config, plan: Plan, num_classes: int, world_size: int) -> None:
    size = config.data.train_image_size or config.data.image_size
    check = partial(
        check_custom_model if is_custom(config.model.name) else check_forward, channels=config.data.channels
    )
    check(classifier, config.data.image_size, num_classes)
    if size != config.data.image_size:
        check(classifier, size, num_classes, key="data.train_image_size")
    rank_slices = [build_rank_slice(config.train, rank, world_size) for rank in range(world_size)]
    batch_sizes = {len(batch) for batch in plan.batches(0)}
    micro_batches = [
        len(micro_batch)
        for n in batch_sizes
        for rank_slice in rank_slices
        for micro_batch in rank_slice.micro_batches(torch.arange(n))
    ]
    if config.model.sync_batchnorm:  # which learns from a whole batch, however it is cut
        micro_batches = list(batch_sizes)
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
