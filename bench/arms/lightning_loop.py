"""Lightning's Trainer with its defaults, and with `barebones`, as tuned is: all is off but the loop."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor, nn

from bench.arms.feeds import batches, tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd


class Classifier(lightning.LightningModule):
    def __init__(self, network: nn.Module, rounds: Rounds, *, log: bool):
        super().__init__()
        self.network = network
        self._rounds, self._log = rounds, log
        self._criterion = nn.CrossEntropyLoss()

    def configure_optimizers(self) -> Any:
        return sgd(self.network)

    def on_train_start(self) -> None:
        optimizer: Any = self.optimizers()
        self._rounds.begin(self.network, optimizer.optimizer)

    def training_step(self, batch: Any, _: int) -> Tensor:
        inputs, labels = batch
        self._loss = self._criterion(self.network(inputs), labels)
        if self._log:
            self.log("train_loss", self._loss)
        return self._loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._rounds.step(self._loss)


def train(
    workload: Workload,
    rounds: Rounds,
    *,
    feed: str,
    workers: int = 0,
    barebones: bool = False,
    tuned: bool = False,
    keep_memory: bool = False,
) -> None:
    if keep_memory:
        tune()
    barebones = barebones or tuned
    network = workload.network(channels_last=tuned)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="gpu" if workload.gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if workload.precision == "bf16" else "32-true",
        barebones=barebones,
    )
    loader = batches(workload, feed, workers, pin_memory=tuned and workload.gpu)
    trainer.fit(Classifier(network, rounds, log=not barebones), loader)
