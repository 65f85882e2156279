"""`launch predict`: any picture, prepared as in training; what cannot be read is named, and the others are done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image, ImageOps
from trained import checkpoint_of, drawings, manifest_of, pixels, plain_network

from launch.cli import main as launch


def drawing(index: int) -> Image.Image:
    return Image.fromarray(pixels(drawings())[index].permute(1, 2, 0).numpy())


def save_all_kinds(folder: Path) -> dict[str, Image.Image]:
    """Files of every mode that PIL writes, and the RGB picture that each of them is."""
    large, wide, small = drawing(3).resize((90, 90)), drawing(5).resize((150, 60)), drawing(4).resize((11, 17))
    grey = np.array(drawing(6).convert("L").resize((40, 40)), np.uint16)
    grey[0, 0] = 255  # so that all 16 bits are in use
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (folder / "deep/er").mkdir(parents=True)
    large.save(folder / "a.png")
    wide.save(folder / "deep/b.jpg", quality=95)
    wide.save(folder / "deep/turned.jpg", quality=95, exif=exif)
    small.convert("P").save(folder / "deep/er/palette.gif")
    large.convert("RGBA").save(folder / "rgba.webp", lossless=True)
    large.convert("CMYK").save(folder / "print.tif")
    large.convert("1").save(folder / "bits.png")
    Image.fromarray(grey * 257).save(folder / "sixteen.png")
    (folder / "notes.txt").write_text("no image")
    opened = {str(path): Image.open(path) for path in sorted(folder.rglob("*.*")) if path.name != "notes.txt"}
    pictures = {path: ImageOps.exif_transpose(picture) for path, picture in opened.items()}
    pictures[str(folder / "sixteen.png")] = Image.fromarray(grey.astype(np.uint8))
    return {path: picture.convert("RGB") for path, picture in pictures.items()}


def probabilities(trained: Path, picture: Image.Image) -> torch.Tensor:
    """float32 [10] by torchvision's transforms and a plain network with the run's best weights."""
    from torchvision.transforms import v2

    best = json.loads((trained / "runs/run/summary.json").read_text())["best"]["step"]
    checkpoint = checkpoint_of(trained, best)
    values = manifest_of(checkpoint)["preprocess"]
    steps = [v2.PILToTensor(), v2.Resize(32), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    image_CHW = v2.Compose([*steps, v2.Normalize(values["mean"], values["std"])])(picture)
    with torch.no_grad():
        result: torch.Tensor = plain_network(checkpoint)(image_CHW[None]).softmax(dim=1)[0]
    return result


def predicted(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    assert launch(["predict", "run", *words, "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_pictures_of_every_kind(in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder, sorted by path, to any depth: what torchvision's transforms and a plain network make of each."""
    pictures = save_all_kinds(tmp_path)
    classes = manifest_of(checkpoint_of(in_trained))["classes"]
    found = predicted([str(tmp_path), "--top", "3", "--batch-size", "3"], capsys)
    assert [line["path"] for line in found] == sorted(pictures)
    for line in found:
        expected_C = probabilities(in_trained, pictures[line["path"]])
        top = expected_C.topk(3)
        assert [answer["class"] for answer in line["top"]] == [classes[i] for i in top.indices], line
        assert [answer["probability"] for answer in line["top"]] == pytest.approx(top.values.tolist(), abs=1e-5)
        assert (line["class"], line["probability"]) == tuple(line["top"][0].values())


def test_damaged_files_are_named_and_the_others_done(
    in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing(0).save(tmp_path / "good.png")
    (tmp_path / "cut.jpg").write_bytes(b"no picture")
    words = [str(tmp_path / "cut.jpg"), str(tmp_path / "good.png"), str(tmp_path / "absent.png")]
    assert launch(["predict", "run", *words]) == 1
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith(f"{words[1]:<{len(words[2])}}  ")
    first, second = captured.err.splitlines()
    assert first.startswith(f"{words[0]}: cannot be read: no whole picture of a format")
    assert second.startswith(f"{words[2]}: cannot be read: [Errno 2] No such file")

    assert launch(["predict", "run", words[0], words[2]]) == 2
    assert capsys.readouterr().err.endswith("error: no image could be read\n")


def test_lines_for_people_are_aligned(in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longest class of the ten has 18 letters; a name that would steer the terminal is shown escaped."""
    names = ["a.png", "much longer.png", "red \x1b[31m.png"]
    for index, name in enumerate(names):
        drawing(index).save(tmp_path / name)
    assert launch(["predict", "run", *(str(tmp_path / name) for name in names), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    width = len(str(tmp_path / "red \\x1b[31m.png"))
    assert [line[:width].rstrip() for line in lines] == [
        str(tmp_path / name) for name in ("a.png", "much longer.png", "red \\x1b[31m.png")
    ]
    for line in lines:
        cells = line[width + 2 :]
        assert len(cells) == 2 * (18 + 2 + 6) + 3
        assert cells[18:20] == "  "
        assert 0.1 < float(cells[20:26]) <= 1


@pytest.mark.slow
def test_standard_input_and_a_reader_that_stops(in_trained: Path, tmp_path: Path) -> None:
    """One image's bytes through a pipe; `| head -1` of many ends without a word."""
    for index in range(9):
        drawing(index).save(tmp_path / f"{index:02d}.png")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable, "PICTURES": str(tmp_path)}
    script = (
        'cat "$PICTURES/03.png" | "$PYTHON" -m launch predict run - --json\n'
        '"$PYTHON" -m launch predict run "$PICTURES" --batch-size 1 --json | head -1\n'
        'echo "${PIPESTATUS[0]}"\n'
    )
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    piped, first, code = result.stdout.splitlines()
    assert json.loads(piped)["path"] == "-"
    expected_C = probabilities(in_trained, drawing(3))
    assert json.loads(piped)["probability"] == pytest.approx(float(expected_C.max()), abs=1e-5)
    assert json.loads(first)["path"].endswith("00.png")
    assert (code, result.stderr.replace("loading torch ...\n", "")) == ("0", "")


def test_a_run_that_does_not_exist_is_told_without_torch(tmp_path: Path) -> None:
    program = "import sys; from launch.cli import main; print(main(['predict', 'x', 'y']), 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", program]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "2 False\n"
    assert result.stderr.startswith("error: no run 'x': there are no runs in ")
