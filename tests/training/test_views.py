"""Test-time augmentation: every evaluation and prediction is of the mean over the views, every file of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import safetensors.torch
import tiny
import torch
from parts import tutorial_cnn
from PIL import Image
from torch import Tensor, nn
from trained import IN_PLAIN_NETWORK, manifest_of

from launch.cli import main as launch
from trainlib.config import is_harmless, load_config
from trainlib.data.identity.listing import identities
from trainlib.data.identity.splits import split_validation
from trainlib.inference import export
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.trained_model import load_model
from trainlib.models.forward.tta import with_tta

TEST_TIMES = ["none", "flip", "flip_translate"]


def views(images: np.ndarray, test_time: str) -> list[tuple[float, np.ndarray]]:
    """The views of images [N, 3, H, W], each with its weight; NumPy's are the mirrors here."""
    if test_time == "none":
        return [(1.0, images)]
    if test_time == "flip":
        return [(1 / 2, images), (1 / 2, images[..., ::-1])]
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    moved = [padded[:, :, dy : dy + height, dx : dx + width] for dy, dx in ((0, 0), (2, 2))]
    every = [(1 / 4, images), (1 / 4, images[..., ::-1])]
    return every + [(1 / 8, view) for one in moved for view in (one, one[..., ::-1])]


def averaged_logits(network: nn.Module, images_NCHW: Tensor, test_time: str) -> Tensor:
    """Logits float64: the weighted mean of those of every view."""
    weighted = views(images_NCHW.numpy(), test_time)
    assert sum(weight for weight, _ in weighted) == 1
    with torch.no_grad():
        logits = [weight * network(torch.from_numpy(view.copy())).double() for weight, view in weighted]
    return torch.stack(logits).sum(dim=0)


@pytest.mark.parametrize("test_time", TEST_TIMES)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (2, 2)])
def test_it_is_the_mean_over_the_views(test_time: str, height: int, width: int) -> None:
    """Of a network that tells every pixel apart, and none of whose outputs is linear in them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, 6), nn.ReLU(), nn.Linear(6, 4))
    images_NCHW = torch.randn(5, 3, height, width)
    with torch.no_grad():
        logits_NC = with_tta(network, test_time)(images_NCHW)
    torch.testing.assert_close(
        logits_NC.double(), averaged_logits(network, images_NCHW, test_time), atol=1e-6, rtol=1e-5
    )
    if test_time == "none":
        assert with_tta(network, test_time) is network


@pytest.fixture(
    scope="module",
    params=["flip_translate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "flip"))],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working directory with images and a short run on two ranks, and how it evaluates."""
    cwd = tmp_path_factory.mktemp("views")
    tiny.make_images(cwd / "images")
    words = ["model={name: cifar10_cnn}", "optimizer={name: AdamW, lr: 1e-2}", f"evaluation.test_time={request.param}"]
    codes = ranks.train(tiny.arguments(cwd / "images", 2, 4, *words), world_size=2, cwd=cwd)
    assert codes == [0, 0], ranks.console(cwd)
    return cwd, request.param


def pixels_of(cwd: Path, split: str) -> Tensor:
    """uint8 [N, 3, 32, 32] in the data set's own order."""
    paths = sorted((cwd / "images" / split).glob("*/*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])


def plain(checkpoint: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The checkpoint's network, built by this test, with the mean and standard deviation of its input."""
    state = safetensors.torch.load_file(checkpoint / "model.safetensors")
    renamed = {name: name.rpartition(".") for name in state}
    network = tutorial_cnn(2)
    network.load_state_dict({f"{IN_PLAIN_NETWORK[head]}.{tail}": state[n] for n, (head, _, tail) in renamed.items()})
    values = manifest_of(checkpoint)["preprocess"]
    mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("mean", "std"))
    return network.eval(), mean, std


def expected_logits(checkpoint: Path, images_NCHW: Tensor, test_time: str) -> Tensor:
    network, mean, std = plain(checkpoint)
    return averaged_logits(network, (images_NCHW / 255 - mean) / std, test_time)


def figures(logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    loss = torch.nn.functional.cross_entropy(logits_NC, labels_N)
    return {"loss": float(loss), "accuracy": float((logits_NC.argmax(dim=1) == labels_N).double().mean())}


def test_validation_and_test_of_a_run(run: tuple[Path, str]) -> None:
    cwd, test_time = run
    names = identities(f"{label}/{index:02d}.png" for label in "ab" for index in range(30))
    _, val_ids = split_validation(torch.arange(2).repeat_interleave(30), 0.2, 0, "stratified", names)
    checkpoint = cwd / "runs/run/checkpoints/step-00000008"
    rows = [row for row in tiny.rows(cwd) if row["split"] == "val" and row["step"] == 8]
    labels_N = torch.arange(2).repeat_interleave(30)[val_ids]
    expected = figures(expected_logits(checkpoint, pixels_of(cwd, "train")[val_ids], test_time), labels_N)
    assert {key: rows[0][key] for key in expected} == pytest.approx(expected, rel=1e-5)

    tested = find_checkpoint(cwd / "runs/run").checkpoint.path
    logits_NC = expected_logits(tested, pixels_of(cwd, "test"), test_time)
    expected = figures(logits_NC, torch.arange(2).repeat_interleave(5))
    assert {key: tiny.summary(cwd)["test"][key] for key in expected} == pytest.approx(expected, rel=1e-5)
    if test_time != "none":
        without = figures(expected_logits(tested, pixels_of(cwd, "test"), "none"), torch.arange(2).repeat_interleave(5))
        assert abs(without["loss"] - expected["loss"]) > 1e-4, "the views should differ"


def evaluate_in_rank(arguments: list[str]) -> int:
    """The program of `launch eval`, inside a rank."""
    from trainlib.inference.evaluate import main

    return main(arguments)


def test_launch_eval(run: tuple[Path, str]) -> None:
    """Also what it keeps of each sample: the mistakes' probabilities are those of the mean."""
    cwd, test_time = run
    assert ranks.run(evaluate_in_rank, ["run", "--json", "--batch-size", "3"], world_size=2, cwd=cwd) == [0, 0]
    found: dict[str, Any] = json.loads(ranks.console(cwd).splitlines()[-1])
    logits_NC = expected_logits(find_checkpoint(cwd / "runs/run").checkpoint.path, pixels_of(cwd, "test"), test_time)
    expected = figures(logits_NC, torch.arange(2).repeat_interleave(5))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    for mistake in found["mistakes"]:
        assert mistake["probability"] == pytest.approx(float(logits_NC[mistake["index"]].softmax(0).max()), abs=1e-5)


def test_predictions(run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    cwd, test_time = run
    images_NCHW = pixels_of(cwd, "test")
    model = load_model(cwd / "runs/run", device="cpu")
    checkpoint = find_checkpoint(cwd / "runs/run").checkpoint.path
    expected_NC = expected_logits(checkpoint, images_NCHW, test_time).softmax(dim=1).float()
    torch.testing.assert_close(model.probabilities(images_NCHW), expected_NC, atol=1e-5, rtol=0)
    assert launch(["predict", str(cwd / "runs/run"), str(cwd / "images/test/a/03.png"), "--json", "--top", "2"]) == 0
    top = {one["class"]: one["probability"] for one in json.loads(capsys.readouterr().out)["top"]}
    assert [top["a"], top["b"]] == pytest.approx(expected_NC[3].tolist(), abs=1e-5)


def test_an_exported_file_holds_the_plain_network(run: tuple[Path, str], tmp_path: Path) -> None:
    cwd, _ = run
    trained = find_checkpoint(cwd / "runs/run")
    export.export(trained, "torch_export", tmp_path / "x.pt2")
    images_NCHW = pixels_of(cwd, "test")
    found_NC = torch.export.load(tmp_path / "x.pt2").module()(images_NCHW / 255)
    expected_NC = expected_logits(trained.checkpoint.path, images_NCHW, "none")
    torch.testing.assert_close(found_NC.detach().double(), expected_NC, atol=1e-4, rtol=1e-4)


def test_a_run_does_not_go_on_with_other_views() -> None:
    """They decide which checkpoint is the best."""
    assert not is_harmless("evaluation.test_time")
    assert load_config(["quickstart"]).evaluation.test_time == "none"
