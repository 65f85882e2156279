"""A run goes on from a snapshot in memory as it does from a checkpoint: the same weights, the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from fit_parts import Net, arrays

import trainlib
from trainlib.runs.attempt.snapshot_folder import SNAPSHOTS
from trainlib.runs.files.json_records import read_lines

DIES_AT = 23
DATASET = trainlib.image_dataset(arrays(0, 40), arrays(100, 10), classes=["a", "b", "c"])
ARGUMENTS = (
    *("train.epochs=15", "train.batch_size=20", "tracking.log_every=1", "name=run"),
    *("checkpoint={every: 13st, best: null}", "train.average={decay: 0.9}", "optimizer={name: AdamW, lr: 1e-3}"),
    *("train.reproducibility=elastic", "train.virtual_shards=2"),
    *("tracking.wandb.mode=disabled", "tracking.tensorboard=false"),
)


class Dies(trainlib.Hook):
    def on_step_end(self, trainer: Any, result: Any) -> None:
        if trainer.progress.step == DIES_AT:
            raise RuntimeError("as a kill would")


def test_the_next_start_goes_on_from_a_snapshot_that_is_newer_than_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainlib.training.checkpoints.snapshots.SHARE", 1.0)
    whole, killed, kept = (tiny.in_folder(tmp_path, name) for name in ("whole", "killed", "kept"))
    monkeypatch.chdir(whole)
    trainlib.fit(*ARGUMENTS, model=Net, dataset=DATASET)
    monkeypatch.chdir(killed)
    monkeypatch.setenv(SNAPSHOTS, str(kept))
    with pytest.raises(RuntimeError, match="as a kill would"):
        trainlib.fit(*ARGUMENTS, model=Net, dataset=DATASET, hooks=[Dies()])
    trainlib.fit(*ARGUMENTS, model=Net, dataset=DATASET)
    tiny.assert_same_result(killed, whole)
    starts = [start["from_step"] for start in tiny.attempts(killed, "start")]
    assert starts in ([0, 15], [0, 20])  # the latter is left out where the former is still being written
    log = (killed / "runs/run/logs/rank-0.log").read_text()
    assert f"resuming from step {starts[1]} (a snapshot in memory): exact" in log
    assert len(read_lines(killed / "runs/run/metrics.jsonl")) == len(read_lines(whole / "runs/run/metrics.jsonl"))
