"""Small pictures for the page of a survey: some of each class, and those of the groups of duplicates."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from trainlib.data.survey.facts import SPLITS, Surveyed
from trainlib.data.survey.looking import PictureSource, as_image

PIXELS = 96  # the longer side
MOST_CLASSES = 24  # with a row of pictures; of more, the smallest ones
OF_A_CLASS = 10
MOST_GROUPS = 40  # of duplicates, with pictures
OF_A_GROUP = 6


def add_pictures(facts: dict[str, Any], surveyed: Surveyed, source: PictureSource, seed: int) -> None:
    """Give the facts their pictures: `picture`, a data URL, to samples of groups, and `examples` to classes."""
    for groups in (facts["duplicates"], facts["near_duplicates"] or []):
        for group in groups[:MOST_GROUPS]:
            for sample in group["samples"][:OF_A_GROUP]:
                sample["picture"] = picture_url(source, sample["index"])
    damaged = {sample["index"] for sample in facts["damaged"]}
    generator = np.random.default_rng(seed)
    fewest_first = sorted(range(len(surveyed.classes)), key=lambda label: _of_training(facts["classes"][label]))
    for label in sorted(fewest_first[:MOST_CLASSES]):
        of_class = np.flatnonzero(surveyed.is_of(label) & (surveyed.splits_N == SPLITS.index("train")))
        whole = [index for index in of_class.tolist() if index not in damaged]
        chosen = generator.permutation(whole)[:OF_A_CLASS].tolist() if whole else []
        examples = [surveyed.entry(int(index)) | {"picture": picture_url(source, int(index))} for index in chosen]
        facts["classes"][label]["examples"] = examples


def _of_training(row: Mapping[str, Any]) -> int:
    return int(row["train"])


def picture_url(source: PictureSource, index: int) -> str | None:
    """Return a sample's picture as a data URL; None for one that cannot be decoded any more."""
    try:
        image = as_image(source.picture(source.stored(index), PIXELS))
    except Exception:  # noqa: BLE001 - on damaged files Pillow raises almost anything
        return None
    return data_url(image)


def data_url(image: Image.Image) -> str:
    """Return a picture, made small, as a PNG or JPEG in a data URL: small ones keep every pixel."""
    form = "PNG" if max(image.size) <= PIXELS // 2 else "JPEG"
    image.thumbnail((PIXELS, PIXELS))
    file = io.BytesIO()
    image.save(file, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
