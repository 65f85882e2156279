"""The same rows for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainlib.tracking.rows import Row, scalars


class TensorBoard:
    """The same rows as scalars `split/loss`, `split/accuracy`, `lr`, `images_per_second`, at the row's step."""

    def __init__(self, directory: Path, from_step: int):
        from torch.utils.tensorboard import SummaryWriter

        purge = from_step + 1 if directory.exists() else None  # rows past the resumed step do not count
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)

    def log(self, row: Row) -> None:
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
