"""`model.weights: run:NAME`: the best weights of another run, pinned by their SHA-256 when the run begins."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from fit_parts import arrays

import trainlib
from trainlib.config import Config, load_config, read_resolved
from trainlib.errors import ConfigError, RunDirectoryError, UserError, WeightsError
from trainlib.runs.directory import RunDirectory
from trainlib.training.build.model import build_classifier
from trainlib.training.build.run_weights import local_weights, pin_weights, transform_input_of

CONFIG: dict[str, Any] = {
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 16},
    "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False, "progress": False},
}
DATASET = trainlib.image_dataset(arrays(0), arrays(100, 30), classes=["a", "b", "c"])
OTHER = trainlib.image_dataset(arrays(1), arrays(101, 30), classes=["a", "b", "c"])


def fit(name: str, *config: Any, dataset: Any = DATASET, **options: Any) -> RunDirectory:
    return trainlib.fit(CONFIG, {"name": name}, *config, dataset=dataset, **options)


def recorded(run: RunDirectory) -> Config:
    return read_resolved(run.config_file)


def sha_of(config: Config) -> str:
    return str(config.model.weights).partition("@")[2]


@pytest.fixture
def base(workdir: Path) -> RunDirectory:
    return fit("base")


def test_the_best_weights_of_another_run_are_where_training_begins(base: RunDirectory) -> None:
    run = fit("new", "model.weights=run:base", "optimizer.lr=1e-30", dataset=OTHER)
    best = trainlib.load_model("base")
    trained = trainlib.load_model("new")
    state = trained.module.state_dict()
    assert all(torch.allclose(tensor, state[name]) for name, tensor in best.module.state_dict().items())
    assert trained.preprocess == best.preprocess  # not the constants of the new run's own data
    files = [path / "model.safetensors" for path in base.checkpoints.iterdir()]
    assert sha_of(recorded(run)) in {file_sha(file) for file in files}


def file_sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_run_keeps_the_weights_that_it_began_with(base: RunDirectory) -> None:
    """Also where the other run has trained on, or is gone."""
    run = fit("new", "model.weights=run:base")
    before = recorded(run)
    fit("base", "train.epochs=2", "checkpoint.best=null", fresh=True)
    again = fit("new", "model.weights=run:base")  # finished, and the same configuration
    assert recorded(again) == before
    shutil.rmtree(base.path)
    longer = fit("new", "model.weights=run:base", "train.epochs=2", resume="")
    assert longer.summary()["epoch"] == 2
    assert sha_of(recorded(longer)) == sha_of(before)


def test_a_run_that_begins_again_needs_the_weights_that_it_began_with(base: RunDirectory) -> None:
    config = load_config([CONFIG, {"name": "new", "data": {"name": "synthetic"}, "model": {"weights": "run:base"}}])
    pinned = pin_weights(config)
    RunDirectory.open(pinned).begin(pinned)  # killed before its first checkpoint
    assert pin_weights(config) == pinned
    assert local_weights(pin_weights(config).model).weights == local_weights(pinned.model).weights
    fit("base", "seed=1", fresh=True)
    assert pin_weights(config) == pinned
    with pytest.raises(WeightsError, match=r"no longer holds the weights that this run began with .*--fresh"):
        build_classifier(pinned, 3, torch.device("cpu"))
    assert sha_of(pin_weights(config, fresh=True)) != sha_of(pinned)


def test_other_weights_are_another_configuration(base: RunDirectory) -> None:
    fit("new", "model.weights=run:base")
    with pytest.raises(RunDirectoryError, match=r"model.weights: run:base@[0-9a-f]{64} there, None now"):
        fit("new", "data.normalize=none")


def test_another_number_of_classes_takes_the_backbone(base: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    two = trainlib.image_dataset((arrays()[0], [0, 1] * 50), (arrays(1, 30)[0], [0, 1] * 15), classes=["x", "y"])
    fit("new", "model.weights=run:base", dataset=two)
    assert "the last layer, classifier.1, begins with random weights" in caplog.text


def test_a_run_of_another_model_is_refused_with_both(base: RunDirectory) -> None:
    """Its tensors cannot be taken in their order either: a checkpoint has that of their names."""
    message = "got run:base, a run of cifar10_cnn, and model.name is vgg16: name the same model"
    with pytest.raises(WeightsError, match=message):
        fit("new", "model={name: vgg16, width: 0.1, weights: run:base}")
    with pytest.raises(WeightsError, match=message):
        fit("new", "model={name: vgg16, width: 0.1, weights: run:base, weights_keys: shapes}")


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("run:nowhere", WeightsError, "got run:nowhere, must be a run in .*/runs that has a checkpoint"),
        ("run:new", ConfigError, "got run:new, must be another run than this one"),
        ("'run:'", ConfigError, "what follows run: must be letters"),
        ("run:../base", ConfigError, "what follows run: must be letters"),
        ("run:a/b.pt", ConfigError, "what follows run: must be letters"),
    ],
)
def test_what_is_no_run_is_refused(weights: str, error: type[UserError], message: str, workdir: Path) -> None:
    with pytest.raises(error, match=message):
        fit("new", f"model.weights={weights}")
    assert not (workdir / "runs/new/config.yaml").exists()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "googlenet", "weights": "IMAGENET1K_V1"}, {"transform_input": True}),
        ({"name": "inception_v3", "weights": None}, {"transform_input": False}),
        ({"name": "googlenet", "weights": "run:x@" + 64 * "0", "transform_input": True}, {"transform_input": True}),
        ({"name": "googlenet", "weights": "IMAGENET1K_V1", "transform_input": False}, {"transform_input": False}),
        ({"name": "resnet18", "weights": "IMAGENET1K_V1"}, {}),
    ],
)
def test_how_images_are_normalised_inside_comes_with_the_weights(
    model: dict[str, Any], expected: dict[str, bool]
) -> None:
    assert transform_input_of(model) == expected


def test_damaged_checkpoints_are_passed_over(base: RunDirectory) -> None:
    for file in base.checkpoints.glob("*/model.safetensors"):
        safetensors.torch.save_file({}, file)
    with pytest.raises(WeightsError, match="has no whole checkpoint"):
        fit("new", "model.weights=run:base")
