"""Runs of the fast recipe's network: resumed, elastic, on two ranks, and what is done with what they trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
import safetensors.torch
import tiny
import torch
from plain_cifar10_fast import Plain, random_images

from launch.cli import main as launch
from trainlib.inference.trained_model import load_model


def arguments(images: Path, *more: str) -> list[str]:
    return tiny.arguments(images, 2, 3, "model={name: cifar10_fast, width: 0.05}", "scheduler=null", *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the images and a run that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    tiny.make_images(cwd / "images")
    assert ranks.train(arguments(cwd / "images"), cwd=cwd) == [0], ranks.console(cwd)
    return cwd


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one_and_computes_no_whitening(whole: Path, tmp_path: Path) -> None:
    """Eight steps, stopped after three; when it goes on, the function that whitens is not even there."""
    part = arguments(whole / "images", "train={steps: 3, batch_size: 12, clip_grad_norm: 1.0}")
    assert ranks.train(part, cwd=tmp_path) == [0], ranks.console(tmp_path)
    rest = arguments(whole / "images")
    assert ranks.run(resume_without_whitening, rest, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    assert tiny.summary(tmp_path)["weights_sha256"] == tiny.summary(whole)["weights_sha256"]


def resume_without_whitening(arguments: list[str]) -> int:
    """In a rank."""
    from trainlib.config import load_config
    from trainlib.runs.attempt.stop_request import StopFlag
    from trainlib.train import train
    from trainlib.training.build import training

    del training.init_whitening  # type: ignore[attr-defined]
    return 0 if train(load_config(arguments), StopFlag(), rank=0, resume="") else 1


@pytest.mark.slow
def test_elastic_runs_have_the_same_bits_on_one_and_two_ranks(whole: Path, tmp_path: Path) -> None:
    elastic = arguments(whole / "images", "train.reproducibility=elastic", "train.virtual_shards=4")
    results = []
    for world_size in (1, 2):
        cwd = tiny.in_folder(tmp_path, str(world_size))
        assert ranks.train(elastic, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        results.append(tiny.summary(cwd)["weights_sha256"])
    assert results[0] == results[1]


def test_two_ranks_have_the_whitening_of_one(whole: Path, tmp_path: Path) -> None:
    """Their BatchNorm sees half a batch each, so what learns comes out otherwise; the whitening does not learn."""
    assert ranks.train(arguments(whole / "images"), world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    one, two = (
        safetensors.torch.load_file(cwd / "runs/run/checkpoints/step-00000008/model.safetensors")["whiten.weight"]
        for cwd in (whole, tmp_path)
    )
    assert torch.equal(one, two)


@pytest.mark.slow
def test_what_it_trained_checks_predicts_and_exports(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file holds the network of the oracle above: its weights load strictly, whole files give its logits."""
    monkeypatch.chdir(tmp_path)
    assert launch(["check", *arguments(whole / "images")]) == 0
    model = load_model(whole / "runs/run", device="cpu")
    plain = Plain((3, 13, 13), 2).eval()
    state = model.module.state_dict()
    plain_state = plain.state_dict()
    renamed = dict(zip(plain.named_as_ours(), _plain_names(plain), strict=True))
    plain.load_state_dict({renamed[name]: tensor for name, tensor in state.items()}, strict=True)
    assert plain_state.keys() == plain.state_dict().keys()
    images_NCHW = random_images(7)
    with torch.no_grad():
        expected_NC = plain(model.prepare(images_NCHW))
        torch.testing.assert_close(model.module(model.prepare(images_NCHW)), expected_NC)
    for export_format, suffix in (("state_dict", "pt"), ("torch_export", "pt2"), ("onnx", "onnx")):
        words = ["export", str(whole / "runs/run"), "--format", export_format, "--output", f"x.{suffix}"]
        assert launch(words) == 0, capsys.readouterr().err
    exported = torch.export.load("x.pt2").module()
    torch.testing.assert_close(exported(images_NCHW / 255), expected_NC, atol=1e-4, rtol=1e-3)
    assert json.loads(Path("x.pt.json").read_text())["model"]["width"] == 0.05
    capsys.readouterr()
    assert launch(["predict", str(whole / "runs/run"), str(whole / "images/test/a/00.png")]) == 0
    assert capsys.readouterr().out.split()[1] in ("a", "b")


def _plain_names(plain: Plain) -> list[str]:
    """The names in the oracle, in the order in which `named_as_ours` lists them."""
    names = ["whiten.weight", "whiten.bias", "head.weight"]
    for index, norm in enumerate(plain.norms):
        names += [f"convolutions.{index}.weight", *(f"norms.{index}.{name}" for name in norm.state_dict())]
    return names
