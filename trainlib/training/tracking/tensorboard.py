"""The rows of metrics.jsonl for TensorBoard."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.rows import Row, health_scalars, scalars

FLUSH_SECONDS = 5  # at most, until a row shows up in TensorBoard


class TensorBoard:
    """The rows of metrics.jsonl as scalars (see `scalars`), and those of health.jsonl with their histograms.

    The events of a resumed run are written anew from these two files, so that they hold exactly the same rows, also
    after a kill that cut the events off or a resume from long before.
    """

    def __init__(self, run: Path):
        self._directory = run / "tensorboard"
        self._earlier_rows: list[Row] = [*read_lines(run / "metrics.jsonl"), *read_lines(run / "health.jsonl")]
        self._writer: Any = (
            None  # until the first row: to import it takes 0.2 s, which the first step need not wait for
        )

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        earlier = list(self._directory.glob("events.*"))
        # A purge tells a TensorBoard that is running to forget what it has read from the earlier files.
        purge_step = 0 if earlier else None
        self._writer = SummaryWriter(str(self._directory), purge_step=purge_step, flush_secs=FLUSH_SECONDS)
        rows, self._earlier_rows = self._earlier_rows, []
        for row in rows:
            self.log(row)
        self.flush()
        for path in earlier:
            path.unlink()

    def log(self, row: Row) -> None:
        """Write the numbers and histograms of a row."""
        if self._writer is None:
            self._open()
        step, time = row["step"], datetime.fromisoformat(row["time"]).timestamp()
        for tag, value in (health_scalars(row) if "histograms" in row else scalars(row)).items():
            self._writer.add_scalar(tag, value, step, time)
        for tag, histogram in row.get("histograms", {}).items():
            self._writer.add_histogram_raw(
                tag,
                min=histogram["edges"][0],
                max=histogram["edges"][-1],
                num=sum(histogram["counts"]),
                sum=histogram["sum"],
                sum_squares=histogram["sum_squares"],
                bucket_limits=histogram["edges"][1:],
                bucket_counts=histogram["counts"],
                global_step=step,
                walltime=time,
            )

    def flush(self) -> None:
        """Write what is buffered to disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is None:
            self._open()
        self._writer.close()
