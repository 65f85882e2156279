"""`launch data --batch`: the first batch as the model gets it, pixel for pixel, with labels and weights below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.cli import main as launch
from trainlib.config import load_config
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.data.targets import Targets
from trainlib.training.build.data import plan_of
from trainlib.training.programs.data.first_batch import CELL, GAP, denormalised, grid, label_lines


def test_the_sheet_holds_the_models_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without augmentation, the first picture of the first epoch's order, each pixel as a square of four by four."""
    monkeypatch.chdir(tmp_path)
    words = ["quickstart", "data.augment={}", "train.batch_size=10", "train.micro_batch_size=3"]
    assert launch(["data", *words, "--batch", "b.png"]) == 0
    assert capsys.readouterr().out == "the first batch is in b.png\n"
    sheet = np.asarray(Image.open("b.png"))
    dataset = make_synthetic()
    plan, _ = plan_of(load_config(words), dataset)
    ids_B = plan.batches(0)[0]
    images = next(dataset.train.images.batches([ids_B])).permute(0, 2, 3, 1).numpy()
    top = 2 * 19 + GAP
    for place, pixels in enumerate(images[:8]):
        left = GAP + place * (CELL + GAP)
        assert np.array_equal(sheet[top : top + CELL : 4, left : left + CELL : 4], pixels)
        assert np.array_equal(sheet[top + 3 : top + CELL : 4, left + 3 : left + CELL : 4], pixels)


def test_normalisation_is_undone_exactly() -> None:
    preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 16)
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    micro_batch = MicroBatch(torch.arange(1), preprocess(pixels), Targets(torch.tensor([1]), torch.tensor([1])), 0)
    assert torch.equal(denormalised(micro_batch, preprocess), pixels)
    assert label_lines(micro_batch, ["ant", "bee\x1b"]) == [["bee\\x1b"]]


def test_mixed_images_have_both_labels_with_their_weights() -> None:
    own, other = torch.tensor([0, 1]), torch.tensor([1, 0])
    micro_batch = MicroBatch(
        torch.arange(2), torch.empty(2), Targets(own, own).mixed_with(Targets(other, other), 0.7), 0
    )
    assert label_lines(micro_batch, ["ant", "bee"]) == [["0.70 ant", "0.30 bee"], ["0.70 bee", "0.30 ant"]]


def test_large_pictures_and_long_names_fit_into_their_cells() -> None:
    sheet = grid([(Image.new("RGB", (900, 300), "red"), ["a" * 200, "b"]), (Image.new("L", (20, 10)), ["c"])], "title")
    assert sheet.width < 3 * (2 * CELL + GAP)
    assert sheet.getpixel((GAP + 2, 2 * 19 + GAP + 2)) == (255, 0, 0)
