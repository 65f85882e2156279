"""`loss.weight: balanced`, against scikit-learn and a plain weighted loss, up to a checkpoint and `launch eval`."""

from __future__ import annotations

import json
from pathlib import Path

import made_once
import numpy as np
import pytest
import torch
from torch.nn import functional

import trainlib
import trainlib.data
from trainlib.config import LossConfig, load_config
from trainlib.errors import ConfigError
from trainlib.inference.evaluate import main as evaluate
from trainlib.models.losses import Objective, with_class_weights
from trainlib.runs.directory import RunDirectory
from trainlib.training.build.data import build_plan

CPU = torch.device("cpu")
WITH_WEIGHT = ["CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "MultiMarginLoss"]
LABELS = torch.tensor([0] * 30 + [1] * 6 + [2] * 1 + [3] * 13)


@pytest.mark.parametrize("name", WITH_WEIGHT)
def test_the_weights_are_those_of_scikit_learn(name: str) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    loss = load_config(["quickstart", f"loss={{name: {name}, weight: balanced}}"]).loss
    filled = with_class_weights(loss, LABELS, 4)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    assert filled.args["weight"] == expected.tolist()
    by_hand = load_config(["quickstart", f"loss={{name: {name}, weight: {expected.tolist()}}}"]).loss
    logits_NC = torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = (Objective(section, 4, CPU) for section in (filled, by_hand))
    assert torch.equal(ours(logits_NC, LABELS), theirs(logits_NC, LABELS))
    assert ours.denominator(LABELS) == theirs.denominator(LABELS)


def test_cross_entropy_is_torchs_with_these_weights() -> None:
    loss = with_class_weights(LossConfig.model_validate({"weight": "balanced"}), LABELS, 4)
    logits_NC = torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([len(LABELS) / (4 * n) for n in (30, 6, 1, 13)])
    expected = functional.cross_entropy(logits_NC, LABELS, weights)
    assert Objective(loss, 4, CPU)(logits_NC, LABELS) == expected


def test_a_class_without_a_training_sample_counts_for_nothing() -> None:
    loss = with_class_weights(LossConfig.model_validate({"weight": "balanced"}), torch.tensor([0, 2, 2]), 3)
    assert loss.args["weight"] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("{weight: balance}", "loss.weight: got balance, must be a list of numbers or null or balanced"),
        ("{name: BCEWithLogitsLoss, pos_weight: balanced}", "loss.pos_weight: got balanced, must be a list of numbers"),
        ("{name: MSELoss, weight: balanced}", "loss.weight: unknown key"),
    ],
)
def test_mistakes(words: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["quickstart", f"loss={words}"])
    assert rule in str(caught.value).replace('"', "")


def test_a_run_trains_with_the_weights_of_its_training_samples_and_records_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data.limit and a validation split: only what is trained on counts. `launch eval` needs the numbers later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainlib.data, "make_synthetic", made_once.draw_few)
    words = ["quickstart", "data.limit=90", "train={epochs: 1, batch_size: 45}", "scheduler=null"]
    words += ["tracking={log_every: 1, tensorboard: false, progress: false, wandb: {mode: disabled}}"]
    balanced = trainlib.fit(*words, "name=balanced", "loss={weight: balanced}")
    assert "loss.weight by class: " in capsys.readouterr().out
    manifest = json.loads(next(balanced.checkpoints.glob("step-*/manifest.json")).read_text())
    labels_N = made_once.draw_few().train.labels_N
    plan, _ = build_plan(load_config(words), labels_N)
    counts = torch.bincount(labels_N[plan.ids_N], minlength=10).tolist()
    assert manifest["class_weights"] == [90 / (10 * n) for n in counts]
    assert manifest["config"]["loss"]["weight"] == "balanced"
    by_hand = trainlib.fit(*words, "name=by_hand", f"loss={{weight: {manifest['class_weights']}}}")
    assert digest(by_hand) == digest(balanced)
    evaluations = []
    for run in ("balanced", "by_hand"):
        capsys.readouterr()
        assert evaluate([run, "--json"]) == 0
        evaluations.append(json.loads(capsys.readouterr().out))
    assert evaluations[0] == evaluations[1]


def digest(run: RunDirectory) -> str:
    return str(json.loads((run.path / "summary.json").read_text())["weights_sha256"])
