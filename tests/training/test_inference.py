"""`trainlib.load_model`: from a run or a checkpoint to predictions, verified, changing nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import tutorial_cnn
from PIL import Image
from trained import checkpoint_of, drawings, pixels, plain_logits

import trainlib
from trainlib.config import load_config
from trainlib.errors import CheckpointError, DataError, UserError
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.trained_model import load_model
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents

FACTS = {"classes": ["a", "b"], "preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 32}}


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run, at runs/run of the current directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/run"


def best_step(run: Path) -> int:
    return int(json.loads((run / "summary.json").read_text())["best"]["step"])


def test_three_lines_from_a_run_to_a_prediction(run: Path) -> None:
    """As the README has it; the answer is that of a plain network with the run's best weights."""
    images_NCHW = pixels(drawings())
    Image.fromarray(images_NCHW[7].permute(1, 2, 0).numpy()).save("picture.png")

    model = trainlib.load_model("run")
    prediction = model.predict("picture.png")[0]

    logits_C = plain_logits(checkpoint_of(run.parent.parent, best_step(run)), images_NCHW[7:8])[0]
    assert prediction.name == model.classes[int(logits_C.argmax())]
    expected = dict(zip(model.classes, logits_C.softmax(dim=0).tolist(), strict=True))
    assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    assert prediction.top(2) == sorted(prediction.probabilities.items(), key=lambda item: item[1])[:-3:-1]
    assert prediction.probability == max(prediction.probabilities.values())


def test_pictures_in_every_form(run: Path) -> None:
    images_NCHW = pixels(drawings())[:5]
    arrays = [image.permute(1, 2, 0).numpy() for image in images_NCHW]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(f"{index}.png")
    model = load_model(run)
    expected = model.predict(images_NCHW)
    assert len(expected) == 5
    in_twos = model.predict(arrays, batch_size=2)
    assert [p.probability for p in in_twos] == pytest.approx([p.probability for p in expected], abs=1e-6)
    assert model.predict([Image.fromarray(array) for array in arrays]) == expected
    assert model.predict([f"{index}.png" for index in range(5)]) == expected
    assert model.predict(Path("3.png")) == model.predict(arrays[3]) == model.predict(Image.open("3.png"))
    assert model.predict([]) == []
    grey = np.full((20, 30), 99, np.uint8)
    assert model.predict(grey) == model.predict(np.stack([grey] * 3, axis=2))
    Path("bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 image cannot be decoded.*\n  bad.png"):
        model.predict(["1.png", "bad.png"])


def test_the_module_is_plain_and_in_eval_mode(run: Path) -> None:
    """Loading draws nothing from torch's generator; the module takes what `prepare` makes."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load_model("run", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.module.modules())
    assert type(model.module).__module__ != "torch.nn.parallel.distributed"
    images_NCHW = pixels(drawings())[:9]
    with torch.no_grad():
        logits_NC = model.module(model.prepare(images_NCHW))
    expected_NC = plain_logits(checkpoint_of(run.parent.parent, best_step(run)), images_NCHW)
    assert torch.allclose(logits_NC, expected_NC, atol=1e-5)


@pytest.mark.parametrize("by", ["name", "directory", "checkpoint", "model file", "copied away"])
def test_ways_to_name_it(run: Path, by: str, tmp_path: Path) -> None:
    first = run / "checkpoints/step-00000008"
    shutil.copytree(first, tmp_path / "elsewhere/step-00000008")
    named: dict[str, tuple[str | Path, str, int]] = {
        "name": ("run", "best", best_step(run)),
        "directory": (str(run), "best", best_step(run)),
        "checkpoint": (first, "checkpoint", 8),
        "model file": (first / "model.safetensors", "checkpoint", 8),
        "copied away": (tmp_path / "elsewhere/step-00000008", "checkpoint", 8),
    }
    reference, weights, step = named[by]
    found = find_checkpoint(reference)
    assert (found.weights, found.checkpoint.step) == (weights, step)
    assert found.run == (run.relative_to(tmp_path) if by == "name" else run if by == "directory" else None)
    if by == "copied away":
        shutil.rmtree(run)  # it needs nothing from where it was made
    assert load_model(reference).step == step


def test_damage_is_refused_or_passed_over_and_nothing_is_renamed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A named checkpoint must be whole; of a run the best one, and where it is lost the last one, with a warning."""
    last, first = run / "checkpoints/step-00000016", run / "checkpoints/step-00000008"
    assert best_step(run) == 16
    with (last / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"xyz")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_model(last)
    assert load_model("run").step == 8
    assert "passed over" in caplog.text
    assert sorted(path.name for path in last.parent.iterdir()) == [first.name, last.name]
    (first / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"runs/run: has no whole checkpoint"):
        load_model("run")
    with pytest.raises(CheckpointError, match=r"nothing: no such run or checkpoint; give the name of a run in .*/runs"):
        load_model("nothing")


def save(directory: Path, model: torch.nn.Module, config: dict[str, object], step: int, **more: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return checkpoint.save(directory, Contents(step, model.state_dict(), {}, FACTS | {"config": config} | more)).path


def test_the_best_that_is_lost_is_replaced_by_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(["quickstart"]).model_dump(mode="json")
    save(tmp_path / "checkpoints", tutorial_cnn(2), config, 5, best_step=3)
    assert find_checkpoint(tmp_path).weights == "last"
    assert "the best weights are lost; the last ones are used instead" in caplog.text
    best = save(tmp_path / "checkpoints", tutorial_cnn(2), config, 3, best_step=3)
    assert (find_checkpoint(tmp_path).weights, find_checkpoint(tmp_path).checkpoint.path) == ("best", best)


def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    config = load_config(["quickstart", "model={name: mobilenet_v3_small}"]).model_dump(mode="json")
    path = save(tmp_path, tutorial_cnn(2), config, 1)
    with pytest.raises(CheckpointError, match="step-00000001: does not fit mobilenet_v3_small"):
        load_model(path)


def test_an_older_manifest_says_what_it_lacks(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, Contents(1, tutorial_cnn(2).state_dict(), {}, {})).path
    with pytest.raises(CheckpointError, match="its manifest does not hold the config, as those of an earlier version"):
        load_model(path)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """What was given to `trainlib.fit` is given again: a module, or what makes it. Without it the message says so."""
    torch.manual_seed(0)
    own = tutorial_cnn(2)
    custom = {"model": "custom:Sequential"}
    config = load_config(["quickstart"], custom).model_dump(mode="json")
    path = save(tmp_path, own, config, 1)
    with pytest.raises(UserError, match=r"model.name: got custom:Sequential, .*give it to load_model as `model`"):
        load_model(path)
    images_NCHW = pixels(drawings())[:3]
    with torch.no_grad():
        expected_NC = own.eval()((images_NCHW / 255 - 0.5) / 0.25).softmax(dim=1)
    for source in (tutorial_cnn(2), tutorial_cnn):
        assert torch.allclose(load_model(path, model=source).probabilities(images_NCHW), expected_NC, atol=1e-6)
