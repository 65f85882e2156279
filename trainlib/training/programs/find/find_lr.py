"""Find a learning rate by a range test: `python -m trainlib.training.programs.find.find_lr CONFIG... --output FILE`.

Every rank runs it; rank 0 writes the curve and prints the value. There is no run directory.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainlib.config import Config
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import EXIT_FAILURE, EXIT_OK, NonFiniteError, TrainlaunchError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.logs import logging_to_console
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.machine import launch_variables
from trainlib.runs.terminal.printable import print_error
from trainlib.runs.terminal.streams import end_program
from trainlib.training.programs.arguments import add_code
from trainlib.training.programs.find.without_run import load_trial, trial_training
from trainlib.training.trainer import Trainer
from trainlib.training.tuning.range_test import (
    RangeTest,
    RangeTestOver,
    Suggestion,
    exploded_at,
    learning_rate,
    smoothed,
    suggest,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test as one of the ranks; return the exit code (see `errors`), 1 where no value can be suggested."""
    options = _parse(arguments)
    is_main = launch_variables.rank() == 0
    rates = [learning_rate(step, options.lowest, options.highest, options.steps) for step in range(options.steps)]
    try:
        with logging_to_console(logging.INFO if is_main else logging.WARNING):
            words = [*options.config, *overrides(rates)]
            config, custom = load_trial(words, options.code, "find-lr")
            losses = range_test(config, custom, rates)
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    found = suggest(rates, losses[: exploded_at(losses)])
    if is_main:
        write_curve(options.output, rates, losses, found, config.name)
        print(text_of(rates, losses, found, options.output), flush=True)
    return EXIT_OK if found is not None else EXIT_FAILURE


def overrides(rates: Sequence[float]) -> list[str]:
    """Return the changes that make a configuration a range test over these learning rates."""
    return [
        f"optimizer.lr={rates[0]!r}",
        "scheduler=null",
        "train.epochs=null",
        f"train.steps={len(rates)}",
        "train.early_stopping=null",
        "train.average=null",
        "train.on_nonfinite=stop",
        "checkpoint.best=null",
        "tracking.log_every=1",
        "tracking.health=null",
    ]


def range_test(config: Config, custom: CustomParts, rates: Sequence[float]) -> list[float]:
    """Train one step with each of these learning rates, as one of the ranks; return the losses until they explode.

    The loss of a step is that of its global batch, before the update. A collective.
    """
    test = RangeTest(rates)
    with trial_training(config, custom) as training:
        quiet = replace(training, loop_config=replace(training.loop_config, log_every=1))
        with suppress(RangeTestOver, NonFiniteError):
            Trainer(quiet, [test]).run(StopConsensus(StopFlag(), None))
    return test.losses


def text_of(rates: Sequence[float], losses: Sequence[float], found: Suggestion | None, output: Path) -> str:
    """Return what to tell of a test."""
    end = f"{len(losses)} of {len(rates)} steps, the learning rate from {rates[0]:.1e} to {rates[-1]:.1e}"
    if len(losses) < len(rates) or exploded_at(losses) is not None:
        end += f"; the loss exploded at {rates[min(len(losses), len(rates)) - 1]:.1e}"
    lines = [end, f"the curve is in {output} and {picture_of(output)}"]
    if found is None:
        lines.append("the loss never fell, so no value can be suggested: try more --steps or another range")
    else:
        lines.append(
            f"the loss falls fastest at {found.lr:.1e} and is lowest at {found.lowest:.1e}. To take the first:"
        )
        lines.append(f"optimizer.lr={found.lr:.1e}")
    return "\n".join(lines)


def picture_of(output: Path) -> Path:
    """Return the name of the picture beside the table."""
    return output.with_suffix(".png")


def write_curve(
    output: Path, rates: Sequence[float], losses: Sequence[float], found: Suggestion | None, name: str
) -> None:
    """Write the table (step, lr, loss, smoothed) and the picture of a test."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["step", "lr", "loss", "smoothed"])
    smooth = smoothed(losses)
    table.writerows([step + 1, rates[step], losses[step], smooth[step]] for step in range(len(losses)))
    write_atomically(output, file.getvalue())
    write_atomically(picture_of(output), picture(rates, losses, found, name))


def picture(rates: Sequence[float], losses: Sequence[float], found: Suggestion | None, name: str) -> bytes:
    """Return a PNG of the loss over the learning rate. The explosion is cut off, as it would hide the rest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=130, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    finite = [(rate, loss) for rate, loss in zip(rates, losses, strict=False) if math.isfinite(loss)]
    smooth = smoothed([loss for _, loss in finite])
    axes.plot([rate for rate, _ in finite], [loss for _, loss in finite], color="#0072b2", alpha=0.3, linewidth=0.8)
    axes.plot([rate for rate, _ in finite], smooth, color="#0072b2", linewidth=1.5)
    if smooth:
        low, first = min(smooth), smooth[0]
        axes.set_ylim(low - 0.1 * abs(first - low) - 1e-6, first + 0.7 * abs(first - low) + 1e-6)
    if found is not None:
        axes.axvline(found.lr, color="#d55e00", linewidth=1.2)
        axes.text(found.lr, 0.97, f" {found.lr:.1e}", color="#d55e00", va="top", transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss of the batch")
    axes.set_title(name, loc="left", fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.find.find_lr", allow_abbrev=False)
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value")
    add_code(parser)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lowest", type=float, required=True)
    parser.add_argument("--highest", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    end_program(main)
