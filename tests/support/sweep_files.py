"""Sweep files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.cli import main
from launch.sweep.file.grid import read_sweep
from trainlib.errors import ConfigError

GRID = """\
name: s
configs: [quickstart]
overrides: {train.epochs: 5, data: {name: synthetic, image_size: 16}}
grid:
  optimizer.lr: [0.01, 1e-5]
  seed: [0, 1]
runs:
  - {model: {name: resnet18}}
  - {model: {name: vgg16, width: 0.25}, train.precision: "no"}
throttle: 2
"""

SEARCH = """\
configs: [quickstart]
overrides: {train.epochs: 4, seed: 5}
grid: {train.precision: [fp32, bf16]}
space:
  optimizer.lr: {min: 1e-4, max: 1, log: true}
  train.batch_size: [16, 32, 64, 128]
trials: 3
metric: val/loss
rungs: [1ep, 2ep]
reduction_factor: 2
"""


def written(text: str) -> Path:
    path = Path("s.yaml")
    path.write_text(text)
    return path


def refused(text: str, ways: Sequence[Sequence[str]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the mistakes that a sweep file is refused with, each way of `launch sweep`; nothing is begun."""
    with pytest.raises(ConfigError) as raised:
        read_sweep(written(text))
    for way in ways:
        assert main(["sweep", "s.yaml", *way]) == 2
        assert capsys.readouterr().err == f"error: {raised.value}\n"
    assert [path.name for path in Path().iterdir()] == ["s.yaml"]
    return [str(mistake) for mistake in raised.value.mistakes]
