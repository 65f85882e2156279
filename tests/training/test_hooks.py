"""Hooks: each event at its place in the loop, on every rank; what goes wrong in one; a misspelt event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_once
import pytest
import ranks
import tiny
from tiers import slow_but

import trainlib
import trainlib.data
from trainlib.runs.records.rows import Row

ARGUMENTS = ("data.limit=40", "train.epochs=2", "train.batch_size=20", "tracking.log_every=1", "name=run")


class Story(trainlib.Hook):
    """Notes every event."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, trainer: Any) -> None:
        self.events.append(f"start at {trainer.progress.step}")

    def on_progress(self) -> None:
        if self.events[-1] != "progress":
            self.events.append("progress")

    def on_row(self, row: Row) -> None:
        self.events.append(f"row {row['split']} {row.get('scope', '')}".strip())

    def on_epoch_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        self.events.append(f"epoch {trainer.epoch} {sorted(metrics)}")

    def on_checkpoint(self) -> None:
        self.events.append("checkpoint")

    def on_step_end(self, trainer: Any, result: Any) -> None:
        self.events.append(f"step {trainer.progress.step} {result.status.value}")

    def on_stop(self, trainer: Any) -> None:
        self.events.append(f"stop at {trainer.progress.step}")

    def close(self) -> None:
        self.events.append("close")


EPOCH = [
    "train/accuracy",
    "train/loss",
    *(f"val/{name}" for name in ("accuracy", "balanced_accuracy", "loss", "macro_f1", "top5")),
]
STORY = [
    "start at 0",
    *("progress", "row train step", "step 1 applied"),
    *("progress", "row train step", "row train epoch", "progress", "row val"),
    *(f"epoch 1 {EPOCH}", "checkpoint", "step 2 applied"),
    *("progress", "row train step", "step 3 applied"),
    *("progress", "row train step", "row train epoch", "progress", "row val"),
    *(f"epoch 2 {EPOCH}", "checkpoint", "step 4 applied"),
    *("stop at 4", "progress", "row test"),
]


def fit_with_a_story(folder: str) -> int:
    """In each rank: train, and leave the story in a file."""
    import os

    story = Story()
    ranks.replace(trainlib.data, "make_synthetic", made_once.draw_few)
    trainlib.fit("quickstart", *ARGUMENTS, hooks=[story])
    Path(folder, f"story-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(story.events))
    return 0


@pytest.mark.parametrize("world_size", slow_but([2], [1, 2]))
def test_every_event_at_its_place_on_every_rank(world_size: int, tmp_path: Path) -> None:
    codes = ranks.run(fit_with_a_story, str(tmp_path), world_size=world_size, cwd=tmp_path)
    assert codes == [0] * world_size, ranks.console(tmp_path)
    for rank in range(world_size):
        events = json.loads((tmp_path / f"story-{rank}.json").read_text())
        assert events[: len(STORY)] == STORY, rank
        assert events[-1] == "close"
        assert events.count("close") == 1


class Broken(Story):
    """Fails in the third step."""

    def on_step_end(self, trainer: Any, result: Any) -> None:
        super().on_step_end(trainer, result)
        if trainer.progress.step == 3:
            raise ValueError("of the hook")


def test_an_exception_of_a_hook_ends_the_run_and_all_are_closed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainlib.data, "make_synthetic", made_once.draw_few)
    broken, other = Broken(), Story()
    with pytest.raises(ValueError, match="of the hook"):
        trainlib.fit("quickstart", *ARGUMENTS, hooks=[broken, other])
    assert (broken.events[-1], other.events[-1]) == ("close", "close")
    assert tiny.summary(workdir)["status"] == "failed"
    trainlib.fit("quickstart", *ARGUMENTS)  # goes on from the checkpoint of the first epoch
    assert tiny.summary(workdir)["status"] == "completed"


def test_a_misspelt_event_is_refused() -> None:
    with pytest.raises(TypeError, match="did you mean on_step_end"):

        class Wrong(trainlib.Hook):
            def on_step_ends(self, trainer: Any, result: Any) -> None: ...
