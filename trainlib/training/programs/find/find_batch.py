"""Find the largest micro-batch that fits: `python -m trainlib.training.programs.find.find_batch CONFIG... [--most N]`.

Every rank runs it; rank 0 prints a table. There is no run directory.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from trainlib.config import Config
from trainlib.distributed.devices.out_of_memory import ADVICE
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.runs.attempt.logs import logging_to_console
from trainlib.runs.machine import launch_variables
from trainlib.runs.terminal.printable import print_error
from trainlib.runs.terminal.streams import end_program
from trainlib.runs.terminal.tables import Column, Table
from trainlib.training.programs.arguments import add_code
from trainlib.training.programs.find.without_run import load_trial, trial_training
from trainlib.training.step.stages import last_stage
from trainlib.training.tuning.batch_sizes import Trial, try_sizes

# While the training is built, no larger size is tried; of a single image BatchNorm may know no deviation.
OVERRIDES = ("train.micro_batch_size=2", "train.compile=false")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try sizes as one of the ranks, and print them on rank 0; return the exit code (see `errors`)."""
    options = _parse(arguments)
    is_main = launch_variables.rank() == 0
    try:
        with logging_to_console(logging.INFO if is_main else logging.WARNING):
            config, custom = load_trial([*options.config, *OVERRIDES], options.code, "find-batch")
            with trial_training(config, custom) as training:
                state, samples = training.state, training.samples
                batch_size, rank_slice = training.plan.global_batch_size, samples.train.rank_slice
                share = -(-batch_size // rank_slice.num_shards)
                on_cpu = state.accelerator.device.type == "cpu"
                most = options.most or (share if on_cpu else len(training.plan.ids_N))
                with last_stage(state):  # which takes the most memory
                    trials = try_sizes(state, samples.train.dummy_input(), most, rank_slice.num_images(batch_size))
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    if not any(trial.fits for trial in trials):
        if is_main:
            print_error(UserError(f"not even one image fits into the memory of every rank: {ADVICE}"))
        return UserError.exit_code
    if is_main:
        print(text_of(trials, config, share, most, on_cpu=on_cpu), flush=True)
    return EXIT_OK


def text_of(trials: Sequence[Trial], config: Config, share: int, most: int, *, on_cpu: bool) -> str:
    """Return a table of the trials, and the override to type.

    share   of the global batch that a rank computes at most at a time
    most    the largest size that was to be tried
    """
    rows = sorted(trials, key=lambda one: one.size)
    speeds = [f"{one.images_per_second:,.0f}" if one.images_per_second is not None else "does not fit" for one in rows]
    columns = [Column("micro-batch", [str(one.size) for one in rows], True), Column("images per second", speeds, True)]
    largest = max(one.size for one in trials if one.fits)
    lines = [str(Table(columns)), ""]
    lines.append(f"{largest} image{'s' * (largest > 1)} at a time fit into the memory of each process")
    if all(one.fits for one in trials):
        lines[-1] += f", the most that was tried{'' if largest == most else ': more may take half of what is left'}"
    if on_cpu:
        lines.append("a CPU's memory is not filled to the brim: at most half of what is available is used")
    if largest >= share:
        lines.append(f"that is the whole share of a process ({share}) of train.batch_size={config.train.batch_size}:")
        lines.append("train.micro_batch_size=null")
    else:
        lines.append(f"train.micro_batch_size={largest}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.find.find_batch", allow_abbrev=False)
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value")
    add_code(parser)
    parser.add_argument("--most", type=int)
    return parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    end_program(main)
