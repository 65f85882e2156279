"""A picture of the first training batch, exactly as the model gets it, with labels and mixing weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainlib.config import Config
from trainlib.data import Dataset, load_data
from trainlib.data.augment.custom import Transform
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.survey.looking import as_image
from trainlib.data.targets import class_names_of
from trainlib.distributed import process_group
from trainlib.errors import UserError
from trainlib.runs.terminal.printable import printable
from trainlib.training.build.data import build_data_module, plan_of
from trainlib.training.build.run_weights import pin_weights

MOST_PICTURES = 64
COLUMNS = 8
CELL = 128  # pixels of a picture at least, enlarged by a whole number; a larger one is made smaller for the grid
GAP, TEXT = 12, 15  # pixels between cells, and of the letters
INK, PAPER = "#1b1d1f", "#fdfdfc"


def write_first_batch(
    config: Config, target: Path, own: Dataset | None = None, transform: Transform | None = None
) -> None:
    """Write the picture of the first global batch of the first epoch, as one process gets it.

    own, transform   a data set and a random change of the user's own
    """
    config = pin_weights(config)
    dataset = load_data(config.data, config.seed, own=own)
    plan, val_ids = plan_of(config, dataset)
    with process_group.joined(config.train) as accelerator:
        samples = build_data_module(config, dataset, val_ids, accelerator, transform)
        batches, draws = plan.batches_and_draws(0)
        (micro_batches,) = samples.train.train_batches(batches[:1], 0, samples.augmentation, draws[:1])
        preprocess = samples.train.preprocess
        cells = [
            (as_image(picture_CHW), words)
            for micro_batch in micro_batches
            for picture_CHW, words in zip(
                denormalised(micro_batch, preprocess), label_lines(micro_batch, dataset.class_names), strict=True
            )
        ]
    shown = cells[:MOST_PICTURES]
    count = f"{len(cells)}" if len(shown) == len(cells) else f"the first {len(shown)} of {len(cells)}"
    height, width = micro_batches[0].images_NCHW.shape[2:]
    title = f"{config.name}: step 1, {count} images, {width} x {height} pixels, without normalisation"
    try:
        grid(shown, title).save(target, "PNG")
    except OSError as error:
        raise UserError(f"--batch: {target} cannot be written ({error.strerror or error})") from error


def denormalised(micro_batch: MicroBatch, preprocess: Preprocess) -> Tensor:
    """Return the model's input as pictures again: uint8 [N, C, H, W] on the CPU, clipped to 0..255."""
    images_NCHW = micro_batch.images_NCHW[: len(micro_batch.targets)].float().cpu()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return ((images_NCHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def label_lines(micro_batch: MicroBatch, class_names: Sequence[str]) -> list[list[str]]:
    """Return the lines under each picture: its label, or both labels with their weights where images were mixed."""
    parts = [
        (weight, [printable(", ".join(names)) or "none" for names in class_names_of(part.cpu_labels_N, class_names)])
        for weight, part in micro_batch.targets.parts
    ]
    if len(parts) == 1:
        return [[name] for name in parts[0][1]]
    return [list(lines) for lines in zip(*([f"{w:.2f} {name}" for name in names] for w, names in parts), strict=True)]


def grid(cells: Sequence[tuple[Image.Image, Sequence[str]]], title: str) -> Image.Image:
    """Return all pictures on one sheet, each with its lines below it, and a title."""
    font = ImageFont.load_default(TEXT)
    pictures = [_to_cell(picture) for picture, _ in cells]
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    lines = max(len(words) for _, words in cells)
    line_height = TEXT + 4
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    step_x, step_y = width + GAP, height + lines * line_height + GAP
    top = 2 * line_height + GAP
    sheet_width = max(columns * step_x + GAP, int(font.getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (sheet_width, rows * step_y + top + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for index, (picture, (_, words)) in enumerate(zip(pictures, cells, strict=True)):
        left, upper = GAP + index % columns * step_x, top + index // columns * step_y
        sheet.paste(picture.convert("RGB"), (left, upper))
        for number, text in enumerate(words):
            place = (left, upper + height + 3 + number * line_height)
            draw.text(place, _fitting(text, font, width), fill=INK, font=font)
    return sheet


def _to_cell(picture: Image.Image) -> Image.Image:
    """Return a picture for its cell: every pixel of a small one as a square, a large one made smaller."""
    longer = max(picture.size)
    if longer > 2 * CELL:
        picture = picture.copy()
        picture.thumbnail((2 * CELL, 2 * CELL))
        return picture
    factor = max(1, CELL // longer)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text that is cut to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
