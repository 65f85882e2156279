"""Remove checkpoints that are not needed any more: `python -m trainlib.training.programs.prune RUN...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trainlib.errors import EXIT_OK, TrainlaunchError
from trainlib.runs.directory import RunDirectory
from trainlib.runs.terminal.printable import print_error, printable
from trainlib.runs.terminal.streams import end_program
from trainlib.training.checkpoints.after import choose_kept, remove_others, tell_freed


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune each run, or none where one of them cannot be; return the exit code (see `errors`)."""
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.prune", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--keep", action="append", choices=["best", "last"], default=[])
    parser.add_argument("--weights-only", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as held:
            for run in options.runs:  # a training that begins meanwhile would lose what it has just written
                held.enter_context(RunDirectory.held(run, "launch prune"))
            kept = {run: choose_kept(run, options.keep or ["best", "last"]) for run in options.runs}
            for run in options.runs:
                freed = remove_others(run, kept[run], optimizer=not options.weights_only)
                print(printable(tell_freed(run, freed)))
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    end_program(main)
