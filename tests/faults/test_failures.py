"""Numbers that are not finite, hangs, dead ranks and dead launchers: everyone ends soon, and nothing good is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import ranks
from bad_losses import TRAINING, train_with_faults
from patience import HANG
from tiers import slow_but

from trainlib.errors import EXIT_HANG
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines
from trainlib.training.checkpoints import checkpoint


@pytest.mark.slow
def test_batchnorm_forgets_a_batch_that_was_not_applied(tmp_path: Path) -> None:
    norm = [*TRAINING, "model={name: shufflenet_v2_x0_5}"]
    assert ranks.run(train_with_faults, norm, {4: (0, float("nan"))}, world_size=1, cwd=tmp_path) == [1]
    clean = tmp_path / "clean"
    clean.mkdir()
    assert ranks.train([word.replace("epochs: 3", "steps: 4") for word in norm], cwd=clean) == [0]
    digests = {RunDirectory(cwd / "runs/run").summary()["weights_sha256"] for cwd in (tmp_path, clean)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("world_size", "value"),
    slow_but([(2, math.nan)], [(1, math.nan), (2, math.nan), (2, math.inf)]),
)
def test_a_loss_that_is_not_finite_on_one_rank_ends_all(tmp_path: Path, world_size: int, value: float) -> None:
    faults = {5: (world_size - 1, value)}
    codes = ranks.run(train_with_faults, TRAINING, faults, world_size=world_size, cwd=tmp_path)
    assert codes == [1] * world_size
    run = RunDirectory(tmp_path / "runs/run")
    assert f"step 6 was not applied: the loss is {value} on rank {world_size - 1}" in ranks.console(tmp_path)
    assert "Traceback" not in ranks.console(tmp_path)
    assert (run.summary()["status"], run.summary()["step"]) == ("failed", 5)
    last_row, end = read_lines(run.metrics_file)[-1], read_lines(run.attempts_file)[-1]
    seconds = datetime.fromisoformat(end["time"]) - datetime.fromisoformat(last_row["time"])
    assert (last_row["step"], seconds < timedelta(seconds=HANG)) == (5, True)

    clean = tmp_path / "clean"
    clean.mkdir()
    shorter = [word.replace("epochs: 3", "steps: 5") for word in TRAINING]
    assert ranks.train(shorter, world_size=world_size, cwd=clean) == [0] * world_size
    assert run.summary()["weights_sha256"] == RunDirectory(clean / "runs/run").summary()["weights_sha256"]
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 4


@pytest.mark.slow
def test_what_was_stopped_by_a_bad_number_goes_on_bitwise(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert ranks.train(TRAINING, world_size=2, cwd=whole) == [0, 0]
    assert ranks.run(train_with_faults, TRAINING, {5: (1, float("nan"))}, world_size=2, cwd=broken) == [1, 1]
    assert ranks.train(TRAINING, world_size=2, cwd=broken) == [0, 0], ranks.console(broken)
    digests = {RunDirectory(cwd / "runs/run").summary()["weights_sha256"] for cwd in (whole, broken)}
    assert len(digests) == 1


SKIP = [*TRAINING, "train.on_nonfinite=skip", "train.max_nonfinite_steps=2"]


def test_skipped_steps_count_and_change_nothing(tmp_path: Path) -> None:
    faults = {3: (1, float("nan")), 4: (0, float("inf"))}
    assert ranks.run(train_with_faults, SKIP, faults, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if row.get("scope") == "step"}
    assert [step for step, row in steps.items() if row["loss"] is None] == [4, 5]
    assert steps[4]["lr"] == steps[5]["lr"] == steps[6]["lr"]  # the schedule waits with the weights
    epochs = [row for row in rows if row.get("scope") == "epoch"]
    assert [row["count"] for row in epochs] == [60, 20, 60]
    assert epochs[1]["loss"] == pytest.approx(steps[6]["loss"])


@pytest.mark.parametrize("world_size", slow_but([1], [1, 2]))
def test_skipped_steps_are_bounded(tmp_path: Path, world_size: int) -> None:
    faults = {step: (step % world_size, float("nan")) for step in (3, 4, 7)}
    codes = ranks.run(train_with_faults, SKIP, faults, world_size=world_size, cwd=tmp_path)
    assert codes == [1] * world_size
    assert "train.max_nonfinite_steps allows 2" in ranks.console(tmp_path)


def train_with_a_full_disk(arguments: list[str], steps: list[int]) -> int:
    """Train; the checkpoints of these steps cannot be written."""
    from trainlib.train import main
    from trainlib.training.checkpoints import checkpoint

    save = checkpoint.save

    def failing(directory: Path, contents: checkpoint.Contents, *rest: Callable[[], None]) -> checkpoint.Checkpoint:
        if contents.step in steps:
            raise OSError(28, "No space left on device")
        return save(directory, contents, *rest)

    checkpoint.save = failing  # type: ignore[assignment]
    return main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_full_disk_ends_the_run_only_when_nothing_can_be_saved(tmp_path: Path, world_size: int) -> None:
    run = RunDirectory(tmp_path / "runs/run")
    codes = ranks.run(train_with_a_full_disk, TRAINING, [4, 6, 8], world_size=world_size, cwd=tmp_path)
    assert codes == [1] * world_size
    assert "3 checkpoints in a row could not be written" in ranks.console(tmp_path)
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 3  # the best so far, after the first epoch
    assert ranks.train(TRAINING, world_size=world_size, cwd=tmp_path) == [0] * world_size
    assert run.summary()["status"] == "completed"


@pytest.mark.slow
def test_a_final_checkpoint_that_cannot_be_written_is_no_completed_run(tmp_path: Path) -> None:
    assert ranks.run(train_with_a_full_disk, TRAINING, [9], world_size=1, cwd=tmp_path) == [1]
    assert "the checkpoint of step 9 could not be written" in ranks.console(tmp_path)
    assert ranks.train(TRAINING, cwd=tmp_path) == [0]


@pytest.mark.slow
def test_best_weights_that_could_not_be_written_are_replaced_by_the_last(tmp_path: Path) -> None:
    best = [*TRAINING, "optimizer.maximize=true", "checkpoint.best={metric: val/loss}"]  # the first epoch is the best
    assert ranks.run(train_with_a_full_disk, best, [3], world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    assert "the best weights are lost" in ranks.console(tmp_path)
    assert "(last weights)" in ranks.console(tmp_path)


def hang(arguments: list[str], step: int) -> int:
    """In each rank: train; rank 1 stops for good before this step, as if its GPU were stuck."""
    import os
    import signal

    from trainlib.train import main
    from trainlib.training.step.state import TrainState
    from trainlib.training.step.train_step import StepResult, train_step
    from trainlib.training.tuning import memory

    def stuck(state: TrainState, at: int, micro_batches: list[object], denominator: float) -> StepResult:
        if at == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return train_step(state, at, micro_batches, denominator)  # type: ignore[arg-type]

    ranks.replace(memory, "train_step", stuck)
    return main(arguments)


def hang_while_building(arguments: list[str]) -> int:
    """In each rank: train; rank 1 stops for good when the model is there and the ranks are to meet around it."""
    import os
    import signal

    from trainlib.train import main
    from trainlib.training import session
    from trainlib.training.build import training

    ranks.replace(session, "BUILDING_SECONDS", 4.0)
    build = training.build_train_state

    def stuck(*given: object) -> object:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return build(*given)  # type: ignore[arg-type]

    ranks.replace(training, "build_train_state", stuck)
    return main(arguments)


@pytest.mark.slow
def test_a_rank_that_hangs_before_training_is_noticed(tmp_path: Path) -> None:
    hanging = [*TRAINING, "train.hang_seconds=12"]
    under_way = ranks.start(hang_while_building, hanging, world_size=2, cwd=tmp_path)
    assert under_way.wait(closing=1.0) == [EXIT_HANG, -9]
    said = ranks.console(tmp_path)
    assert "no step was finished for 12 s" in said
    assert "build_train" in said
    assert not (tmp_path / "runs/run/attempts.jsonl").exists()
    assert ranks.train(hanging, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)


@pytest.mark.slow
def test_a_hanging_rank_is_noticed_and_stacks_are_dumped(tmp_path: Path) -> None:
    hanging = [*TRAINING, "train.hang_seconds=12"]  # longer than a step takes where others hold the processor
    under_way = ranks.start(hang, hanging, 3, world_size=2, cwd=tmp_path)
    assert under_way.wait(closing=1.0) == [EXIT_HANG, -9]  # a launcher kills the stopped one
    log = (tmp_path / "runs/run/logs/rank-0.log").read_text()
    assert "no step was finished for 12 s" in log
    assert "train_step" in log
    ends = [line["event"] for line in read_lines(tmp_path / "runs/run/attempts.jsonl")]
    assert ends == ["start"]  # it was ended from outside of its own control
    assert ranks.train(hanging, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
