"""Stopped at any step and resumed: the same bits as a run that nobody stopped, with dropout and augmentation on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import ranks
import tiny
from soak import only_in_soak
from stopping import STEPS, VGG, train_until

from trainlib.errors import EXIT_STOPPED
from trainlib.runs.files.json_records import read_lines


@pytest.mark.parametrize(
    ("world_size", "steps"),
    [
        (2, [7]),  # within the second epoch, and between two checkpoints
        pytest.param(1, range(1, STEPS), marks=only_in_soak),
        pytest.param(2, [1, STEPS - 1], marks=pytest.mark.slow),
        pytest.param(2, range(1, STEPS), marks=only_in_soak),
    ],
    ids=["2-ranks-at-one-step", "1-rank", "2-ranks-at-the-ends", "2-ranks"],
)
def test_stopping_at_any_step_changes_no_bit(tmp_path: Path, world_size: int, steps: Iterable[int]) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert ranks.train(VGG, world_size=world_size, cwd=whole) == [0] * world_size, ranks.console(whole)
    assert len([row for row in tiny.rows(whole) if row.get("scope") == "step"]) == STEPS

    for step in steps:
        cwd = tmp_path / f"stopped-at-{step}"
        cwd.mkdir()
        codes = ranks.run(train_until, VGG, step, world_size=world_size, cwd=cwd)
        if world_size == 2 and step == STEPS - 1:
            assert codes == [0, 0]  # the agreement comes with the last step: the run is done
        else:
            assert codes == [EXIT_STOPPED] * world_size, ranks.console(cwd)
            assert ranks.train(VGG, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
            ends = [line for line in read_lines(cwd / "runs/run/attempts.jsonl") if line["event"] == "end"]
            assert [end["status"] for end in ends] == ["stopped", "completed"]
            assert ends[0]["step"] == step + (world_size - 1)  # several ranks learn of it one step later
        assert tiny.digest(cwd) == tiny.digest(whole)
        assert tiny.rows(cwd) == tiny.rows(whole)


@pytest.mark.slow
def test_three_ranks_add_their_gradients_in_the_same_order_after_a_resume(tmp_path: Path) -> None:
    """With two ranks any order of adding gives the same bits; with three it does not."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert ranks.train(VGG, world_size=3, cwd=whole) == [0, 0, 0], ranks.console(whole)
    assert ranks.run(train_until, VGG, 4, world_size=3, cwd=stopped) == [EXIT_STOPPED] * 3, ranks.console(stopped)
    assert ranks.train(VGG, world_size=3, cwd=stopped) == [0, 0, 0]
    assert tiny.digest(stopped) == tiny.digest(whole)
    assert tiny.rows(stopped) == tiny.rows(whole)


@only_in_soak
def test_stopping_at_every_step_in_turn_changes_no_bit(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert ranks.train(VGG, cwd=whole) == [0]
    for _ in range(STEPS - 1):
        assert ranks.run(train_until, VGG, 1, world_size=1, cwd=stopped) == [EXIT_STOPPED], ranks.console(stopped)
    assert ranks.train(VGG, cwd=stopped) == [0]
    assert tiny.digest(stopped) == tiny.digest(whole)
    assert tiny.rows(stopped) == tiny.rows(whole)


@pytest.mark.slow
def test_another_world_size_goes_on_with_the_same_samples_and_schedule(tmp_path: Path) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    whole.mkdir()
    changed.mkdir()
    still = [*VGG, "model.dropout=0.0"]  # dropout masks belong to ranks
    assert ranks.train(still, cwd=whole) == [0]
    assert ranks.run(train_until, still, 6, world_size=1, cwd=changed) == [EXIT_STOPPED]
    assert ranks.train(still, world_size=2, cwd=changed) == [0, 0], ranks.console(changed)
    for ours, expected in zip(tiny.rows(changed), tiny.rows(whole), strict=True):
        assert (ours["step"], ours["count"], ours["lr"]) == (expected["step"], expected["count"], expected["lr"])
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-3)
