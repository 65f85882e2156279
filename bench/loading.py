"""The part `loading`: pictures that a CPU second loads, beside other loaders and beside decoding alone.

3,000 JPEG files of about 500 x 400 pixels in class folders, and some of 12 megapixels, made here. Every loader runs in
a process of its own, one after the other in every round; see bench/arms/loaders.py.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bench.arms.loaders import LOADERS

OURS, LIMIT, LARGE = "ours", "decode and resize", "12 megapixels"
BOUNDS = {
    "ImageFolder, PIL": 1.8,
    "ImageFolder, torchvision.io": 1.0,
    "timm": 1.0,
    "DALI, CPU": 1.0,
    LIMIT: 0.55,
}
LARGE_BOUND = 7.0

Measured = Mapping[str, list[dict[str, float]]]


def make_pictures(folder: Path, count: int, large: int) -> None:
    """Write JPEG files like photographs: detail at every scale, and noise. Nothing is written where they are there."""
    if (folder / "made").exists():
        return
    random = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"train/class-{index % 10}/{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (int(side * random.uniform(0.8, 1.2)) for side in (400, 500))
        picture(height, width, random).save(path, quality=90)
    (folder / "large").mkdir(exist_ok=True)
    for index in range(large):
        picture(3000, 4000, random).save(folder / f"large/{index}.jpg", quality=85)
    (folder / "made").touch()


def picture(height: int, width: int, random: np.random.Generator) -> Image.Image:
    """Return colours with detail that is half as strong at half the size, and a little noise in each pixel."""
    total = np.full((height, width, 3), 128.0, np.float32)
    side, strength = 4, 60.0
    while side < min(height, width):
        cells = random.normal(0, strength, (side, side * width // height + 1, 3)).astype(np.float32)
        for channel in range(3):
            total[..., channel] += np.asarray(
                Image.fromarray(cells[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            )
        side, strength = side * 2, strength * 0.6
    total += random.normal(0, 3, (height, width, 1)).astype(np.float32)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def time_loaders(folder: Path, rounds: int, threads: int) -> Measured:
    """Return what each loader measured in every round; one that is not installed is left out, and named."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for name in [*measured]:
            command = [sys.executable, "-m", "bench.arms.loaders", name, str(folder), str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode:
                print(f"{name}: left out: {done.stderr.strip().splitlines()[-1]}")
                del measured[name]
            else:
                measured[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, done.stdout.splitlines()[-1], flush=True)
    return measured


def loading_table(measured: Measured) -> str:
    """Return the table of all loaders: medians over the rounds, and ours beside the bound that was set."""
    lines = [
        "| loader | pictures a CPU second | CPU ms a picture | pictures a second | MB | ours is | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    per_cpu = {name: _median(runs, "cpu") for name, runs in measured.items()}
    for name, runs in measured.items():
        base = f"{LARGE}, before" if name == LARGE else name
        times = per_cpu[LARGE] / per_cpu[base] if name == LARGE else per_cpu[OURS] / per_cpu[name]
        bound = LARGE_BOUND if name == LARGE else BOUNDS.get(name)
        is_compared = name != OURS and not name.endswith("before")
        lines.append(
            f"| {name} | {per_cpu[name]:.0f} | {1000 / per_cpu[name]:.2f} | {_median(runs, 'seconds'):.0f} | "
            f"{statistics.median(run['megabytes'] for run in runs):.0f} | "
            f"{f'{times:.2f} x' if is_compared else ''} | {f'>= {bound}' if bound else ''} |"
        )
    return "\n".join(lines)


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run["pictures"] / run[key] for run in runs)
