"""One picture gives one number in training's evaluation, eval, predict, load_model and an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from soak import only_in_soak
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as torchvision_functional

from trainlib import load_model
from trainlib.inference import export, predict
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.evaluate import evaluate
from trainlib.train import main as train

CROP = {"image_size": 16, "resize": {"size": 20, "interpolation": "bicubic"}, "augment": {"crop": {}, "flip": True}}
PAD = {"image_size": [16, 24], "resize": {"fit": "pad"}, "train_image_size": [24, 32]}
SQUASH = {"image_size": 16, "resize": {"fit": "squash"}, "decode": "exact"}


def make_pictures(root: Path) -> None:
    generator = np.random.default_rng(5)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = generator.integers(20, 60, 2)
                pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")


@pytest.fixture(
    params=[
        pytest.param(CROP, id="crop"),
        pytest.param(PAD, id="pad", marks=only_in_soak),
        pytest.param(SQUASH, id="squash", marks=only_in_soak),
    ]
)
def model_and_pictures(request: pytest.FixtureRequest, workdir: Path) -> list[str]:
    make_pictures(workdir / "photos")
    data = {"name": "image_folder", "root": "photos", "val_fraction": 0.25, **request.param}
    words = ["vgg16_scratch32", "name=run", f"data={json.dumps(data)}", "model={name: resnet18}"]
    words += [
        "optimizer={name: AdamW, lr: 1e-3}",
        "scheduler=null",
        "loss={name: CrossEntropyLoss}",
        "train={epochs: 1, batch_size: 6}",
    ]
    assert train([*words, "tracking={tensorboard: false, progress: false, wandb: {mode: disabled}}"]) == 0
    return [str(path) for name in ("a", "b") for path in sorted(Path("photos/test", name).iterdir())]


def test_one_picture_gives_one_number(model_and_pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    paths = model_and_pictures
    summary: dict[str, Any] = json.loads(Path("runs/run/summary.json").read_text())
    chosen = find_checkpoint("run")
    evaluation = evaluate(chosen, "test", None, None)
    in_folder = evaluate(chosen, "test", "photos/test", None)
    for found in (evaluation, in_folder):
        assert found["loss"] == pytest.approx(summary["test"]["loss"], abs=1e-6)
    model = load_model("run")
    whole = model.predict(paths)
    loss = -sum(np.log(one.probabilities[Path(path).parent.name]) for one, path in zip(whole, paths, strict=True))
    assert loss / len(paths) == pytest.approx(summary["test"]["loss"], abs=1e-5)
    assert [one.probabilities for one in model.predict([Image.open(path) for path in paths])] == [
        one.probabilities for one in whole
    ]
    capsys.readouterr()
    assert predict.main(["run", *paths, "--json", "--top", "2"]) == 0
    for line, one in zip(capsys.readouterr().out.splitlines(), whole, strict=True):
        printed = {each["class"]: each["probability"] for each in json.loads(line)["top"]}
        assert printed == pytest.approx(one.probabilities, abs=1e-6)


def recipe(path: str, how: dict[str, Any]) -> torch.Tensor:
    """A stranger's reading of FILE.json, with torchvision or Pillow alone: uint8 [3, H, W]."""
    size, interpolation = (how["height"], how["width"]), v2.InterpolationMode(how["interpolation"])
    with Image.open(path) as image:
        picture: Any = image.convert("RGB")
    if "Pillow" not in how["resampling"]:
        picture = torchvision_functional.pil_to_tensor(picture)
    if how["fit"] == "squash":
        steps = [v2.Resize(size, interpolation)]
    elif how["fit"] == "pad":
        height, width = torchvision_functional.get_size(picture)
        scale = min(size[0] / height, size[1] / width)
        steps = [v2.Resize((int(height * scale + 1e-9), int(width * scale + 1e-9)), interpolation)]
    else:
        steps = [v2.Resize(how["size"], interpolation)]
    framed = v2.Compose([*steps, v2.CenterCrop(size)])(picture)
    result: torch.Tensor = torchvision_functional.to_image(framed).as_subclass(torch.Tensor)
    return result


@pytest.mark.slow
def test_an_exported_file_and_its_recipe_give_the_same_number(model_and_pictures: list[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export.main(["run", "--format", "onnx", "--output", "run.onnx"])
    how = json.loads(Path("run.onnx.json").read_text())
    session = onnxruntime.InferenceSession("run.onnx", providers=["CPUExecutionProvider"])
    model = load_model("run")
    for path in model_and_pictures:
        image_CHW = recipe(path, how["preprocessing"])
        pixels = model.reader.frames.evaluation
        assert image_CHW.shape == (3, pixels.height, pixels.width)
        logits = session.run(None, {"images": (image_CHW[None] / 255).numpy()})[0]
        probabilities = torch.from_numpy(logits).softmax(1)[0].tolist()
        [expected] = model.predict(path)
        assert probabilities == pytest.approx([expected.probabilities[name] for name in model.classes], abs=1e-5)
