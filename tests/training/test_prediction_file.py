"""`launch eval --predictions`: one row for each sample, in their own order, the same bytes on any number of ranks."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from trained import checkpoint_of, drawings, manifest_of, pixels, plain_logits

from launch.cli import main as launch
from trainlib.config import LossConfig
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.targets import Targets
from trainlib.errors import TrainlaunchError, UserError
from trainlib.inference.prediction_file import Answers, check_target, open_prediction_file

CROSS_ENTROPY = LossConfig.model_validate({"activation": "none"})


def evaluate_in_rank(arguments: list[str]) -> int:
    """The program of `launch eval`, inside a rank."""
    from trainlib.inference.evaluate import main

    return main(arguments)


def written(trained: Path, target: Path, *words: str, world_size: int = 1) -> list[list[str]]:
    """The rows of the file that `launch eval ... --predictions` writes."""
    arguments = [*words, "--predictions", str(target)]
    codes = ranks.run(evaluate_in_rank, arguments, world_size=world_size, cwd=trained)
    assert codes == [0] * world_size, ranks.console(trained)
    assert [path.name for path in target.parent.iterdir() if path.name.endswith(".tmp")] == []
    with target.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.slow
def test_rows_are_those_of_a_plain_network_on_any_number_of_ranks(trained: Path, tmp_path: Path) -> None:
    """2,000 samples that are no files, in pieces of 96, of which three ranks get 7 each."""
    rows = written(trained, tmp_path / "1.csv", "run", "--batch-size", "96")
    written(trained, tmp_path / "3.csv", "run", "--batch-size", "96", world_size=3)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "3.csv").read_bytes()
    classes = manifest_of(checkpoint_of(trained))["classes"]
    assert rows[0] == ["index", "label", "prediction", *(f"probability_{name}" for name in classes)]
    assert [row[0] for row in rows[1:]] == [str(index) for index in range(2_000)]
    images = drawings()
    assert [row[1] for row in rows[1:]] == [classes[label] for label in images.labels_N.tolist()]
    logits_NC = plain_logits(checkpoint_of(trained), pixels(images))
    assert [row[2] for row in rows[1:]] == [classes[label] for label in logits_NC.argmax(dim=1).tolist()]
    found = torch.tensor([[float(cell) for cell in row[3:]] for row in rows[1:]])
    torch.testing.assert_close(found, logits_NC.softmax(dim=1), rtol=1e-5, atol=1e-6)


def test_class_folders_have_paths(trained: Path, tmp_path: Path) -> None:
    """Names with commas, quotes, line breaks, formulas, and bytes that are no UTF-8."""
    names = ["=1+1.png", "a,b.png", 'c"d.png', "e\nf.png", "g\rh.png", os.fsdecode(b"i\xff.png"), "ö.png"]
    folder = tmp_path / "some" / "ring"
    folder.mkdir(parents=True)
    for value, name in enumerate(names):
        Image.fromarray(np.full((32, 32, 3), value * 20, np.uint8)).save(folder / "new.png")
        (folder / "new.png").rename(folder / name)
    rows = written(trained, tmp_path / "found.csv", "run", "--data", str(tmp_path / "some"), world_size=2)
    assert rows[0][:3] == ["path", "label", "prediction"]
    paths = [f"ring/{name}" for name in sorted(names)]
    assert [row[0] for row in rows[1:]] == [path.encode(errors="backslashreplace").decode() for path in paths]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd|'/c calc'!A1", "'+cmd|'/c calc'!A1"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("'quoted", "''quoted"),
        ("-1", "-1"),
        ("+2.5", "+2.5"),
        ("a=b", "a=b"),
    ],
)
def test_what_a_spreadsheet_would_compute_is_quoted(tmp_path: Path, name: str, cell: str) -> None:
    micro_batch = MicroBatch(torch.arange(1), torch.empty(0), Targets(torch.tensor([0]), torch.tensor([0])), 0)
    with open_prediction_file(tmp_path / "f.csv", 0, Answers(CROSS_ENTROPY, [name, "other"]), [name]) as file:
        file.add(micro_batch, torch.tensor([[2.0, 0.0]]))
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as written_file:
        header, row = csv.reader(written_file)
    assert row[:3] == [cell, cell, cell]
    assert header[3] == f"probability_{cell}"
    assert np.float32(row[3]) == torch.softmax(torch.tensor([2.0, 0.0]), dim=0)[0].item(), "every bit of a float32"


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f.csv"
    target.write_bytes(b"path,label,prediction,probability_a\r\n")
    with pytest.raises(RuntimeError), open_prediction_file(target, 0, Answers(CROSS_ENTROPY, ["a"]), None):
        raise RuntimeError
    monkeypatch.setattr(os, "replace", lambda source, to: (_ for _ in ()).throw(OSError(28, "full")))
    opened = open_prediction_file(target, 0, Answers(CROSS_ENTROPY, ["a"]), None)
    with pytest.raises(TrainlaunchError, match="was not written"), opened:
        pass
    assert target.read_bytes() == b"path,label,prediction,probability_a\r\n"
    assert list(tmp_path.iterdir()) == [target]


def test_only_an_earlier_file_of_predictions_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "labels.csv"
    target.write_text("path,label\r\na.png,cat\r\n")
    with pytest.raises(UserError, match="exists, and is no earlier file of predictions; choose another name"):
        check_target(target)
    target.write_text("index,label,prediction,probability_a\r\n")
    check_target(target)
    check_target(tmp_path / "new.csv")
    with pytest.raises(UserError, match="is no earlier file of predictions"):
        check_target(tmp_path)


def test_mistakes_are_told_before_anything_is_evaluated(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert launch(["eval", "run", "--predictions", "nowhere/f.csv"]) == 2
    assert "--predictions: nowhere is no folder" in capsys.readouterr().err
