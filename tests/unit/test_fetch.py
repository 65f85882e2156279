"""What `launch submit` and `sweep` fetch before they queue, and what they say where there is no internet."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from huggingface_hub import constants
from torchvision import models
from torchvision.datasets import CIFAR10

from trainlib.errors import EXIT_OK, EXIT_USER_ERROR
from trainlib.training.build import fetch
from trainlib.training.programs import prepare

NAME = "mobilenet_v3_small"
QUICK = ["quickstart", "name=run"]
MODEL = f"model={{name: {NAME}, weights: pretrained}}"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workdir: Path) -> list[str]:
    """An internet that has torchvision's weights alone, and empty caches; the addresses that were asked for."""
    asked: list[str] = []

    def download(url: str, path: str, *_: object, **__: object) -> None:
        asked.append(url)
        torch.save(models.get_model(NAME).state_dict(), path)

    def nothing(self: CIFAR10) -> None:
        asked.append(self.url)
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hugging-face"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(CIFAR10, "download", nothing)
    for cached in (fetch._fetch_cifar10, fetch._fetch_weights):
        cached.cache_clear()
    return asked


def test_weights_are_there_before_the_job_is_queued(
    downloads: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([*QUICK, MODEL]) == EXIT_OK
    [url] = downloads
    assert url.startswith("https://download.pytorch.org/models/mobilenet_v3_small")
    assert f"model.weights: IMAGENET1K_V1 of {NAME} is on this machine" in capsys.readouterr().out
    assert prepare.main([*QUICK, MODEL]) == EXIT_OK
    assert len(downloads) == 1
    assert (workdir / "runs/run/config.yaml").is_file()


def test_a_run_that_goes_on_from_a_checkpoint_needs_no_weights(downloads: list[str], workdir: Path) -> None:
    assert prepare.main([*QUICK, MODEL]) == EXIT_OK
    (workdir / "runs/run/checkpoints/step-00000001").mkdir(parents=True)
    fetch._fetch_weights.cache_clear()
    for file in (workdir / "hub").rglob("*.pth"):
        file.unlink()
    prepare.main([*QUICK, MODEL])
    assert len(downloads) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([MODEL], ["be downloaded (<urlopen error no route", "https://download.pytorch.org/models/mobilenet", "Place"]),
        (
            ["model={name: timm/resnet18, weights: pretrained}"],
            ["those of timm/resnet18, at timm/resnet18.a1_in1k", "HF_HOME"],
        ),
        (["model={name: 'hf-hub:nobody/nothing'}"], ["hf-hub:nobody/nothing", "HF_HOME"]),
        (["data.name=cifar10", "model.name=resnet18"], ["be downloaded from https://", "cifar-10-python.tar.gz"]),
    ],
    ids=["torchvision", "timm", "hub", "cifar10"],
)  # fmt: skip
def test_without_internet_nothing_is_queued(
    downloads: list[str],
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: list[str],
) -> None:
    def refused(url: str, *_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    assert prepare.main([*QUICK, *words]) == EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert all(part in message for part in said), message
    assert not (workdir / "runs").exists()
