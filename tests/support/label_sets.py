"""Pictures with several labels each: shapes of several colours on a grey canvas, and the table that names them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"blue": (40, 70, 220), "green": (40, 170, 70), "red": (210, 40, 40), "yellow": (225, 200, 50)}
SHAPES = ("disc", "square")
CLASSES = sorted([*COLOURS, *SHAPES])


def draw(path: Path, number: int, size: int = 32) -> list[str]:
    """Save the picture of a number, with no shape to three, and return its labels: every shape and colour in it."""
    generator = np.random.default_rng(number)
    shade = int(generator.integers(90, 140))
    image = Image.new("RGB", (size, size), (shade, shade, shade))
    canvas, labels = ImageDraw.Draw(image), set()
    corners = generator.permutation(4)[: generator.integers(0, 4)]  # a quarter each, so that none hides another
    for corner in corners.tolist():
        colour = str(generator.choice(sorted(COLOURS)))
        shape = str(generator.choice(SHAPES))
        width = int(generator.integers(size * 9 // 32, size * 15 // 32))
        left, top = (int(generator.integers(0, size // 2 - width + 1)) + half * size // 2 for half in divmod(corner, 2))
        box = (left, top, left + width, top + width)
        (canvas.ellipse if shape == "disc" else canvas.rectangle)(box, fill=COLOURS[colour])
        labels |= {colour, shape}
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return sorted(labels)


def write_table(folder: Path, count: int, separator: str = ";") -> Path:
    """Save so many pictures below `folder`/photos, and their table beside them."""
    table = folder / "photos.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for number in range(count):
            name = f"{number:04}.png"
            writer.writerow([name, separator.join(draw(folder / "photos" / name, number))])
    return table


def words(folder: Path, *more: str) -> list[str]:
    """The words after `launch run` that train a small network on the table."""
    table = f"{{name: table, root: {folder}/photos, table: {folder}/photos.csv, image_size: 32, labels: several}}"
    return [
        "quickstart",
        "name=run",
        f"data={table}",
        "loss={name: BCEWithLogitsLoss}",
        "tracking={tensorboard: false, progress: false, wandb: {mode: disabled}}",
        *more,
    ]
