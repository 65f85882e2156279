"""Our training with all of it on: metrics, a row every 50 steps, checkpoints each epoch, W&B (offline), TensorBoard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.rounds import Rounds
from bench.workload import Workload, one_layer
from trainlib import distributed
from trainlib.custom import CustomParts
from trainlib.loop import Loop
from trainlib.outputs import open_outputs
from trainlib.rundir import RunDirectory
from trainlib.session import build_loop
from trainlib.stopping import Agreement, StopFlag


def train(workload: Workload, rounds: Rounds) -> None:
    config, dataset = workload.config, workload.dataset
    custom = CustomParts(model=one_layer if workload.model == "one-layer" else None)
    run = RunDirectory.open(config, fresh=True, runs=Path("runs"))
    with (
        run.attempt(world_size=1, from_step=0) as attempt,
        distributed.joined(config.train) as accelerator,
    ):
        loop = build_loop(config, dataset, accelerator, None, custom)
        module, optimizer = loop.engine.classifier.module, loop.engine.optimizer.optimizer
        module.load_state_dict(
            dict(zip(module.state_dict(), workload.network(channels_last=True).state_dict().values(), strict=True))
        )
        with open_outputs(config, run, loop, dataset, attempt, None) as outputs:
            loop.outputs = replace(outputs, beat=Losses(loop, rounds).beat)
            run.begin(config)
            rounds.begin(module, optimizer)
            loop.run(Agreement(StopFlag(), None))


class Losses:
    """The loss of every step, from what the loop adds up over an epoch."""

    def __init__(self, loop: Loop, rounds: Rounds):
        self._loop, self._rounds = loop, rounds
        self._before = 0.0

    def beat(self) -> None:
        """After each step."""
        loop = self._loop
        total = loop.progress.sums[0][0]
        if (loop.progress.step - 1) % loop.plan.steps_per_epoch == 0:
            self._before = 0.0
        loss = (total - self._before) / loop.plan.global_batch_size
        self._before = total
        self._rounds.step(loss)
