"""A training on grey pictures of 8 and 16 bits, from the folder to the exported file: one number for one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from soak import only_in_soak
from torch import Tensor

from launch.cli import main as launch
from trainlib import load_model
from trainlib.config import load_config
from trainlib.data import load_data
from trainlib.data.datasets.images import as_images
from trainlib.inference import export, predict
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.evaluate import evaluate
from trainlib.train import main as train

QUIET = "tracking={tensorboard: false, progress: false, wandb: {mode: disabled}}"


def grey_pictures(root: Path) -> None:
    """Scans of 12 bits in 16-bit PNG files, grey PNG and JPEG files, and photographs in colour."""
    generator = np.random.default_rng(7)
    for split, count in (("train", 12), ("test", 4)):
        for name, low in (("ill", 0), ("well", 900)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                scan = generator.integers(low, low + 3000, (24, 24)).astype(np.uint16)
                scan[0, 0] = 4095
                match index % 4:
                    case 0 | 1:
                        Image.fromarray(scan).save(folder / f"{index}.png")
                    case 2:
                        Image.fromarray((scan >> 4).astype(np.uint8)).save(folder / f"{index}.jpg", quality=95)
                    case _:
                        colours = np.stack([scan >> 4, scan >> 5, scan >> 4], axis=2).astype(np.uint8)
                        Image.fromarray(colours).save(folder / f"{index}.png")


def by_pillow(path: Path) -> Tensor:
    """The picture as grey of 8 bits, by Pillow, [1, 24, 24]; of more bits scaled by the 12 that are in use."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            values = np.round(np.asarray(image).astype(np.float64) * 255 / 4095)
            return torch.from_numpy(values.astype(np.uint8))[None]
        return torch.from_numpy(np.array(image.convert("L")))[None]


def words(*more: str) -> list[str]:
    data = "data={name: image_folder, root: scans, image_size: 24, channels: 1, val_fraction: 0.25}"
    return ["quickstart", "name=run", data, "model={name: resnet18}", "scheduler=null", QUIET, *more]


@pytest.fixture
def scans(workdir: Path) -> Path:
    grey_pictures(workdir / "scans")
    return workdir / "scans"


def test_every_storage_gives_pillows_pixels(scans: Path) -> None:
    paths = [path for name in ("ill", "well") for path in sorted((scans / "train" / name).iterdir())]
    expected = torch.stack([by_pillow(path) for path in paths])
    for cache in ("auto", "none", "pixels", "files"):
        data = load_data(load_config(words(f"data.cache={cache}")).data)
        found = next(as_images(data.train.images).batches([torch.arange(len(paths))]))
        assert torch.equal(found, expected), cache
        assert data.mean[0] == pytest.approx(float(expected.double().mean() / 255))


@pytest.mark.slow
def test_one_picture_gives_one_number(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    augment = "data.augment={flip: true, crop: {}, policy: randaugment, color_jitter: {brightness: 0.2}, erase: 0.2, "
    mixed = augment + "mixup: 0.2, cutmix: 1.0}"
    assert train(words(mixed, "train={epochs: 1, batch_size: 6}")) == 0
    summary: dict[str, Any] = json.loads(Path("runs/run/summary.json").read_text())
    chosen = find_checkpoint("run")
    for folder in (None, "scans/test"):
        assert evaluate(chosen, "test", folder, None)["loss"] == pytest.approx(summary["test"]["loss"], abs=1e-6)
    paths = [path for name in ("ill", "well") for path in sorted((scans / "test" / name).iterdir())]
    model = load_model("run")
    images_N1HW = torch.stack([by_pillow(path) for path in paths])
    [mean], [std] = model.preprocess.mean, model.preprocess.std
    with torch.no_grad():
        expected = model.module((images_N1HW / 255 - mean) / std).softmax(dim=1)
    for given in (images_N1HW, images_N1HW.expand(-1, 3, -1, -1), [str(path) for path in paths]):
        found = torch.tensor([list(one.probabilities.values()) for one in model.predict(given)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    capsys.readouterr()
    assert predict.main(["run", *map(str, paths), "--json", "--top", "2"]) == 0
    for line, row_C in zip(capsys.readouterr().out.splitlines(), expected.tolist(), strict=True):
        printed = {each["class"]: each["probability"] for each in json.loads(line)["top"]}
        assert printed == pytest.approx(dict(zip(model.classes, row_C, strict=True)), abs=1e-5)
    assert launch(["report", "run"]) == 0


@only_in_soak
def test_an_exported_file_takes_one_channel(scans: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert train(words("train={epochs: 1, batch_size: 6}")) == 0
    paths = sorted((scans / "test").rglob("*.*"))
    images_N1HW = torch.stack([by_pillow(path) for path in paths])
    expected = [list(one.probabilities.values()) for one in load_model("run").predict([str(path) for path in paths])]
    for form in ("safetensors", "onnx"):
        assert export.main(["run", "--format", form, "--output", f"run.{form}"]) == 0
        how = json.loads(Path(f"run.{form}.json").read_text())
        assert how["input"].startswith("float32 [N, 1, 24, 24], grey, in 0..1")
        assert how["preprocessing"]["channels"] == "grey"
        assert (len(how["normalisation"]["mean"]), len(how["normalisation"]["std"])) == (1, 1)
    session = onnxruntime.InferenceSession("run.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": (images_N1HW / 255).numpy()})[0])
    torch.testing.assert_close(logits.softmax(1), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_data_are_looked_at_and_the_first_batch_is_grey(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["data", *words("data.augment={}", "train.batch_size=4"), "--batch", "b.png"]) == 0
    capsys.readouterr()
    sheet = np.asarray(Image.open("b.png").convert("RGB")).astype(int)
    assert np.ptp(sheet, axis=2).max() <= 4  # ink and paper are nearly grey
    assert launch(["data", *words(), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["modes"] == {"I;16": 16, "L": 8, "RGB": 8}


def test_another_number_of_channels_is_another_run(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(words("train={steps: 1, batch_size: 6}")) == 0
    assert train(words("train={steps: 2, batch_size: 6}", "data.channels=3", "--resume")) == 2
    assert "data.channels: 1 there, 3 now" in capsys.readouterr().err
