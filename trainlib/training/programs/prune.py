"""Remove checkpoints that are not needed any more: `python -m trainlib.training.programs.prune RUN...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainlib.errors import EXIT_OK, TrainlaunchError
from trainlib.runs.terminal.printable import print_error, printable
from trainlib.runs.terminal.streams import end_program
from trainlib.training.checkpoints.after import keep_after, tell_freed


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune each run; return the exit code of the first that cannot be (see `errors`)."""
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.prune", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--keep", action="append", choices=["best", "last"], default=[])
    parser.add_argument("--weights-only", action="store_true")
    options = parser.parse_args(arguments)
    for run in options.runs:
        try:
            freed = keep_after(run, options.keep or ["best", "last"], optimizer=not options.weights_only)
        except TrainlaunchError as error:
            print_error(error)
            return error.exit_code
        print(printable(tell_freed(run, freed)))
    return EXIT_OK


if __name__ == "__main__":
    end_program(main)
