"""Our training with all of it on: metrics, a row every 50 steps, checkpoints each epoch, W&B (offline), TensorBoard."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from bench.rounds import Rounds
from bench.workload import Workload, one_layer
from trainlib.distributed import process_group
from trainlib.distributed.channel import control_channel
from trainlib.distributed.stop_consensus import StopConsensus
from trainlib.models.custom_parts import CustomParts
from trainlib.runs import launch_variables
from trainlib.runs.attempts import recorded_attempt
from trainlib.runs.directory import RunDirectory
from trainlib.runs.stop_request import StopFlag
from trainlib.training.outputs import open_outputs
from trainlib.training.session import build_trainer
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Outputs, Trainer


def train(workload: Workload, rounds: Rounds, *, reproducibility: str = "exact") -> None:
    """As one rank of those that the environment tells of; rank 0 has the outputs, as in any run."""
    settings = workload.config.train.model_copy(update={"reproducibility": reproducibility})
    name = f"{workload.config.name}-{reproducibility}"
    config = workload.config.model_copy(update={"train": settings, "name": name})
    dataset = workload.dataset
    custom = CustomParts(model=one_layer if workload.model == "one-layer" else None)
    is_main = launch_variables.rank() == 0
    run = RunDirectory.open(config, fresh=True, runs=Path("runs")) if is_main else None
    world_size = launch_variables.world_size()
    with (
        recorded_attempt(run.path, world_size=world_size, from_step=0) if run else nullcontext() as attempt,
        process_group.joined(config.train) as accelerator,
    ):
        trainer = build_trainer(config, dataset, accelerator, None, custom)
        module, optimizer = trainer.state.classifier.module, trainer.state.optimizer.optimizer
        initial = workload.network(channels_last=True).state_dict()
        module.load_state_dict(dict(zip(module.state_dict(), initial.values(), strict=True)))
        with (
            open_outputs(config, run, trainer, dataset, attempt, None)
            if run and attempt
            else nullcontext(Outputs()) as outputs
        ):
            trainer.outputs = outputs
            trainer.accumulator.add = Losses(trainer, rounds).take  # type: ignore[method-assign]
            if run:
                run.begin(config)
            channel = control_channel(config.train)
            rounds.begin(module, optimizer)
            trainer.run(StopConsensus(StopFlag(), channel))


class Losses:
    """Takes this rank's part of the loss of every step on its way to the tally; nothing waits for a GPU."""

    def __init__(self, trainer: Trainer, rounds: Rounds):
        self._take = trainer.accumulator.add
        self._batch_size = trainer.plan.global_batch_size
        self._rounds = rounds

    def take(self, step: int, result: StepResult) -> None:
        self._take(step, result)
        (measured,) = result.measured
        part = measured.denominator / self._batch_size
        self._rounds.step(measured.loss if part == 1.0 else measured.loss * part)
