"""A training of a timm model: the same bits on one and two ranks, and one number for one picture in every program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from PIL import Image

from trainlib import load_model
from trainlib.inference import export, predict
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.evaluate import evaluate

pytestmark = pytest.mark.slow

TRAINING = [
    "quickstart",
    "name=run",
    "model={name: timm/test_vit, drop_rate: 0.1, drop_path_rate: 0.1}",
    "data={name: synthetic, limit: 60, val_fraction: 0.2, image_size: 32}",
    "optimizer={name: AdamW, lr: 0.001, weight_decay: 0.05, no_decay: norm_and_bias, layer_decay: 0.75}",
    "scheduler={name: OneCycleLR, interval: step, max_lr: 0.001}",
    "train={epochs: 2, batch_size: 12, reproducibility: elastic, virtual_shards: 2}",
    "tracking={tensorboard: false, progress: false, wandb: {mode: disabled}}",
]


def test_from_the_configuration_to_the_exported_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    digests = set()
    for world_size in (1, 2):
        cwd = tiny.in_folder(tmp_path, f"ranks-{world_size}")
        assert ranks.train(TRAINING, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        digests.add(tiny.digest(cwd))
    assert len(digests) == 1

    monkeypatch.chdir(cwd)
    environment = json.loads(Path("runs/run/environment.json").read_text())
    assert environment["versions"]["timm"]
    summary: dict[str, Any] = tiny.summary(cwd)
    assert evaluate(find_checkpoint("run"), "test", None, None)["loss"] == pytest.approx(
        summary["test"]["loss"], abs=1e-6
    )
    model = load_model("run")
    picture = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = list(model.predict(picture)[0].probabilities.values())
    Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save("picture.png")
    capsys.readouterr()
    assert predict.main(["run", "picture.png", "--json", "--top", "10"]) == 0
    top = {each["class"]: each["probability"] for each in json.loads(capsys.readouterr().out)["top"]}
    assert [top[name] for name in model.classes] == pytest.approx(expected, abs=1e-5)
    assert export.main(["run", "--format", "onnx", "--output", "run.onnx"]) == 0
    session = onnxruntime.InferenceSession("run.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": (picture / 255).numpy()})[0])
    assert logits.softmax(1)[0].tolist() == pytest.approx(expected, abs=1e-5)
