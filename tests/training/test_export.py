"""`launch export`: what it writes is used by a process that cannot import this package, on 100 drawings."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from trained import checkpoint_of, drawings, pixels, plain_logits

from launch.cli import main as launch
from trainlib.config import load_config
from trainlib.errors import TrainlaunchError, UserError
from trainlib.inference import export
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.trained_model import load_model
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents

pytestmark = pytest.mark.slow

# Reads images.npy (uint8 [100, 3, 32, 32]) and writes the logits of every file for all of them, in batches of 1, 7 and
# 92. Only torch, torchvision, safetensors and onnxruntime are there; what it builds, a reader of FILE.json can build.
ELSEWHERE = """
import json, sys
for name in ("trainlib", "launch", "accelerate"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np, onnxruntime, safetensors.torch, torch, torchvision
from collections import OrderedDict
from torch import nn
torch.set_num_threads(1)

def cnn():
    features = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.Linear(1024, 64), nn.Linear(64, 10))
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))

def from_weights(network, state, description):
    network.load_state_dict(state, strict=True)
    network.eval()
    norm = description["normalisation"]
    mean, std = (torch.tensor(norm[key]).view(3, 1, 1) for key in ("mean", "std"))
    return lambda images: network((images - mean) / std)

def from_onnx(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

images = torch.from_numpy(np.load("images.npy")).float() / 255
for name, build in (("cnn", cnn), ("resnet", lambda: torchvision.models.resnet18(num_classes=10))):
    described = lambda suffix: json.load(open(name + suffix + ".json"))
    networks = {
        ".pt": from_weights(build(), torch.load(name + ".pt", weights_only=True), described(".pt")),
        ".safetensors": from_weights(
            build(), safetensors.torch.load_file(name + ".safetensors"), described(".safetensors")),
        ".pt2": torch.export.load(name + ".pt2").module(),
        ".onnx": from_onnx(name + ".onnx"),
    }
    for suffix, network in networks.items():
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split([1, 7, 92])])
        np.save(name + suffix + ".npy", logits.numpy())
"""
SUFFIXES = {"state_dict": ".pt", "safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}


def resnet_checkpoint(directory: Path) -> Path:
    """A torchvision network with BatchNorm statistics of its own, as a checkpoint that this project wrote."""
    from torchvision.models import resnet18

    torch.manual_seed(3)
    network = resnet18(num_classes=10)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # or every image would have nearly the same logits
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(32, 3, 32, 32))
    values = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "image_size": 32}
    config = load_config(["quickstart", "model={name: resnet18}", "name=resnet"]).model_dump(mode="json")
    facts = {"classes": [str(c) for c in range(10)], "preprocess": values, "config": config}
    directory.mkdir()
    return checkpoint.save(directory, Contents(1, network.state_dict(), {}, facts)).path


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both networks in every format, and what the process elsewhere made of them."""
    folder = tmp_path_factory.mktemp("exported")
    models = {"cnn": str(trained / "runs/run"), "resnet": str(resnet_checkpoint(folder / "checkpoints"))}
    for name, reference in models.items():
        for export_format, suffix in SUFFIXES.items():
            output = str(folder / f"{name}{suffix}")
            assert launch(["export", reference, "--format", export_format, "--output", output]) == 0
    np.save(folder / "images.npy", pixels(drawings())[:100].numpy())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", ELSEWHERE]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES.values())
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_other_programs_get_the_same_logits(exported: Path, trained: Path, name: str, suffix: str) -> None:
    """On 100 drawings in batches of 1, 7 and 92, within 1e-4 of the network that was trained."""
    images_NCHW = pixels(drawings())[:100]
    if name == "cnn":
        expected_NC = plain_logits(find_checkpoint(trained / "runs/run").checkpoint.path, images_NCHW)
    else:
        model = load_model(exported / "checkpoints/step-00000001")
        with torch.no_grad():
            expected_NC = model.module(model.prepare(images_NCHW))
    found_NC = np.load(exported / f"{name}{suffix}.npy")
    assert found_NC.shape == (100, 10)
    assert float(np.ptp(found_NC, axis=0).max()) > 0.1, "the logits should depend on the image"
    assert float(np.abs(found_NC - expected_NC.numpy()).max()) < 1e-4


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_the_description_says_how_to_use_it(exported: Path, trained: Path, suffix: str) -> None:
    found = json.loads((exported / f"cnn{suffix}.json").read_text())
    manifest = json.loads((checkpoint_of(trained) / "manifest.json").read_text())
    whole = suffix in (".pt2", ".onnx")
    images = "float32 [N, 3, 32, 32], RGB, in 0..1"
    assert found["input"] == (images if whole else f"{images}, then for each channel (value - mean) / std")
    assert found["output"] == "logits, float32 [N, 10], in the order of the classes"
    assert found["resize"] == "shorter side to 32 (bilinear, antialiased), then the centre 32 x 32"
    expected = {key: manifest["preprocess"][key] for key in ("mean", "std")} | {"inside": whole}
    assert found["normalisation"] == expected
    assert found["classes"] == manifest["classes"]
    assert (found["run"], found["model"]["name"]) == ("run", "cifar10_cnn")


def test_the_description_is_in_the_file_too(exported: Path) -> None:
    """For the formats that hold text beside the numbers."""
    import onnx
    from safetensors import safe_open

    with safe_open(exported / "cnn.safetensors", "pt") as file:
        inside = [file.metadata()["trainlaunch"]]
    extra = {"description.json": ""}
    torch.export.load(exported / "cnn.pt2", extra_files=extra)
    (entry,) = [p for p in onnx.load(exported / "cnn.onnx").metadata_props if p.key == "trainlaunch"]
    inside += [extra["description.json"], entry.value]
    for text, suffix in zip(inside, (".safetensors", ".pt2", ".onnx"), strict=True):
        assert json.loads(text) == json.loads((exported / f"cnn{suffix}.json").read_text())


def test_nothing_is_overwritten_unasked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default name is the run's, in the current directory."""
    monkeypatch.chdir(tmp_path)
    words = ["export", str(trained / "runs/run"), "--format", "safetensors"]
    assert launch(words) == 0
    assert capsys.readouterr().out.startswith("run.safetensors (0.6 MB, best weights of step ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.safetensors", "run.safetensors.json"]
    Path("run.safetensors").write_text("mine")
    assert launch(words) == 2
    message = "error: run.safetensors exists; --force replaces it, --output names another file\n"
    assert capsys.readouterr().err == message
    assert Path("run.safetensors").read_text() == "mine"
    assert launch([*words, "--force"]) == 0
    assert len(safetensors.torch.load_file("run.safetensors")) == 10
    assert launch([*words, "--output", "nowhere/x.safetensors"]) == 2
    assert "--output: nowhere is not a folder; make it first" in capsys.readouterr().err
    assert launch([*words, "--output", "."]) == 2
    assert capsys.readouterr().err == "error: . is a folder, which no file replaces; --output names another file\n"


def test_onnx_without_its_packages(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    assert launch(["export", str(trained / "runs/run"), "--format", "onnx"]) == 2
    message = "error: --format onnx needs no_such_package: pip install 'trainlaunch[export]'\n"
    assert capsys.readouterr().err == message
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_exported_wrongly_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the exporter is given a network with another bias than the model has."""
    real = torch.export.export

    def wrong(network: export.Normalised, *args: object, **options: object) -> torch.export.ExportedProgram:
        program = real(copy.deepcopy(network), *args, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            program.state_dict["network.classifier.1.bias"] += 0.01
        return program

    monkeypatch.setattr(torch.export, "export", wrong)
    trained_run = find_checkpoint(trained / "runs/run")
    with pytest.raises(TrainlaunchError, match=r"gives other logits than the model, by 0\.01"):
        export.export(trained_run, "torch_export", tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", ["torch_export", "onnx"])
def test_a_network_that_the_exporter_does_not_take_is_told_in_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_format: str
) -> None:
    """One whose way depends on the values of its input."""

    def forward(self: export.Normalised, images: torch.Tensor) -> torch.Tensor:
        return self.network(images if images.sum() > 1 else -images)  # type: ignore[no-any-return]

    monkeypatch.setattr(export.Normalised, "forward", forward)
    with pytest.raises(
        UserError, match=r"--format .*: torch's exporter does not take this network .*--format state_dict"
    ):
        export.export(find_checkpoint(trained / "runs/run"), export_format, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
