"""trainlib's training with everything on: metrics, rows, checkpoints each epoch, W&B (offline), TensorBoard."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from bench.rounds import Rounds
from bench.workload import Workload, one_layer
from trainlib.distributed import process_group
from trainlib.distributed.consensus.channel import open_channel
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.record import Attempt, recorded_attempt
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.directory import RunDirectory
from trainlib.runs.machine import launch_variables
from trainlib.training.build import training as build
from trainlib.training.hooks import Hook
from trainlib.training.session.outputs import open_trainer
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer


def train(workload: Workload, rounds: Rounds, *, reproducibility: str = "exact", gloo: bool = False) -> None:
    """Train as the rank that the environment variables name; rank 0 writes the outputs, as in any run.

    gloo   True to let gradients go through gloo, where they would go through shared memory
    """
    if gloo:
        mock.patch.object(build, "enable_local_allreduce").start()  # in a process of its own
    settings = workload.config.train.model_copy(update={"reproducibility": reproducibility})
    name = f"{workload.config.name}-{reproducibility}"
    config = workload.config.model_copy(update={"train": settings, "name": name})
    dataset = workload.dataset
    custom = CustomParts(model=one_layer if workload.model == "one-layer" else None)
    is_main = launch_variables.rank() == 0
    open_run = RunDirectory.open if is_main else lambda config, **_: RunDirectory(Path("runs") / config.name)
    run = open_run(config, fresh=True)
    attempt = Attempt(run.path, launch_variables.world_size(), 0) if is_main else None
    with (
        recorded_attempt(attempt) if attempt else nullcontext(),
        process_group.joined(config.train) as accelerator,
    ):
        training = build.build_training(build.build_inputs(config, dataset, accelerator, None, custom), None, custom)
        module, optimizer = training.state.classifier.module, training.state.optimizer.optimizer
        initial = workload.network(channels_last=True).state_dict()
        module.load_state_dict(dict(zip(module.state_dict(), initial.values(), strict=True)))
        hooks = [LossHook(training.plan.global_batch_size, rounds)]
        if attempt is not None:
            run.begin(config)
            attempt.begin(run.next_attempt())
        with open_trainer(config, run, training, hooks, attempt, None, dataset) as trainer:
            channel = open_channel(config.train)
            rounds.begin(module, optimizer)
            trainer.run(StopConsensus(StopFlag(), channel))


class LossHook(Hook):
    """Passes this rank's part of the loss of every step to `rounds`, without waiting for a GPU."""

    def __init__(self, batch_size: int, rounds: Rounds):
        self._batch_size = batch_size
        self._rounds = rounds

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Record the loss, weighted by this rank's share of the batch."""
        (micro_batch,) = result.micro_batches
        part = micro_batch.denominator / self._batch_size
        self._rounds.step(micro_batch.loss if part == 1.0 else micro_batch.loss * part)
