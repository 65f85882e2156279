"""The rows of metrics.jsonl for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainlib.runs.files.json_records import read_lines
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import Row, health_scalars, scalars

FLUSH_SECONDS = 5  # at most, until a row shows up in TensorBoard

# The tab "Custom scalars": training and validation in one chart.
CHARTS = {name: ["Multiline", [f"^(train|val|test)/{name}$"]] for name in ("loss", "accuracy")}
# The tab "HParams": the sections of the configuration that decide what is computed, and the scalars to compare by.
COMPARED = ("seed", "data", "model", "loss", "optimizer", "scheduler", "train")
RESULTS = ("val/loss", "val/accuracy", "test/loss", "test/accuracy")


class TensorBoard:
    """The rows of metrics.jsonl as scalars (see `scalars`), and those of health.jsonl with their histograms.

    The events of a resumed run are written anew from these two files, so that they hold exactly the same rows, also
    after a kill that cut the events off or a resume from long before.
    """

    def __init__(self, run: Path):
        self._run = run
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
        self._describe()
        rows, self._earlier_rows = self._earlier_rows, []
        for row in rows:
            self.log(row)
        self.flush()
        for path in earlier:
            path.unlink()

    def _describe(self) -> None:
        """Write which charts belong together, and the configuration for TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_custom_scalars({"training and validation": CHARTS})
        values = dict(plain_values({key: RunFiles(self._run).config().get(key) for key in COMPARED}))
        for summary in hparams(values, dict.fromkeys(RESULTS, 0.0)):
            self._writer.file_writer.add_summary(summary, 0)

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


def plain_values(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield the dotted keys of a configuration with their values; a list as text, and nothing for null."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from plain_values(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)
