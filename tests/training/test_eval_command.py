"""`launch eval`: exact figures of what a run has trained, the same on any number of processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from paths import REPOSITORY
from PIL import Image
from trained import CLASSES, checkpoint_of, drawings, manifest_of, pixels, plain_logits

from launch.cli import main as launch
from launch.local.ranks.program import run_program
from launch.local.start.command import Command, accelerate_launch
from trainlib.data.identity.splits import split_validation
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.inference.evaluation_text import evaluation_text


def evaluate_in_rank(arguments: list[str]) -> int:
    """The program of `launch eval`, inside a rank."""
    from trainlib.inference.evaluate import main

    return main(arguments)


def evaluated(trained: Path, *words: str, world_size: int = 1) -> dict[str, Any]:
    """What `launch eval ... --json` prints."""
    codes = ranks.run(evaluate_in_rank, [*words, "--json"], world_size=world_size, cwd=trained)
    assert codes == [0] * world_size, ranks.console(trained)
    return dict(json.loads(ranks.console(trained)))


@pytest.fixture(scope="module")
def by_world_size(trained: Path) -> Mapping[int, dict[str, Any]]:
    return {size: evaluated(trained, "run", "--batch-size", "96", world_size=size) for size in (1, 2)}


def test_every_number_of_processes_gives_the_same_bits(by_world_size: Mapping[int, dict[str, Any]]) -> None:
    """2,000 samples in pieces of at most 96: 21 of them, which two ranks cannot share evenly."""
    assert by_world_size[1] == by_world_size[2]


def test_figures_are_those_of_scikit_learn_and_torchmetrics(
    trained: Path, by_world_size: Mapping[int, dict[str, Any]]
) -> None:
    """Counts exactly, all else within 1e-6; from the logits of a plain network with the checkpoint's weights."""
    import sklearn.metrics
    import torchmetrics.functional.classification as torchmetrics

    found, images = by_world_size[1], drawings()
    labels_N, logits_NC = images.labels_N, plain_logits(checkpoint_of(trained, found["step"]), pixels(images))
    predicted_N = logits_NC.argmax(dim=1)
    assert found["count"] == len(labels_N) == 2_000
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels_N, predicted_N)
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels_N, predicted_N).tolist()
    assert found["top5_accuracy"] == sklearn.metrics.top_k_accuracy_score(labels_N, logits_NC, k=5)
    by_class = sklearn.metrics.precision_recall_fscore_support(labels_N, predicted_N, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "count"), by_class, strict=True):
        assert [row[key] for row in found["per_class"]] == pytest.approx(values.tolist(), abs=1e-12), key
    ece = torchmetrics.multiclass_calibration_error(logits_NC, labels_N, CLASSES, n_bins=15, norm="l1")
    assert found["calibration_error"] == pytest.approx(float(ece), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits_NC.double(), labels_N)
    assert found["loss"] == pytest.approx(float(loss), abs=1e-6)


def test_it_agrees_with_the_runs_own_file(trained: Path, by_world_size: Mapping[int, dict[str, Any]]) -> None:
    """The run was trained, and tested, by two ranks with pieces of another size."""
    own = json.loads((trained / "runs/run/evaluation-test.json").read_text())
    found = by_world_size[1]
    for key in ("split", "step", "weights", "accuracy", "count", "top5_accuracy", "classes", "confusion", "per_class"):
        assert found[key] == own[key], key
    for key in ("loss", "calibration_error"):
        assert found[key] == pytest.approx(own[key], abs=1e-6), key
    assert [m["index"] for m in found["mistakes"]] == [m["index"] for m in own["mistakes"]]


def run_copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/run"


@pytest.mark.slow
def test_splits_of_the_training_set(trained: Path, tmp_path: Path) -> None:
    """val is what was held out and train the 512 that were trained on; each gets a file of its own."""
    import sklearn.metrics

    cwd = tmp_path
    shutil.copytree(trained / "runs", cwd / "runs")
    images = make_synthetic().train
    _, val_ids = split_validation(images.labels_N, 0.1, seed=0)
    found = evaluated(cwd, "run", "--split", "val")
    labels_N = images.labels_N[val_ids]
    predicted_N = plain_logits(checkpoint_of(cwd, found["step"]), pixels(images)[val_ids]).argmax(dim=1)
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels_N, predicted_N).tolist()
    assert found["accuracy"] == json.loads((cwd / "runs/run/summary.json").read_text())["best"]["value"]
    assert json.loads((cwd / "runs/run/evaluation-val.json").read_text()) == found
    train = evaluated(cwd, "run", "--split", "train", world_size=2)
    assert (train["split"], train["count"]) == ("train", 512)
    assert (cwd / "runs/run/evaluation-train.json").exists()


def test_class_folders_of_some_classes(trained: Path, tmp_path: Path) -> None:
    """Three of the ten classes as PNG files, in folders; nothing is written into the run."""
    import sklearn.metrics

    images, classes = drawings(), manifest_of(checkpoint_of(trained))["classes"]
    chosen = [index for label in (7, 2, 0) for index in range(label, 200, 10)]
    for index in chosen:
        folder = tmp_path / "some" / classes[int(images.labels_N[index])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(images)[index].permute(1, 2, 0).numpy()).save(folder / f"{index:04d}.png")
    before = sorted(path.name for path in (trained / "runs/run").iterdir())
    found = evaluated(trained, "run", "--data", str(tmp_path / "some"), world_size=2)
    predicted_N = plain_logits(checkpoint_of(trained, found["step"]), pixels(images)[chosen]).argmax(dim=1)
    expected = sklearn.metrics.confusion_matrix(images.labels_N[chosen], predicted_N, labels=range(CLASSES))
    assert found["confusion"] == expected.tolist()
    assert found["split"] == str(tmp_path / "some")
    assert sorted(path.name for path in (trained / "runs/run").iterdir()) == before


def test_a_checkpoint_is_printed_and_written_nowhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_copy(trained, tmp_path, monkeypatch)
    (run / "evaluation-test.json").unlink()
    assert launch(["eval", "runs/run/checkpoints/step-00000008"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("test: 2,000 images, weights of step 8\nloss ")
    assert "true class (row) and what it was taken for (column)" in out
    assert not (run / "evaluation-test.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "rum"], "no run 'rum'"),
        (["eval", "run", "--data", "nowhere"], "nowhere does not exist"),
        (["eval", "run", "--data", "wrong"], "Folders that are no class of the model (2): Disc (the same as 'disc'"),
        (["eval", "run", "--split", "val", "--data", "wrong"], "--split and --data: a split of the run's data, or"),
        (["eval", "run", "--split", "all"], "Invalid value for '--split'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    trained: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_copy(trained, tmp_path, monkeypatch)
    for name in ("Disc", "zebra"):
        (tmp_path / "wrong" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "wrong" / name / "x.png")
    assert launch(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_several_processes_under_the_launcher(trained: Path) -> None:
    """The console holds the figures once, and nothing of what the launcher's own machinery says."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "launch", "eval", "run", "--processes", "2", "--split", "train"]
    result = subprocess.run(words, cwd=trained, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "next: launch report run\n")
    assert result.stdout.startswith("train: 512 images, best weights of step ")
    assert result.stdout.count("accuracy") == 3  # top-5's and the balanced one are the others


@pytest.mark.parametrize(
    ("report", "exit_code", "told"),
    [
        ([(0, 2), (1, 2)], 2, "a rank speaks\n"),  # rank 0 has explained it
        ([(1, 7)], 7, "a rank speaks\nerror: rank 1 ended with exit code 7\n"),
        ([(1, -9)], 137, "a rank speaks\nerror: rank 1 was killed by SIGKILL\n"),
        ([], 1, "a rank speaks\nTraceback: no port\nerror: the ranks ended with exit code 1\n"),
    ],
)
def test_ranks_that_fail(
    report: list[tuple[int, int]],
    exit_code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The failing rank's own code, and of what the agent reports only what explains the end."""
    failures = [{"rank": rank, "exit_code": code, "pid": 1} for rank, code in report]
    lines = [json.dumps(line) + "\n" for line in ({"log": "Traceback: no port\n"}, {"failures": failures})]
    (tmp_path / "stub_agent.py").write_text(
        "import os, sys\n"
        "print('a rank speaks', file=sys.stderr, flush=True)\n"
        f"os.write(int(sys.argv[1]), {''.join(lines).encode()!r})\n"
        "sys.exit(1)\n"
    )
    monkeypatch.setattr("launch.local.ranks.agent.AGENT_MODULE", "stub_agent")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_program(Command((*accelerate_launch(sys.executable), "-m", "x"), {})) == exit_code
    assert capfd.readouterr().err == told


def small_evaluation() -> dict[str, Any]:
    confusion = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    per_class = [
        {"name": "cat", "count": 10, "precision": 8 / 9, "recall": 0.8, "f1": 16 / 19},
        {"name": "a dog whose name is rather long", "count": 10, "precision": 9 / 11, "recall": 0.9, "f1": 18 / 21},
        {"name": "emu", "count": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0},
    ]
    return {
        "split": "test",
        "step": 1234,
        "weights": "best",
        "count": 20,
        "loss": 0.51234,
        "accuracy": 0.85,
        "top5_accuracy": 1.0,
        "calibration_error": 0.0321,
        "classes": [row["name"] for row in per_class],
        "confusion": confusion,
        "per_class": per_class,
        "mistakes": [],
    }


def shown(evaluation: Mapping[str, Any], width: int) -> str:
    """What a pipe gets."""
    return "\n".join(map(str, evaluation_text(evaluation, width)))


def test_text() -> None:
    """A class that no image is of and none was taken for is left out."""
    assert (
        shown(small_evaluation(), width=80)
        == """\
test: 20 images, best weights of step 1,234
loss 0.5123   accuracy 0.8500   top-5 accuracy 1.0000   calibration error 0.0321

class                       count  precision  recall      f1
cat                            10     0.8889  0.8000  0.8421
a dog whose name is r...       10     0.8182  0.9000  0.8571

true class (row) and what it was taken for (column)
                             0  1
0  cat                       8  2
1  a dog whose name is r...  1  9"""
    )


def test_text_of_a_matrix_that_does_not_fit() -> None:
    assert shown(small_evaluation(), width=20).endswith(
        """\
the most frequent confusions, 2 of 2 (the whole matrix: --json)
count  of class  true                      taken for
    2     20.0%  cat                       a dog whose name is r...
    1     10.0%  a dog whose name is r...  cat"""
    )


def test_text_of_many_classes_shows_the_worst() -> None:
    names = [f"class {index:03d}" for index in range(100)]
    confusion = np.eye(100, dtype=int) * 50
    confusion[7, 8], confusion[7, 7] = 40, 10
    per_class = [
        {"name": name, "count": 50, "precision": 1.0, "recall": 1.0, "f1": 0.2 if index == 7 else 0.99}
        for index, name in enumerate(names)
    ]
    evaluation = small_evaluation() | {"classes": names, "confusion": confusion.tolist(), "per_class": per_class}
    lines = shown(evaluation, width=100).splitlines()
    assert lines[3] == "the 30 classes of the lowest F1, of 100 (all of them: --json)"
    assert lines[5].startswith("class 007 ")
    assert len(lines) == 3 + 1 + 1 + 30 + 1 + 3
    assert lines[-1] == "   40     80.0%  class 007  class 008"
