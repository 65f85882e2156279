"""curves.png: a picture at the end of every run, and never a reason for a run to end otherwise."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import made_once
import numpy as np
import pytest
import ranks
import tiny
from patience import HANG
from PIL import Image
from report_runs import training_rows

from trainlib.training.hooks.tracking import curves


@pytest.fixture(autouse=True)
def _real_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw, where other tests take a picture that is always the same."""
    monkeypatch.setattr(curves, "picture", made_once.draw_picture)


def write_rows(run: Path, rows: list[dict[str, object]]) -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def colours_in(path: Path) -> dict[str, int]:
    """How many pixels of the picture have exactly each of the curves' colours."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    found = {}
    for name, colour in (("train", curves.TRAIN), ("val", curves.VAL), ("test", curves.TEST)):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        found[name] = int((pixels == wanted).all(axis=2).sum())
    return found


def test_the_picture_shows_training_validation_and_test(tmp_path: Path) -> None:
    """Each curve's colour is there, and only where its rows are."""
    run = write_rows(tmp_path / "$x_1$", training_rows(100))
    curves.draw_curves(run)
    assert Image.open(run / "curves.png").size == (1404, 520)
    assert (run / "curves.png").stat().st_size < 200_000
    assert all(count > 100 for count in colours_in(run / "curves.png").values())
    untested = write_rows(tmp_path / "y", [row for row in training_rows(30) if row["split"] == "train"])
    curves.draw_curves(untested)
    found = colours_in(untested / "curves.png")
    assert found["train"] > 100
    assert (found["val"], found["test"]) == (0, 0)


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    """Rows of null only make a picture without curves; no rows at all make none."""
    rows = [row | {"loss": None, "accuracy": None} for row in training_rows(30)]
    run = write_rows(tmp_path / "x", rows)
    curves.draw_curves(run)
    assert colours_in(run / "curves.png") == {"train": 0, "val": 0, "test": 0}
    empty = write_rows(tmp_path / "empty", [])
    curves.draw_curves(empty)
    assert [path.name for path in empty.iterdir()] == ["metrics.jsonl"]


def test_what_goes_wrong_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_rows(tmp_path / "x", training_rows(5))
    (run / "curves.png").mkdir()  # in the way of the file to be written
    with caplog.at_level(logging.WARNING):
        curves.draw_curves(run)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "curves.png could not be drawn (IsADirectoryError" in caplog.text
    assert [path.name for path in sorted(run.iterdir())] == ["curves.png", "metrics.jsonl"]


def test_the_end_of_a_run_does_not_wait_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released, drawn = threading.Event(), threading.Event()
    monkeypatch.setattr(curves, "PATIENCE", 0.1)

    def draw(rows: Any, name: Any) -> bytes:
        released.wait(HANG)
        drawn.set()
        return b""

    monkeypatch.setattr(curves, "picture", draw)
    run = write_rows(tmp_path / "x", training_rows(5))
    with caplog.at_level(logging.WARNING):
        curves.draw_curves(run)
    assert not drawn.is_set()
    assert "took longer than" in caplog.text
    released.set()


def train_and_draw(arguments: list[str]) -> int:
    ranks.replace(curves, "picture", made_once.draw_picture)
    return ranks.main(arguments)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_ends_with_its_picture(world_size: int, tmp_path: Path) -> None:
    """A real one, of one rank and of two; of the two, only rank 0 draws."""
    tiny.make_images(tmp_path / "images")
    arguments = tiny.arguments(tmp_path / "images", 1, 4)
    assert ranks.run(train_and_draw, arguments, world_size=world_size, cwd=tmp_path) == [0] * world_size
    assert all(count > 20 for count in colours_in(tmp_path / "runs/run/curves.png").values())
    assert all("curves.png" not in ranks.console(tmp_path, rank) for rank in range(world_size))
