"""The training program: `python -m trainlib.train CONFIG... [key=value ...] [--fresh] [--resume [CHECKPOINT]]`.

It is the same program for a single process and for each rank under `accelerate launch` or `torchrun`. Mistakes of the
user are reported before torch is imported, where that is possible.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from trainlib.config import Config, keep_older_values, load_config
from trainlib.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    ConfigError,
    StoppedError,
    TrainlaunchError,
    UserError,
    not_permitted,
)
from trainlib.runs import RUNS, launch_variables
from trainlib.runs.attempts import next_number, recorded_attempt
from trainlib.runs.directory import RunDirectory
from trainlib.runs.logs import attempt_header, logging_to_console, logging_to_file
from trainlib.runs.printable import lines, print_error
from trainlib.runs.stop_request import StopFlag, ignore_stop_signals
from trainlib.runs.streams import keep_running_without_readers, secure_streams
from trainlib.training.programs.arguments import parse_arguments
from trainlib.training.tracking.curves import draw_curves

if TYPE_CHECKING:
    from trainlib.models.custom_parts import CustomParts


def main(arguments: Sequence[str] | None = None, config: Config | None = None) -> int:
    """Run the program and return its exit code (see `errors`).

    config   the configuration that the arguments name, where the caller has read it already
    """
    options = parse_arguments(arguments)
    keep_running_without_readers()
    try:
        launch_variables.check()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rank = launch_variables.rank()
    flag = StopFlag()
    flag.install()
    try:
        with logging_to_console():
            if config is None:
                config = load_config(options.config)
            done = train(config, flag, rank=rank, fresh=options.fresh, resume=options.resume)
            return EXIT_OK if done else EXIT_STOPPED
    except ConfigError as error:
        if rank == 0:  # every rank finds the same mistakes
            print_error(error)
        return error.exit_code
    except TrainlaunchError as error:
        _tell(f"error: {error}" if not isinstance(error, StoppedError) else str(error), rank, config)
        return error.exit_code
    except PermissionError as error:
        _tell(f"error: {not_permitted(error)}", rank, config)
        return EXIT_USER_ERROR
    except Exception:  # noqa: BLE001 - the boundary of the program
        _tell(traceback.format_exc(), rank, config)
        return EXIT_FAILURE
    finally:
        flag.uninstall()


def train(
    config: Config,
    flag: StopFlag,
    *,
    rank: int = 0,
    fresh: bool = False,
    resume: str | None = None,
    custom: CustomParts | None = None,
) -> bool:
    """Train one configuration in this process, as one of its ranks.

    resume  None, "" for the newest checkpoint with harmless changes allowed, or a checkpoint's name or path
    custom  a model, data set or loss given in Python, which the configuration only names

    Returns:
        True if training is complete, False if it was asked to stop and wrote a checkpoint.
    """
    given = (custom,) if custom else ()
    if not fresh:
        config = keep_older_values(config, RUNS / config.name / "config.yaml")
    if rank != 0:
        from trainlib.training.session import run_session

        return run_session(config, RunDirectory(RUNS / config.name), flag, None, None, sys.stderr, *given)
    run = RunDirectory.open(config, fresh=fresh, resume=resume)
    flag.watch(run.stop_file)
    try:
        with logging_to_file(run.logs / "rank-0.log") as log:
            from trainlib.training.session import choose_checkpoint, run_session

            with suppress(OSError):  # a full disk is told where it matters
                log.write(attempt_header(next_number(run.path), os.environ))
            start = choose_checkpoint(run.checkpoints, resume or None)
            world_size = launch_variables.world_size()
            with recorded_attempt(run.path, world_size=world_size, from_step=start.step if start else 0) as attempt:
                try:
                    done = run_session(config, run, flag, start, attempt, log, *given)
                except StoppedError:
                    attempt.reason = flag.reason
                    raise
            draw_curves(run.path)  # last: all that matters is safe by now
            return done
    except StoppedError:
        flag.acknowledge()
        raise
    finally:
        run.close()


def _tell(message: str, rank: int, config: Config | None) -> None:
    """Print a message to stderr on rank 0; on another rank, write it to that rank's log if that can be opened."""
    if rank != 0 and config is not None:
        with suppress(OSError), (RUNS / config.name / "logs" / f"rank-{rank}.log").open("a") as log:
            log.write(f"{lines(message)}\n")
            return
    print(lines(message), file=sys.stderr)


if __name__ == "__main__":
    secure_streams()
    code = main()
    ignore_stop_signals()  # while the interpreter ends, they would change the exit code
    if code not in (EXIT_OK, EXIT_STOPPED) and launch_variables.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads, whose group was not left after an error, would abort while C++ ends
    sys.exit(code)
