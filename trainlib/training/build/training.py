"""All that a run trains with, at its beginning or in the state of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from accelerate import Accelerator
from torch import nn

from trainlib.config import AverageConfig, Config, with_older_values
from trainlib.data.batches.plan import Plan, to_steps
from trainlib.data.datasets.dataset import Dataset
from trainlib.distributed.allreduce import elastic
from trainlib.distributed.allreduce.elastic import ElasticReducer
from trainlib.distributed.allreduce.reducer import DataParallelReducer
from trainlib.distributed.allreduce.shared_memory import enable_local_allreduce
from trainlib.distributed.devices.out_of_memory import explained
from trainlib.distributed.process_group import first_of_machine_first, wrap_model
from trainlib.errors import CheckpointError, RunDirectoryError
from trainlib.models import set_train_mode
from trainlib.models.architectures.whitening import init_whitening
from trainlib.models.forward.recomputation import recompute_blocks
from trainlib.models.freezing import unfreeze_stages
from trainlib.models.losses import Objective, with_class_weights
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.longer import describe_early_end, lengthen
from trainlib.models.optimizers.schedule import Schedule
from trainlib.models.own_parts.custom_parts import (
    NO_CUSTOM_PARTS,
    CustomParts,
    check_custom_loss,
)
from trainlib.models.weights.ema import ExponentialMovingAverage, NoAverage, scaled_decay, update_decay
from trainlib.models.weights.files import load_weights
from trainlib.models.weights.snapshot import Snapshot
from trainlib.randomness import key
from trainlib.training.build.between_ranks import build_audit, build_pace, synchronized
from trainlib.training.build.cuda_graph import build_graph_steps
from trainlib.training.build.data import (
    build_data_module,
    build_preprocess,
    plan_of,
    require_labels,
    warn_of_useless_data,
)
from trainlib.training.build.model import build_classifier, check_images
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.metrics.label_sets import DEFAULT_THRESHOLD
from trainlib.training.metrics.own import check_own_metrics
from trainlib.training.metrics.progress import Progress
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import warm_up
from trainlib.training.step.update import choose_update
from trainlib.training.trainer import LoopConfig, Training
from trainlib.training.tuning.autotune import autotune
from trainlib.training.tuning.feature_cache import Features, TrainingInputs

logger = logging.getLogger("trainlib")


@explained("the model")
def build_inputs(
    config: Config,
    dataset: Dataset,
    accelerator: Accelerator,
    start: Checkpoint | None,
    custom: CustomParts = NO_CUSTOM_PARTS,
) -> TrainingInputs:
    """Return the model, with its initial weights or those of `start`, and the plan and samples of the run.

    A collective. Raises UserError, RunDirectoryError or CheckpointError for what does not fit together.
    """
    if config.train.reproducibility == "elastic":
        elastic.require_alike(config.train.virtual_shards, accelerator, start.manifest if start else None)
    num_classes = len(dataset.class_names)
    require_labels(config, dataset)
    plan, val_ids = plan_of(config, dataset)
    warn_of_useless_data(config, dataset, plan, val_ids)
    if start is not None and start.step > plan.total_steps:
        raise RunDirectoryError(
            f"{config.name} has already trained {start.step} steps, and this configuration ends at {plan.total_steps}; "
            "raise train.epochs or train.steps"
        )
    # Published weights are fetched by one process of each machine; a checkpoint needs none of them.
    with first_of_machine_first(accelerator) if config.model.weights and not start else nullcontext():
        classifier = build_classifier(
            config, num_classes, accelerator.device, with_weights=start is None, custom=custom.model
        )
    check_images(classifier, config, plan, num_classes, accelerator.num_processes)
    if start is not None:
        try:
            load_weights(classifier.module, start.model_state())
        except RuntimeError as error:  # a given model of the same name may have become another one
            raise CheckpointError(f"{start.path} does not fit the model: {error}") from error
    elif config.model.weights is None:  # a file of weights brings the whitening that they were trained with
        init_whitening(classifier.module, dataset.train.images, plan.ids_N, build_preprocess(config, dataset))
    samples = build_data_module(config, dataset, val_ids, accelerator, custom.transform)
    return TrainingInputs(config, classifier, plan, samples, accelerator, num_classes)


@explained("the model, with its gradient and one image,")
def build_training(
    inputs: TrainingInputs,
    start: Checkpoint | None,
    custom: CustomParts = NO_CUSTOM_PARTS,
    features: Features | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> Training:
    """Return all that the run trains with, in the state that `start` holds. A collective.

    features    what the frozen layers give, which takes the place of the images
    heartbeat   called between parts that may take long
    """
    config, plan, samples = inputs.config, inputs.plan, inputs.samples
    if features is not None:
        samples = replace(samples, train=features.batches)
    trained = features.trained if features is not None else None
    state = build_train_state(inputs, custom, trained, start.step if start is not None else 0)
    heartbeat()
    warm_up(state, samples.train.dummy_input())
    heartbeat()
    schedule = Schedule(
        config.scheduler,
        state.update.stepped,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
    rank_slice = samples.train.rank_slice
    progress = Progress.at_start(rank_slice.num_shards)
    if config.data.has_sets:  # before the first validation, and without one
        progress.thresholds = [DEFAULT_THRESHOLD] * inputs.num_classes
    if start is not None:
        saved = start.trainer_state()
        state.load_state_dict(saved)
        schedule.load_state_dict(saved["schedule"])
        _lengthen(schedule, start, config, plan.steps_per_epoch)
        progress = Progress.from_state(saved["progress"], rank_slice.shards, rank_slice.num_shards)
    elif inputs.accelerator.is_main_process:
        for wasted in (
            describe_early_end(schedule, plan.total_steps),
            state.stages.describe_unreached(plan.total_steps),
        ):
            if wasted:
                logger.warning("%s", wasted)
    heartbeat()
    autotune(config.train, state, samples, progress, plan.total_steps)
    graph = build_graph_steps(config, state, samples, progress, custom)
    return Training(state, plan, schedule, samples, progress, build_loop_config(config, plan.steps_per_epoch), graph)


def _lengthen(schedule: Schedule, start: Checkpoint, config: Config, steps_per_epoch: int) -> None:
    """Let the schedule follow a run that does more steps than its checkpoint planned, and log the learning rate then.

    Raises RunDirectoryError if the schedule has ended by then.
    """
    values = start.manifest.get("config")
    if isinstance(values, Mapping):
        earlier = Config.model_validate(with_older_values(values))
        if longer := lengthen(schedule, earlier, config, steps_per_epoch):
            logger.info("%s", longer)


def build_train_state(
    inputs: TrainingInputs,
    custom: CustomParts = NO_CUSTOM_PARTS,
    trained: nn.Module | None = None,
    step: int = 0,
) -> TrainState:
    """Return the state that the steps work on, with initial values. A collective.

    trained   the part of the model that is trained on features (see `feature_cache`); None for the whole model
    step      the step that comes next, from 0: which parameters are frozen depends on it
    """
    config, accelerator, plan = inputs.config, inputs.accelerator, inputs.plan
    stages = unfreeze_stages(config.model, inputs.classifier, plan.steps_per_epoch)
    stages.train_all(inputs.classifier.module)  # the optimizer and the EMA hold all that is trained at some time
    # With a loss scaler the host waits for the gradient's overflow anyway, and a fused kernel would scale once more.
    kernels = accelerator.device if accelerator.scaler is None else None
    whole = inputs.classifier
    optimizer = build_optimizer(config.optimizer, whole.module, whole.heads, kernels, custom.optimizer)
    prepared = accelerator.prepare_optimizer(optimizer)
    ema = build_average(config.train.average, inputs)
    classifier = stages.enter(inputs.classifier, stages.of(step))
    set_train_mode(classifier)
    is_elastic = config.train.reproducibility == "elastic"
    module = classifier.module if trained is None else trained
    if config.model.checkpoint_activations:
        num_blocks = recompute_blocks(classifier.module)
        if accelerator.is_main_process:
            logger.info("activations of %d blocks are computed again in the backward pass", num_blocks)
    together = synchronized(config, classifier.module, module, accelerator) if config.model.sync_batchnorm else None
    model = wrap_model(accelerator, module, add_up_gradients=not is_elastic)
    pace = build_pace(config, accelerator, inputs.samples.train.rank_slice)
    enable_local_allreduce(model, accelerator.device, pace)
    return TrainState(
        accelerator=accelerator,
        classifier=classifier,
        model=model,
        objective=_build_objective(inputs, custom),
        optimizer=prepared,
        reducer=(
            ElasticReducer(classifier.module, config.train.virtual_shards, accelerator.num_processes)
            if is_elastic
            else DataParallelReducer(accelerator, model, pace, fixes_micro_batches=config.model.sync_batchnorm)
        ),
        update=choose_update(config.train, accelerator, prepared),
        ema=ema,
        parameters=[parameter for group in optimizer.param_groups for parameter in group["params"]],
        buffers=Snapshot(model.buffers()),
        clip_grad_norm=config.train.clip_grad_norm,
        step_key=key("step", config.seed),
        stages=stages,
        stage=stages.of(step),
        test_time=config.evaluation.test_time,
        audit=build_audit(config, accelerator, module),
        own_metrics=custom.metrics,
        together=together,
        pace=pace,
    )


def _build_objective(inputs: TrainingInputs, custom: CustomParts) -> Objective:
    """Return the loss on its device. Raises UserError where a loss or metric of the user's own breaks its rule."""
    config, num_classes, device = inputs.config, inputs.num_classes, inputs.accelerator.device
    labels_N = inputs.samples.train.labels_N[inputs.plan.ids_N]
    objective = Objective(with_class_weights(config.loss, labels_N, num_classes), num_classes, device, custom.loss)
    of_sets = config.data.has_sets
    if custom.loss is not None:
        check_custom_loss(objective, num_classes, device, of_sets=of_sets, of_each=custom.is_code)
    check_own_metrics(custom.metrics, num_classes, of_sets=of_sets)
    return objective


def build_average(config: AverageConfig | None, inputs: TrainingInputs) -> ExponentialMovingAverage | NoAverage:
    """Return the EMA of the weights that `train.average` asks for, with durations turned into steps."""
    if config is None:
        return NoAverage()
    decay = decay_of(config, inputs.config.train.batch_size, inputs.plan)
    return ExponentialMovingAverage(inputs.classifier.module, decay, config.every)


def decay_of(config: AverageConfig, batch_size: int, plan: Plan) -> Callable[[int], float]:
    """Return the decay of each update of the EMA, as a function of its number, from 1."""
    decay = config.decay
    if config.scale_decay:
        decay = scaled_decay(decay, config.every, batch_size, plan.total_steps / plan.steps_per_epoch)
    is_duration = config.warmup not in ("tensorflow", "timm", "none")
    warmup = to_steps(config.warmup, plan.steps_per_epoch) if is_duration else config.warmup
    return partial(update_decay, decay=decay, every=config.every, warmup=warmup)


def build_loop_config(config: Config, epoch_steps: int) -> LoopConfig:
    """Return the settings of the loop, with durations turned into steps."""
    return LoopConfig(
        log_every=config.tracking.log_every,
        log_grad_norm=config.tracking.health is not None,
        checkpoint_every=None if config.checkpoint.every == "auto" else to_steps(config.checkpoint.every, epoch_steps),
        best=config.checkpoint.best,
        early_stopping=config.train.early_stopping,
        on_nonfinite=config.train.on_nonfinite,
        max_nonfinite_steps=config.train.max_nonfinite_steps,
    )
